"""Weights of response tokens: of a table, or one's own, told apart by how many there are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import as_array, is_invalid
from flowdata.core.weights import FlowWeights
from flowdata.errors import InvalidLossError, MismatchError
from flowdata.map_style.checked_weights import require_length
from flowdata.reweight.learned_labels import LearnedLabels
from flowdata.table.loss_table import LossTable

NOT_SHIFTED = ("seq2seq", "token_labels")
"""Losses whose labels stand where they are predicted: the first of a row counts too."""

_ROWS_AT_A_TIME = 1_000
_RESPONSES = "response tokens"
"""Labels that are learned, without the first of a row, which nothing predicts."""
_LEARNED, _LABELS, _OTHERS = "learned labels", "labels", "labels but the first of a row"


class TokenWeights(NamedTuple):
    """A weight for each response token, row after row.

    Attributes:
        weights: of all tokens.
        offsets: where those of each row begin, shape (n + 1,).
    """

    weights: FlowWeights
    offsets: NDArray[np.int64]


def of_table(table: LossTable, dataset: Any, options: dict[str, Any]) -> TokenWeights:
    """Weights of a table with token losses; options are those of `LossTable.token_weights`.

    Raises:
        MismatchError: for a table of another length.
        ValueError: for a table without token losses.
    """
    require_length(dataset, len(table))
    return TokenWeights(table.token_weights(**options), table.token_offsets)


def of_numbers(given: Any, dataset: Any, target: Any) -> TokenWeights:
    """Weights of one's own: FlowWeights, a flat array, or a list of numbers for each row.

    They are one for each response token, for each label, or for each label but the first of a row,
    all rows alike. Those of labels that are not learned are left out.

    Args:
        given: the weights.
        dataset: its labels are read through once.
        target: where a row has its labels, see `LearnedLabels.of`.

    Raises:
        InvalidLossError: naming the row, for weights that are negative, NaN or infinite.
        MismatchError: naming the row, for another number of weights than of labels or response
            tokens, and where it cannot be told which of these they are of.
        TypeError, ValueError: for what is no weights, or rows without labels.
    """
    counts = None
    if isinstance(given, FlowWeights):
        values: NDArray[Any] = given.relative
    elif (flat := _flat(given)) is not None:
        values = flat
    else:
        require_length(dataset, len(given))
        values, counts = _column(given)
    labels = LearnedLabels.of(dataset, target)
    kind = _kind_of(labels, values.size, counts)
    responses = _chosen(labels, _RESPONSES)
    offsets = np.concatenate(([0], np.cumsum(_sizes(labels)[_RESPONSES])))
    kept = responses[_chosen(labels, kind)]
    if isinstance(given, FlowWeights):
        if kept.all():
            return TokenWeights(given, offsets)
        values = given.values
    values = values[kept]
    if (invalid := is_invalid(values)).any():
        place = int(invalid.argmax())
        row = int(np.searchsorted(offsets, place, side="right")) - 1
        raise InvalidLossError(
            f"row {row} has the weight {values[place]} for its response token "
            f"{place - offsets[row]}: a weight must be finite and >= 0"
        )
    if not values.any():
        raise InvalidLossError(
            f"the weights of all {values.size:,} response tokens are 0: nothing could be learned"
        )
    return TokenWeights(FlowWeights.from_weights(values), offsets)


def _chosen(labels: LearnedLabels, kind: str) -> NDArray[np.bool_]:
    """Which labels weights of a kind are of, shape (all labels,)."""
    with_first = kind in (_LEARNED, _LABELS)
    found = np.ones_like(labels.learned) if kind in (_LABELS, _OTHERS) else labels.learned.copy()
    if not with_first:
        found[labels.firsts] = False
    return found


def _sizes(labels: LearnedLabels) -> dict[str, NDArray[np.int64]]:
    """How many weights each row has, by what they are of."""
    has_any = labels.lengths > 0
    learned_firsts = np.zeros_like(labels.counts)
    learned_firsts[has_any] = labels.learned[labels.firsts]
    return {
        _RESPONSES: labels.counts - learned_firsts,
        _LEARNED: labels.counts,
        _LABELS: labels.lengths,
        _OTHERS: labels.lengths - has_any,
    }


def _kind_of(labels: LearnedLabels, size: int, counts: NDArray[np.int64] | None) -> str:
    """What the weights are of, by how many there are in all, or in each row."""
    sizes = _sizes(labels)
    if counts is None:
        fitting = [kind for kind, of_rows in sizes.items() if of_rows.sum() == size]
    else:
        # All rows are alike, so that a row that fits by chance does not count.
        fitting = [kind for kind, of_rows in sizes.items() if np.array_equal(of_rows, counts)]
    if not fitting:
        raise _unfitting(sizes, size, counts)
    first, *others = fitting
    for other in others:
        differ = _chosen(labels, other) != _chosen(labels, first)
        if differ.any():
            raise MismatchError(
                f"the weights of tokens may be of {first} or of {other}, of which there are as "
                f"many, but in row {labels.row_of(int(differ.argmax()))} not the same: give one "
                "for each label"
            )
    return first


def _unfitting(
    sizes: dict[str, NDArray[np.int64]], size: int, counts: NDArray[np.int64] | None
) -> MismatchError:
    if counts is None:
        totals = {name: int(of_rows.sum()) for name, of_rows in sizes.items()}
        return MismatchError(
            f"there are {size:,} weights of tokens, but the data set has {_listed(totals)}"
        )
    fits = np.logical_and.accumulate([of_rows == counts for of_rows in sizes.values()], axis=1)
    row = int(fits.any(axis=0).argmin())
    before = ""
    if row:
        last = next(name for name, fit in zip(sizes, fits[:, row - 1], strict=True) if fit)
        before = f"; in the rows before they are of its {last}"
    of_row = {name: int(of_rows[row]) for name, of_rows in sizes.items()}
    return MismatchError(
        f"row {row} has {counts[row]:,} weights of tokens, but {_listed(of_row)}{before}"
    )


def _listed(sizes: dict[str, int]) -> str:
    shown = [
        f"{size:,} {name}"
        for name, size in sizes.items()
        if name == _RESPONSES or size != sizes[_RESPONSES]
    ]
    return ", ".join(shown)


def _flat(given: Any) -> NDArray[Any] | None:
    """A flat array of numbers; None for what has numbers for each row."""
    if isinstance(given, str | Mapping) or not hasattr(given, "__len__"):
        hint = f": give the column itself, data[{given!r}]" if isinstance(given, str) else ""
        raise TypeError(
            'level="token" needs a LossTable with token losses, FlowWeights or an array of a '
            f"weight for each token, or a column of lists of them, got {given!r:.80}{hint}"
        )
    if hasattr(given, "ndim") or (len(given) and np.ndim(given[0]) == 0 and given[0] is not None):
        array = given if isinstance(given, np.ndarray) else as_array(given)
        if array.ndim == 1 and array.dtype.kind in "fiub":
            return array
    return None


def _column(given: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The numbers of all rows, and how many each has."""
    parts, counts = [np.zeros(0, dtype=np.float32)], list[int]()
    # A datasets.Column (5.2) reads row after row, but a slice of it at once.
    for start in range(0, len(given), _ROWS_AT_A_TIME):
        for numbers in _run(given, start):
            row = len(counts)
            part = None if numbers is None else as_array(numbers)
            if part is None or part.ndim != 1 or (part.size and part.dtype.kind not in "fiub"):
                found = "None" if part is None else f"{part.dtype} of shape {part.shape}"
                raise ValueError(
                    f"row {row} must have a list of weights of its tokens, got {found}"
                )
            parts.append(part)
            counts.append(part.size)
    return np.concatenate(parts), np.array(counts, dtype=np.int64)


def _run(given: Any, start: int) -> Sequence[Any]:
    run: Any = given[start : start + _ROWS_AT_A_TIME]
    # Arrow gives scalars of its own.
    found: Sequence[Any] = run.to_pylist() if hasattr(run, "to_pylist") else run
    return found
