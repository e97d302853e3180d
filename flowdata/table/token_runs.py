"""Columns of a table as Arrow arrays, and the tokens of rows that follow each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import is_invalid
from flowdata.core.column import Source
from flowdata.core.weights import OnInvalid
from flowdata.errors import InvalidLossError

BLOCK_ROWS = 1 << 16
"""Rows whose token losses are put in order at a time."""


def offsets_of(counts: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each run begins when runs of these lengths follow each other, shape (n + 1,)."""
    offsets = np.zeros(counts.size + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def runs_of(column: Source) -> Callable[[slice], Any]:
    """What gives the Arrow array of a run of rows of a column of numbers."""
    import pyarrow as pa

    return lambda rows: pa.array(column[rows])


def to_list_array(values: NDArray[np.float32], offsets: NDArray[np.int64]) -> Any:
    """Runs of values as one Arrow array of lists."""
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values))


def reorder_runs(
    values: NDArray[np.float32], counts: NDArray[np.int32], order: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Some runs of values, in another order.

    Block by block: a position (int64) takes twice the memory of a value (float32).
    """
    begins, moved = offsets_of(counts), offsets_of(counts[order])
    found = np.empty(moved[-1], dtype=values.dtype)
    for start in range(0, order.size, BLOCK_ROWS):
        runs = order[start : start + BLOCK_ROWS]
        edges = moved[start : start + runs.size + 1]
        shifts = np.repeat(begins[runs] - edges[:-1], counts[runs])
        found[edges[0] : edges[-1]] = values[np.arange(edges[0], edges[-1]) + shifts]
    return found


def valid_token_losses(
    token_losses: NDArray[np.float32],
    losses: NDArray[np.float32],
    offsets: NDArray[np.int64],
    on_invalid: OnInvalid,
) -> NDArray[np.float32]:
    """Token losses of which those that are invalid, or of a row whose loss is, are NaN.

    Raises:
        InvalidLossError: naming the rows, if there are any and they are not to be dropped.
    """
    invalid = is_invalid(token_losses)
    rows = is_invalid(losses)
    if rows.any():
        invalid |= np.repeat(rows, np.diff(offsets))
    if not invalid.any():
        return token_losses
    if on_invalid == "raise":
        places = np.flatnonzero(invalid)
        found = np.unique(np.searchsorted(offsets, places, side="right") - 1)
        more = " and more" if found.size > 5 else ""
        raise InvalidLossError(
            f"{places.size:,} tokens in rows {found[:5].tolist()}{more} have no valid loss "
            f"(token {places[0]:,} of all: {token_losses[places[0]]}), or their row has none; "
            'fix these rows, or pass on_invalid="drop" to give their tokens weight 0'
        )
    return np.where(invalid, np.float32(np.nan), token_losses)
