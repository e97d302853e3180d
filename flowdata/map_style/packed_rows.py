"""Tokenized rows, read as samples, and put together into one pack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowdata.core.arrays import as_array
from flowdata.errors import MismatchError
from flowdata.map_style.weighted_item import WeightedItem

IGNORED = -100
"""Label of a token that is not learned."""

INPUT_IDS, LABELS, POSITION_IDS = "input_ids", "labels", "position_ids"
# What TRL and transformers call a mask of the tokens that are learned.
MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Of the tokens that are learned."""
_SEGMENTS = ("token_type_ids", "mm_token_type_ids")
# trl 1.16, pack_dataset, and transformers 5.23, DataCollatorWithFlattening: where samples that
# share a row begin.
_OF_PACKS = ("seq_lengths", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")
_READ = frozenset(
    {INPUT_IDS, LABELS, POSITION_IDS, "attention_mask", *MASKS, *_SEGMENTS, *_OF_PACKS}
)
_ROWS_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """A row of tokens.

    Attributes:
        ids: shape (length,), int64.
        labels: of the same shape; the first is never learned.
        weights: of each label that is learned, float32; None for rows without weights.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None


def read_sample(
    row: Any, name: Any, *, length: int | None = None, max_length: int | None = None
) -> Sample:
    """The tokens of a row.

    Args:
        row: a mapping with ``input_ids`` (a list, array or tensor) and, if not all of them are
            learned, ``labels``, or masks as TRL has them, 1 where a token is learned; or a
            `WeightedItem` of one. Texts and numbers beside them are left out.
        name: of the row, for errors.
        length: that it is to have.
        max_length: longer rows are cut to it.

    Raises:
        MismatchError: for a row of another length.
        TypeError, ValueError: for a row that is not of this kind, padded, a pack already, or with
            numbers beside its tokens that a pack would not have.
    """
    weight = None
    if isinstance(row, WeightedItem):
        row, weight = row.item, row.weight
    if not isinstance(row, Mapping) or INPUT_IDS not in row:
        found = f"keys {list(row)}" if isinstance(row, Mapping) else type(row).__name__
        raise TypeError(
            f"row {name} has no input_ids ({found}): packs are made of tokenized rows, dicts with "
            "input_ids and, if not all tokens are learned, labels"
        )
    ids = _integers(row, INPUT_IDS, name)
    size = ids.size if max_length is None else min(ids.size, max_length)
    if length is not None and size != length:
        raise MismatchError(
            f"row {name} has {ids.size:,} tokens, but a length of {length:,} was given for it: "
            'give the lengths of these very rows, len(row["input_ids"]), or, if rows are to be '
            'cut, too_long="truncate" with the max_length that the lengths were taken with'
        )
    labels = _read_labels(row, ids, name)
    _refuse_others(row, ids.size, name)
    labels[:1] = IGNORED
    weights = None if weight is None else _weights_of(weight, labels, size, name)
    return Sample(ids[:size], labels[:size], weights)


def join(samples: Sequence[Sample], names: Sequence[Any]) -> Any:
    """A pack of samples: a dict of int64 tensors of shape (T,), or a `WeightedItem` of one.

    ``position_ids`` begin at 0 for each sample, and the first label of each is -100. The weights
    of a pack are those of its labels that are learned, one after the other.
    """
    lengths = np.array([sample.ids.size for sample in samples])
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    pack = {
        INPUT_IDS: _joined([sample.ids for sample in samples]),
        LABELS: _joined([sample.labels for sample in samples]),
        POSITION_IDS: torch.from_numpy(np.arange(starts.size) - starts),
    }
    weights = [sample.weights for sample in samples if sample.weights is not None]
    if not weights:
        return pack
    shown = ", ".join(map(str, names[:_ROWS_SHOWN])) + ", ..." * (len(names) > _ROWS_SHOWN)
    return WeightedItem(pack, np.concatenate(weights), shown)


def read_labels(row: Mapping[str, Any], name: Any) -> NDArray[np.int64]:
    """The label of each token of a row, shape (length,): negative where it is not learned.

    Those of a row without ``labels`` are its ``input_ids``, where masks leave them.

    Raises:
        ValueError: for labels or masks that are not one whole number for each token.
    """
    return _read_labels(row, _integers(row, INPUT_IDS, name), name)


def _joined(parts: list[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _read_labels(row: Mapping[str, Any], ids: NDArray[np.int64], name: Any) -> NDArray[np.int64]:
    learned = np.ones(ids.size, dtype=np.bool_)
    masks = [mask for mask in MASKS if row.get(mask) is not None]
    for mask in masks:
        learned &= _flags(row, mask, ids.size, name)
    if row.get(LABELS) is None:
        return np.where(learned, ids, IGNORED)
    labels = _integers(row, LABELS, name).copy()
    if labels.size != ids.size:
        raise ValueError(f"row {name} has {ids.size:,} input_ids, but {labels.size:,} labels")
    if masks and np.any(labels[~learned] >= 0):
        raise ValueError(
            f"row {name} has labels of tokens that {masks} leave out: take out one of them, or "
            "put -100 into labels where a token is not learned"
        )
    return labels


def _refuse_others(row: Mapping[str, Any], length: int, name: Any) -> None:
    """Make sure that nothing is lost which belongs to the tokens of a row."""
    if row.get("attention_mask") is not None:
        masked = length - np.count_nonzero(_flags(row, "attention_mask", length, name))
        if masked:
            raise ValueError(
                f"row {name} is padded: {masked:,} of the {length:,} numbers of its attention_mask "
                "are 0; tokenize without padding, as packs need none"
            )
    if row.get(POSITION_IDS) is not None:
        positions = _integers(row, POSITION_IDS, name)
        if not np.array_equal(positions, np.arange(length)):
            raise ValueError(
                f"row {name} has position_ids other than 0 to {length - 1:,}: it is a pack "
                "already, or of a model that counts otherwise; give the samples one by one"
            )
    for column, value in row.items():
        if column in _OF_PACKS and value is not None:
            raise ValueError(
                f"row {name} has {column}: it is a pack of several samples; give the samples "
                "before they are packed"
            )
        known = column in _READ and column not in _SEGMENTS
        if known or not _are_numbers(value) or (column in _SEGMENTS and not np.any(value)):
            continue
        raise ValueError(
            f"row {name} has {column!r}, an array of numbers that a pack does not have, which is "
            "made of input_ids and labels: take the column out (datasets: "
            f"remove_columns({column!r})), if the model can do without"
        )


def _weights_of(
    weight: Any, labels: NDArray[np.int64], size: int, name: Any
) -> NDArray[np.float32]:
    """Weights of the labels that are learned, of the tokens that are kept."""
    learned = int(np.count_nonzero(labels >= 0))
    kept = int(np.count_nonzero(labels[:size] >= 0))
    if not isinstance(weight, np.ndarray):
        return np.full(kept, weight, dtype=np.float32)
    if weight.size not in (learned, kept):
        raise MismatchError(
            f"row {name} has {learned:,} labels that are learned, but weights of {weight.size:,} "
            "response tokens: it was scored with other labels or another length"
        )
    return weight[:kept].astype(np.float32)


def _integers(row: Mapping[str, Any], column: str, name: Any) -> NDArray[np.int64]:
    found = as_array(row[column])
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ValueError(
            f"{column} of row {name} must be whole numbers of shape (length,), got {found.dtype} "
            f"of shape {found.shape}"
        )
    return found.astype(np.int64, copy=False)


def _flags(row: Mapping[str, Any], column: str, length: int, name: Any) -> NDArray[np.bool_]:
    found = as_array(row[column])
    if found.shape != (length,) or not np.isin(found, (0, 1)).all():
        raise ValueError(
            f"{column} of row {name} must be a 0 or 1 for each of its {length:,} tokens, got "
            f"{found.dtype} of shape {found.shape}"
        )
    return found.astype(np.bool_)


def _are_numbers(value: Any) -> bool:
    """Whether a value is an array of numbers, or a list of them."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
        if isinstance(value, int | float | np.number | Tensor):
            return True
    if isinstance(value, np.ndarray):
        return value.ndim > 0 and value.dtype.kind in "buif"
    return isinstance(value, Tensor) and value.ndim > 0
