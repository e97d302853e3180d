"""Batches as engines give them (dicts of columns, pandas frames, Arrow tables): rows, and back."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class EngineBatch(Protocol):
    """Some rows, column by column."""

    @property
    def names(self) -> list[str]:
        """Names of the columns."""

    @property
    def merges(self) -> bool:
        """Whether the engine keeps the columns that it is not given back."""

    def column(self, name: str) -> list[Any]:
        """The values of a column, one for each row, as a row of a data set has them."""

    def with_columns(self, kept: Sequence[str], new: Mapping[str, Any]) -> Any:
        """A batch of the same kind: some of the columns as they were, and new ones.

        These are arrays of numbers or texts, or lists of an array for each row.
        """


def open_batch(batch: Any) -> EngineBatch:
    """A batch of any kind.

    Raises:
        TypeError: for what is none.
    """
    if isinstance(batch, Mapping):
        # datasets 5.2, LazyRow: what map passes without batched=True.
        values = () if type(batch).__name__ == "LazyRow" else batch.values()
        if len(values) < len(batch) or any(isinstance(some, str | int | float) for some in values):
            raise TypeError(
                "this is one row, and a BatchScorer takes many at once: map(batched=True) of "
                "datasets gives it these, and map_batches of Ray Data"
            )
        return _Columns(batch)
    # By name: neither pandas nor pyarrow is imported where no batch is of it.
    if hasattr(batch, "iloc") and hasattr(batch, "columns"):
        return _Frame(batch)
    if hasattr(batch, "column_names") or hasattr(batch, "schema"):
        return _Arrow(batch)
    raise TypeError(
        "a batch is a dict of columns, a pandas frame or an Arrow table, as map_batches of Ray "
        "Data, map(batched=True) of datasets and mapInPandas of Spark give it; got "
        f"{type(batch).__name__}"
    )


def rows_of(batch: EngineBatch) -> list[dict[str, Any]]:
    """The rows of a batch as dicts.

    Raises:
        ValueError: for columns of several lengths.
    """
    names = batch.names
    columns = [batch.column(name) for name in names]
    if len(sizes := {len(column) for column in columns}) > 1:
        raise ValueError(
            f"the columns of a batch must be of one length, got {sorted(sizes)} "
            f"({dict(zip(names, map(len, columns), strict=True))!s:.300})"
        )
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class _Columns:
    """Lists, numpy arrays or tensors by name: datasets, and Ray Data by default."""

    def __init__(self, batch: Mapping[str, Any]) -> None:
        self._batch = batch
        self.names = list(batch)
        # datasets 5.2, LazyBatch: what map(batched=True) passes, whose other columns stay.
        self.merges = type(batch).__module__.partition(".")[0] == "datasets"

    def column(self, name: str) -> list[Any]:
        return _values(self._batch[name])

    def with_columns(self, kept: Sequence[str], new: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._batch[name] for name in kept} | _as_arrays(new)


class _Frame:
    """A pandas frame: Spark's mapInPandas, Ray Data with batch_format="pandas"."""

    merges = False

    def __init__(self, frame: Any) -> None:
        self._frame = frame
        self.names = list(frame.columns)

    def column(self, name: str) -> list[Any]:
        series = self._frame[name]
        # Of numbers a missing one is a number, NaN, whatever it was.
        return _values(series.to_numpy())

    def with_columns(self, kept: Sequence[str], new: Mapping[str, Any]) -> Any:
        return self._frame[list(kept)].assign(**_as_arrays(new))


class _Arrow:
    """An Arrow table or record batch: mapInArrow, Ray Data with batch_format="pyarrow"."""

    merges = False

    def __init__(self, table: Any) -> None:
        self._table = table
        self.names = list(table.schema.names)

    def column(self, name: str) -> list[Any]:
        values: list[Any] = self._table.column(name).to_pylist()
        return values

    def with_columns(self, kept: Sequence[str], new: Mapping[str, Any]) -> Any:
        import pyarrow as pa

        columns = {name: self._table.column(name) for name in kept}
        for name, values in new.items():
            if isinstance(values, list):
                columns[name] = pa.array(values, pa.list_(pa.float32()))
            else:
                columns[name] = pa.array(values, pa.string() if values.dtype == object else None)
        return type(self._table).from_arrays(list(columns.values()), names=list(columns))


def _values(column: Any) -> list[Any]:
    """A column as a list; of numpy's objects and texts what Python has in their place."""
    if isinstance(column, np.ndarray):
        if column.dtype.kind in "UT":
            texts: list[Any] = column.tolist()
            return texts
        if column.dtype == object:
            # A missing text or list comes as NaN as often as not.
            return [None if _is_missing(value) else _plain(value) for value in column]
    return list(column)


def _plain(value: Any) -> Any:
    """Chats and other nested values without numpy: arrays of numbers stay as they are."""
    if isinstance(value, np.ndarray):
        return [_plain(part) for part in value] if value.dtype == object else value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _is_missing(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return (
        value is None
        or (isinstance(value, float) and value != value)
        or (pandas is not None and (value is pandas.NA or value is pandas.NaT))
    )


def _as_arrays(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: as_objects(values) if isinstance(values, list) else values
        for name, values in columns.items()
    }


def as_objects(values: Sequence[Any]) -> NDArray[Any]:
    """A column of objects, where numpy would make a matrix of arrays of one length."""
    found = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        found[place] = value
    return found
