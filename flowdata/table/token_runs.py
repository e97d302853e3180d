"""Columns of a table as Arrow arrays, and the tokens of rows that follow each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import Source


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
