"""attach: rows with their weights in a column."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.normalization import require_numbers
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.rows.lookup import KeyedWeights, Lookup, OnMismatch, Table
from flowdata.rows.plain import require_new
from flowdata.rows.resampling import require_one_data_set, stream_of
from flowdata.rows.tasks import Weighing
from flowdata.table.data_columns import column_of


def attach(
    rows: Any,
    table: Table,
    weights: FlowWeights | HasWeights | ArrayLike | None = None,
    *,
    key: str | None = None,
    column: str = "weight",
    on_missing: OnMismatch = "raise",
    on_repeated: OnMismatch = "raise",
) -> Any:
    """The same rows, each with its weight in a column, found by its key.

    Streams stay streams (see `resample_rows`), a ``datasets.Dataset`` stays one, and of any other
    map-style data set of dicts, or a list of them, comes a map-style data set.

    Args:
        rows: a stream of dicts, or map-style data.
        table: a loss table whose rows have keys, or its path.
        weights: default those of the table; `FlowWeights.values` are attached, as floats.
        key: the column of the rows that has the keys; default the one that the table was scored
            with.
        column: the name of the new column.
        on_missing, on_repeated: see `resample_rows`.

    Raises:
        MismatchError: for weights of another length, a table without keys, and, naming them, for
            keys that the table does not have, or that are there twice: of a stream in the pass.
        RuntimeError: for a release of datasets whose streams are not known.
        TypeError, ValueError: for rows without such a key, or that have the new column already.

    >>> from flowdata import LossTable
    >>> table = LossTable.from_losses([1.0, 2.0, 0.0], keys=["a", "b", "c"])
    >>> weighted = attach([{"id": "c"}, {"id": "b"}], table, key="id")
    >>> [round(row["weight"], 3) for row in weighted]
    [1.0, 0.135]
    """
    require_one_data_set(rows)
    known = KeyedWeights(table, weights, key, on_missing, on_repeated)
    require_numbers(known.weights.max, known.weights.log_max)
    by_number = hasattr(rows, "__getitem__") and hasattr(rows, "__len__")
    if isinstance(rows, IterableDataset) or not by_number:
        return stream_of(rows, Weighing(known, column))
    lookup = Lookup(known)
    found = lookup.find(column_of(rows, known.key))
    lookup.close()
    values = known.weights.values[found.rows]
    if callable(getattr(rows, "add_column", None)):
        require_new(column, rows.column_names)
        if found.places.size < len(rows):
            rows = rows.select(found.places)
        return rows.add_column(column, values)
    return WeightedRows(rows, found.places, values, column)


class WeightedRows(Dataset[dict[str, Any]], Sequence[dict[str, Any]]):
    """Rows of a map-style data set of dicts, each with its weight in a column."""

    def __init__(
        self, rows: Any, places: NDArray[np.int64], weights: NDArray[np.float64], column: str
    ) -> None:
        self._rows, self._places, self._weights, self._column = rows, places, weights, column

    def __len__(self) -> int:
        return self._places.size

    def __getitem__(self, number: Any) -> Any:
        """One row by its number, or a list of them for a slice."""
        if isinstance(number, slice):
            return [self[one] for one in range(len(self))[number]]
        number = range(len(self))[number]
        row = dict(self._rows[int(self._places[number])])
        require_new(self._column, row)
        row[self._column] = float(self._weights[number])
        return row
