"""mask_tokens: rows whose labels are learned only where a function of the token losses says so."""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from flowdata.core.made_weights import NoWeightError, OnInvalid
from flowdata.core.temperature import Temperature
from flowdata.core.weight_functions import WeightFunction
from flowdata.errors import InvalidLossError, MismatchError, warn
from flowdata.map_style.checked_weights import require_length
from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.inner import fetch_rows
from flowdata.map_style.packed_rows import IGNORED, INPUT_IDS, LABELS, MASKS
from flowdata.reweight.learned_labels import are_columns, labels_of
from flowdata.reweight.row_numbers import require_rows
from flowdata.reweight.token_weights import NOT_SHIFTED
from flowdata.reweight.weighted_data import pass_on
from flowdata.table.loss_table import LossTable

_ROWS_SHOWN = 5


def mask_tokens(
    dataset: Any,
    table: LossTable,
    function: WeightFunction,
    *,
    temperature: Temperature = "median",
    on_invalid: OnInvalid = "raise",
) -> Any:
    """The data set with the label -100 where a function of the token losses says no.

    For trainers whose loss cannot be weighted: such labels are in no loss, nor counted where one is
    averaged. Selective token masking (arXiv 2501.14315) learns tokens whose perplexity under the
    pre-trained model is at most 2.5: ``lambda losses, tau: losses <= np.log(2.5)``.

    Of a ``datasets.Dataset`` it is another one, with a new column ``labels``: kept where `map`
    keeps what it makes, in memory or in the cache of datasets. Of others it is a view, whose rows
    are masked when they are read.

    Args:
        dataset: map-style data set of n rows: dicts with ``labels``, or with ``input_ids`` that are
            all learned, or those that masks of TRL leave.
        table: of these rows, with token losses.
        function: ``function(losses, tau)`` gives booleans, for valid token losses of shape (m,).
        temperature: tau.
        on_invalid: "drop" masks the tokens of rows and tokens without a valid loss.

    Raises:
        InvalidLossError: for invalid losses, and where no token would be left.
        MismatchError: for a table of another length, and, naming the row, for one with other
            numbers of response tokens.
        TypeError: for a stream, for draws, for rows that are no dicts, and for a table of an
            encoder-decoder, whose decoder reads the labels.
        ValueError: for a table without token losses, or a function that gives other numbers.

    Warns:
        FlowDataWarning: where no label of a row is left.

    >>> rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    >>> table = LossTable.from_losses([1.0, 2.0])
    >>> table = LossTable(
    ...     table.losses,
    ...     table.provenance,
    ...     n_tokens=np.array([2, 1], np.int32),
    ...     token_losses=np.array([0.5, 1.5, 0.7], np.float32),
    ... )
    >>> masked = mask_tokens(rows, table, lambda losses, tau: losses < 1.0)
    >>> masked[0]["labels"], masked[1]["labels"]
    ([5, 6, -100], [8, 9])
    """
    if isinstance(dataset, EpochItems):
        kind = type(dataset).__name__
        raise TypeError(
            f"the items of a {kind} are draws: mask its rows, {kind}(mask_tokens(rows, ...), ...)"
        )
    require_rows(dataset)
    if not isinstance(table, LossTable):
        raise TypeError(f"mask_tokens needs a LossTable, got {type(table).__name__}")
    require_length(dataset, len(table))
    if table.provenance.loss == "seq2seq":
        raise TypeError(
            "labels of an encoder-decoder are what its decoder reads: with -100 in their place it "
            'would read something else; weight them, reweight(..., level="token")'
        )
    try:
        weights = table.token_weights(temperature, function=function, on_invalid=on_invalid)
    except NoWeightError as error:
        raise InvalidLossError(
            "the function of mask_tokens says no to all token losses, so that nothing could be "
            f"learned: it gets losses, of which {math.log(2.5):.3f} is the perplexity 2.5"
        ) from error
    kept = weights.relative > 0
    if not np.isin(weights.values, (0.0, 1.0)).all():
        raise ValueError(
            "the function of mask_tokens must give booleans, True for tokens that are learned; "
            'weights of tokens are for reweight(..., level="token", function=...)'
        )
    shifted = table.provenance.loss not in NOT_SHIFTED
    mask = TokenMask(kept, table.token_offsets, shifted=shifted)
    mask.warn_of_empty_rows()
    if not are_columns(dataset):
        return MaskedRows(dataset, mask)
    if not {INPUT_IDS, LABELS}.intersection(dataset.column_names):
        raise TypeError(
            f"the data set has columns {dataset.column_names}, and no labels that could be masked: "
            "tokenize it; what SFTTrainer has tokenized is its trainer.train_dataset"
        )
    return _masked_columns(dataset, mask)


