"""Columns of a map-style data set: of one that has columns read at once, else row after row."""

from collections.abc import Mapping
from typing import Any

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
    """The values of a column, an Arrow array or a list.

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


def _value(sample: Any, name: str, row: int) -> Any:
    if not isinstance(sample, Mapping) or name not in sample:
        has = list(sample) if isinstance(sample, Mapping) else type(sample).__name__
        raise ValueError(f"row {row:,}: {_no_column(name, has)}")
    value = sample[name]
    # Numbers that a transform has made tensors of.
    return value.item() if getattr(value, "shape", None) == () else value


def _no_column(name: str, has: Any) -> str:
    return f"there is no column {name!r}, there is {has!s:.300}"
