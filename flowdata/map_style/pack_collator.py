"""What makes batches of packs, and packs of rows, for a DataLoader."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdata.map_style.packed_rows import (
    IGNORED,
    INPUT_IDS,
    LABELS,
    POSITION_IDS,
    join,
    read_sample,
)
from flowdata.map_style.weighted_item import WeightedItem


class PackCollator:
    """A ``collate_fn`` (of the Trainer: a ``data_collator``) for the items of `FlowPacks`.

    By default packs are the rows of a batch, and the shorter ones are filled up at their end, to
    shape (B, T). Each place that is filled has position 0 and label -100: where models of
    transformers make a mask of ``position_ids`` (eager attention, SDPA), it is a sample of its own.
    For flash attention they read ``position_ids`` only of batches of one row: with ``flatten`` the
    packs follow one another in a single row, of shape (1, T1 + T2 + ...).

    Args:
        pad_token_id: the token that fills; None is 0, as it does not matter which it is.
        flatten: make one row.

    Raises:
        TypeError: for a token that is no number, a tokenizer say; in the loader, for items that are
            not packs, or have lost their positions.

    >>> from flowdata import FlowPacks
    >>> rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    >>> packs = FlowPacks(rows, [1.0, 1.0], [3, 2], max_length=3)
    >>> sorted(PackCollator(pad_token_id=0)([packs[0], packs[1]])["input_ids"].tolist())
    [[5, 6, 7], [8, 9, 0]]
    """

    def __init__(self, pad_token_id: int | None = 0, *, flatten: bool = False) -> None:
        if isinstance(pad_token_id, bool) or not isinstance(pad_token_id, int | np.integer | None):
            raise TypeError(
                "pad_token_id must be the number of a token, or None, got "
                f"{type(pad_token_id).__name__}: collate_fn=PackCollator(tokenizer.pad_token_id)"
            )
        self._fill = {INPUT_IDS: pad_token_id or 0, LABELS: IGNORED, POSITION_IDS: 0}
        self._flatten = flatten

    def __call__(self, packs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of these packs: tensors of int64."""
        for pack in packs:
            _require_pack(pack)
        if self._flatten:
            return {name: torch.cat([pack[name] for pack in packs])[None] for name in self._fill}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [pack[name] for pack in packs], batch_first=True, padding_value=value
            )
            for name, value in self._fill.items()
        }


def pack_rows(rows: Sequence[Any], *, max_length: int | None = None) -> dict[str, Tensor]:
    """A ``collate_fn`` for the batches of `FlowPackSampler`: its rows as one pack.

    Args:
        rows: as those of `FlowPacks`. Those of `reweight` are for the ``collate_fn`` that it
            returns, which this one is given to: ``reweight(data, weights, collate_fn=pack_rows)``.
        max_length: longer rows are cut to it.

    Returns:
        ``input_ids``, ``labels`` and ``position_ids``, int64, shape (1, T).

    Raises:
        TypeError, ValueError: for rows that cannot be packed, see `FlowPacks`.

    >>> pack_rows([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])["labels"]
    tensor([[-100,    6,    7, -100,    9]])
    """
    if any(isinstance(row, WeightedItem) for row in rows):
        raise TypeError(
            "these rows have weights, which belong to the collate_fn that reweight returned: "
            "data, collate = reweight(data, weights, collate_fn=flowdata.pack_rows), and "
            "DataLoader(data, ..., collate_fn=collate)"
        )
    names = [f"{place} of the batch" for place in range(len(rows))]
    samples = [
        read_sample(row, name, max_length=max_length) for row, name in zip(rows, names, strict=True)
    ]
    return {name: tensor[None] for name, tensor in join(samples, names).items()}


def _require_pack(pack: Any) -> None:
    if isinstance(pack, WeightedItem):
        raise TypeError(
            "these packs have weights, which belong to the collate_fn that reweight returned: "
            "data, collate = reweight(data, weights, collate_fn=flowdata.PackCollator()), and "
            "DataLoader(FlowPacks(data, ...), ..., collate_fn=collate)"
        )
    if not isinstance(pack, Mapping) or INPUT_IDS not in pack:
        raise TypeError(
            f"PackCollator makes batches of the packs of FlowPacks, got {type(pack).__name__}: "
            "give the DataLoader a FlowPacks"
        )
    if POSITION_IDS not in pack:
        raise TypeError(
            "these packs have no position_ids, so a model could not tell their samples apart: what "
            "stands between FlowPacks and its collator has taken them out (the Trainer does, with "
            "remove_unused_columns=True, where the model's forward does not name them: use "
            "remove_unused_columns=False); rows are packed by flowdata.pack_rows"
        )