class TokenMask:
    """Which response tokens are learned.

    Args:
        kept: of all tokens, row after row.
        offsets: where the tokens of each row begin, shape (n + 1,).
        shifted: whether nothing predicts the first label of a row.
    """

    def __init__(
        self, kept: NDArray[np.bool_], offsets: NDArray[np.int64], *, shifted: bool = True
    ) -> None:
        self._kept, self._offsets, self._first_label = kept, offsets, int(shifted)

    def __len__(self) -> int:
        return self._offsets.size - 1

    def labels(self, row: Any, number: int) -> NDArray[np.int64]:
        """The labels of a row, masked: int64, shape (length,).

        Raises:
            MismatchError: for another number of response tokens than were scored.
            TypeError, ValueError: for a row that has no labels.
        """
        labels = labels_of(row, number)
        first = self._first_label
        places = np.flatnonzero(labels[first:] >= 0) + first
        kept = self._kept[self._offsets[number] : self._offsets[number + 1]]
        if places.size != kept.size:
            raise MismatchError(
                f"row {number} has {places.size:,} labels that are learned, but losses of "
                f"{kept.size:,} response tokens: it was scored with other labels or another length"
            )
        labels[places[~kept]] = IGNORED
        return labels

    def warn_of_empty_rows(self) -> None:
        """Warn of rows that had labels to learn, and have none any more."""
        before = np.concatenate(([0], np.cumsum(self._kept)))[self._offsets]
        empty = np.flatnonzero((np.diff(before) == 0) & (np.diff(self._offsets) > 0))
        if empty.size:
            shown = ", ".join(map(str, empty[:_ROWS_SHOWN])) + ", ..." * (empty.size > _ROWS_SHOWN)
            warn(
                f"in {empty.size:,} of {len(self):,} rows no label is left (rows {shown}): the "
                "mean loss of a batch of such rows alone is 0 / 0, and NaN spoils the model. Leave "
                "them out, or draw by weights that are 0 for them"
            )


class MaskedRows(Dataset[Any]):
    """A view of a map-style data set: its rows, with masked labels."""

    def __init__(self, dataset: Any, mask: TokenMask) -> None:
        self.dataset, self._mask = dataset, mask

    def __len__(self) -> int:
        return len(self._mask)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return self.__getitems__(range(len(self))[row])
        # As the rows of a list, negative ones count from its end.
        row = range(len(self))[row]
        return self._masked(self.dataset[row], row)

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        numbers = [range(len(self))[row] for row in rows]
        items = fetch_rows(self.dataset, numbers)
        return [self._masked(*each) for each in zip(items, numbers, strict=True)]

    def __getattr__(self, name: str) -> Any:
        return pass_on(self, name)

    def _masked(self, row: Any, number: int) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {number} is a {type(row).__name__}: labels are masked in rows that are dicts"
            )
        labels = self._mask.labels(row, number)
        return {**row, LABELS: _like(row.get(LABELS, row.get(INPUT_IDS)), labels)}


def _masked_columns(dataset: Any, mask: TokenMask) -> Any:
    """A datasets.Dataset with a new column of labels, in the place and of the type of the old."""
    library: Any = sys.modules["datasets"]
    has_labels = LABELS in dataset.column_names
    kind = dataset.features[LABELS] if has_labels else library.List(library.Value("int64"))
    read = [name for name in (INPUT_IDS, LABELS, *MASKS) if name in dataset.column_names]
    labels = dataset.select_columns(read).with_format("numpy")
    labels = labels.map(
        partial(_masked_batch, mask),
        with_indices=True,
        batched=True,
        remove_columns=read,
        features=library.Features({LABELS: kind}),
        desc="Masking labels",
    )
    others = dataset.remove_columns(LABELS) if has_labels else dataset
    joined = library.concatenate_datasets(
        [each.with_format(None) for each in (others, labels)], axis=1
    )
    names = dataset.column_names if has_labels else [*dataset.column_names, LABELS]
    form = dataset.format
    shown = [LABELS, *form["columns"]] if len(form["columns"]) < len(dataset.column_names) else None
    return joined.select_columns(names).with_format(
        form["type"],
        columns=shown and [name for name in names if name in shown],
        output_all_columns=form["output_all_columns"],
        **form["format_kwargs"],
    )


def _masked_batch(mask: TokenMask, batch: Any, numbers: list[int]) -> dict[str, Any]:
    names = list(batch)
    rows = zip(*(batch[name] for name in names), strict=True)
    return {
        LABELS: [
            mask.labels(dict(zip(names, row, strict=True)), number)
            for row, number in zip(rows, numbers, strict=True)
        ]
    }


def _like(given: Any, labels: NDArray[np.int64]) -> Any:
    """Labels in the container that the row had them in."""
    if isinstance(given, Tensor):
        return torch.from_numpy(labels).to(given.device, given.dtype)
    if isinstance(given, np.ndarray):
        return labels.astype(given.dtype)
    return labels.tolist()
