"""The data of a table, row by row as the table has them."""

from typing import Any

import numpy as np

from flowdata.core.states import shown
from flowdata.errors import MismatchError
from flowdata.table.data_columns import keys_of
from flowdata.table.given_keys import as_plain
from flowdata.table.loss_table import LossTable


def rows_of_table(losses: LossTable, dataset: Any) -> Any:
    """The rows of a ``datasets.Dataset`` that a table is of, in its order.

    Rows of a table that was scored by a column of keys are found by these: the table may be of a
    stream in another order, of a selection, or of one job's share.

    Raises:
        MismatchError: when the table belongs to other data.
        TypeError, ValueError: for a column of keys that has none, or no longer has its type.
    """
    column = losses.provenance.key
    if losses.keys is None or column is None or column not in dataset.column_names:
        losses.check(dataset=dataset)
        return dataset
    keys = keys_of(dataset, column)
    if losses.keys.same_as(keys):
        if losses.provenance.data_fingerprint is not None:
            losses.check(dataset=dataset)
        return dataset
    rows = keys.find(losses.keys.run(slice(0, len(losses))))
    if (missing := np.flatnonzero(rows < 0)).size:
        first = as_plain(losses.keys.run(slice(int(missing[0]), int(missing[0]) + 1)))[0]
        raise MismatchError(
            f"{missing.size:,} of {rows.size:,} rows of the table have a key that no row of the "
            f"data has in its column {column!r}, such as {shown(first)}: give the data that was "
            "scored"
        )
    return dataset.select(rows)
