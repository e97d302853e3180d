"""Some rows of a loss table, as a table."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import row_numbers
from flowdata.core.column import Source
from flowdata.table.origins import selected_provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.shard_index import ShardIndex
from flowdata.table.table_columns import TableColumns
from flowdata.table.token_runs import reorder_runs


def select_rows(columns: TableColumns, rows: Any) -> TableColumns:
    """The columns of some rows, see `LossTable.select`."""
    found = row_numbers(rows, len(columns.losses))
    n_tokens = _taken(columns.n_tokens, found)
    tokens = columns.token_losses
    if tokens is not None and columns.n_tokens is not None:
        tokens = reorder_runs(tokens, columns.n_tokens[:], found)
    rising = bool((np.diff(found) > 0).all())
    losses = _taken(columns.losses, found)
    assert losses is not None
    return replace(
        columns,
        provenance=selected_provenance(columns.provenance, found, rising=rising),
        losses=losses,
        n_tokens=n_tokens,
        lengths=_taken(columns.lengths, found),
        token_losses=tokens,
        # Samples of a shard lie in it in the order of its rows.
        index=_of_index(columns.index, found) if columns.index is not None and rising else None,
        keys=_of_keys(columns.keys, found, distinct=rising),
    )


def _taken(column: Source | None, rows: NDArray[np.int64]) -> NDArray[Any] | None:
    """The numbers of some rows; of a run of them no others are read from a file."""
    if column is None:
        return None
    if (run := _as_run(rows)) is not None:
        return np.array(column[run])
    taken: NDArray[Any] = column[:][rows]
    return taken


def _as_run(rows: NDArray[np.int64]) -> slice | None:
    """Rows that follow each other as a slice."""
    first = int(rows[0])
    follow = int(rows[-1]) - first + 1 == rows.size and bool((np.diff(rows) == 1).all())
    return slice(first, first + rows.size) if follow else None


def _of_keys(keys: RowKeys | None, rows: NDArray[np.int64], *, distinct: bool) -> RowKeys | None:
    if keys is None:
        return None
    run = _as_run(rows)
    found = keys.take(rows) if run is None else RowKeys(keys.run(run))
    if not distinct:
        found.prepare()
    return found


def _of_index(index: ShardIndex, rows: NDArray[np.int64]) -> ShardIndex:
    """The places of some samples, in the order of the shards, of which some may have none."""
    import pyarrow as pa

    counts = np.diff(np.searchsorted(rows, index.bounds()))
    return ShardIndex(
        index.shards,
        None,
        index.keys.take(pa.array(rows)),
        index.offsets[rows],
        index.sizes[rows],
        index.lengths,
        index.compressed,
        index.versions,
        rows=counts,
    )
