"""Which labels of the rows of a data set are learned: what weights and losses of tokens are of."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import as_array
from flowdata.map_style.inner import fetch_rows
from flowdata.map_style.packed_rows import INPUT_IDS, LABELS, MASKS, read_labels
from flowdata.map_style.weighted_item import WeightedItem

_ROWS_AT_A_TIME = 1_000


@dataclass(frozen=True)
class LearnedLabels:
    """The labels of n rows, one row after the other.

    Attributes:
        learned: whether the label is learned, shape (all labels,).
        offsets: where the labels of each row begin, shape (n + 1,).
        counts: how many of each row are learned, shape (n,).
    """

    learned: NDArray[np.bool_]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Any, target: Any = None) -> "LearnedLabels":
        """Those of a map-style data set, which is read through once.

        Args:
            dataset: rows that are dicts, or tuples with the labels at their end.
            target: the key or position of the labels.

        Raises:
            TypeError, ValueError: naming the row, for one without labels.
        """
        parts, bounds, counts = [np.zeros(0, dtype=np.bool_)], [0], []
        for number, row in enumerate(_rows_of(dataset, target)):
            learned = labels_of(row, number, target) >= 0
            parts.append(learned)
            bounds.append(bounds[-1] + learned.size)
            counts.append(np.count_nonzero(learned))
        return cls(np.concatenate(parts), np.array(bounds), np.array(counts, dtype=np.int64))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Labels of each row, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def firsts(self) -> NDArray[np.int64]:
        """The place of the first label of each row that has any: no token predicts it."""
        return self.offsets[:-1][self.lengths > 0]

    def row_of(self, label: int) -> int:
        """The row of a label, by its place among all."""
        return int(np.searchsorted(self.offsets, label, side="right")) - 1


def labels_of(row: Any, name: Any, target: Any = None) -> NDArray[np.int64]:
    """The labels of a row, int64, shape (length,): negative where one is not learned.

    Args:
        row: a dict or a tuple.
        name: of the row, for errors.
        target: the key or position of the labels, if it is not "labels", or the last.

    Raises:
        TypeError, ValueError: where it has none.
    """
    found: Any = None
    if isinstance(row, Mapping):
        key = target if isinstance(target, str) else LABELS
        found = row.get(key)
        if key == LABELS and row.get(INPUT_IDS) is not None:
            return read_labels(row, name)
    elif isinstance(row, tuple | list) and row:
        found = row[target if isinstance(target, int) else -1]
    if found is None or isinstance(row, WeightedItem):
        keys = f" with keys {list(row)}" if isinstance(row, Mapping) else ""
        raise TypeError(
            f"row {name} is a {type(row).__name__}{keys}, and has no labels, whose tokens are "
            "told apart by them: give rows with labels, or with input_ids, which are learned then"
        )
    labels = as_array(found)
    if labels.ndim != 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise ValueError(
            f"the labels of row {name} must be whole numbers of shape (length,), got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return labels.astype(np.int64)


def are_columns(dataset: Any) -> bool:
    """Whether this is a ``datasets.Dataset`` whose rows are what its columns hold."""
    library: Any = sys.modules.get("datasets")
    return (
        library is not None
        and isinstance(dataset, library.Dataset)
        and dataset.format["type"] != "custom"
    )


def _rows_of(dataset: Any, target: Any) -> Iterator[Any]:
    rows = len(dataset)
    if are_columns(dataset):
        key = target if isinstance(target, str) else LABELS
        named = [key] if key in dataset.column_names else [INPUT_IDS, *MASKS]
        kept = [name for name in named if name in dataset.column_names]
        if kept:
            dataset = dataset.select_columns(kept).with_format("numpy")
    for start in range(0, rows, _ROWS_AT_A_TIME):
        yield from fetch_rows(dataset, list(range(start, min(start + _ROWS_AT_A_TIME, rows))))
