"""Columns and runs of rows of a map-style data set, whatever it is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.table.row_keys import RowKeys


def keys_of(dataset: Any, column: str) -> RowKeys:
    """The keys of the rows in a column of a map-style data set.

    Raises:
        MismatchError: naming them, for keys that are there more than once.
        TypeError: naming the row, for a value that is no key.
        ValueError: for a column that there is not.
    """
    return RowKeys.given(column_of(dataset, column), rows=len(dataset))


def column_of(dataset: Any, name: str) -> Any:
    """The values of a column, an Arrow array or a list: read at once, or row after row.

    Raises:
        ValueError: naming the columns that there are, for one that there is not.
    """
    # A datasets.Dataset, whatever format and transform it has.
    if callable(getattr(dataset, "select_columns", None)):
        if name not in dataset.column_names:
            raise ValueError(_no_column(name, dataset.column_names))
        # Its rows as Arrow has them: 10 million texts take many times that as Python's.
        return dataset.select_columns([name]).with_format("arrow")[:].column(name)
    return [_value(dataset[row], name, row) for row in range(len(dataset))]


def run_of(dataset: Any, start: int, stop: int) -> Any:
    """The rows [start, stop) as a data set, which is recognised as one of these rows alone is."""
    # torch 2.13, ConcatDataset: one of its own has the format that it had alone.
    ends = getattr(dataset, "cumulative_sizes", None)
    if ends is not None and stop in ends:
        own = dataset.datasets[ends.index(stop)]
        if len(own) == stop - start:
            return own
    return RowsOf(dataset, range(start, stop))


class RowsOf(Sequence[Any]):
    """Some rows of a data set, which are recognised as a data set of these alone is.

    Args:
        dataset: the data set.
        rows: their numbers.
    """

    def __init__(self, dataset: Any, rows: range | NDArray[np.int64]) -> None:
        self._dataset = dataset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._dataset[int(self._rows[place])]

    def with_format(self, kind: str | None) -> "RowsOf":
        """The same rows in another format, where the data set has such."""
        other = getattr(self._dataset, "with_format", None)
        return RowsOf(other(kind), self._rows) if callable(other) else self

    @property
    def format(self) -> Any:
        """The format of a ``datasets.Dataset``, None of any other."""
        return getattr(self._dataset, "format", None)

    @property
    def whole(self) -> Any:
        """The data set that they are rows of."""
        return self._dataset

    @property
    def are_all_there(self) -> bool:
        """Whether none of them has the number -1, of a row that is gone."""
        return isinstance(self._rows, range) or bool((self._rows >= 0).all())

    def alone(self) -> Any:
        """These rows of a ``datasets.Dataset`` or a list as one of their own."""
        if callable(select := getattr(self._dataset, "select", None)):
            # datasets 5.2: numbers that are no run would go to a file in its cache.
            return select(self._rows, keep_in_memory=True)
        return [self._dataset[row] for row in self._rows]


def _value(sample: Any, name: str, row: int) -> Any:
    if not isinstance(sample, Mapping) or name not in sample:
        has = list(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise ValueError(f"row {row:,}: {_no_column(name, has)}")
    value = sample[name]
    # Numbers that a transform has made tensors of.
    return value.item() if getattr(value, "shape", None) == () else value


def _no_column(name: str, has: Any) -> str:
    return f"there is no column {name!r}, there is {has!s:.300}"
