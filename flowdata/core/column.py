"""Columns of numbers that need not be held: read in runs, and added up as arrays are."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 16
"""Rows that are looked at together; a multiple of the rows that numpy casts together."""


class Column(Protocol):
    """Numbers of n rows that do not change, on a disk for one; a slice of it is an array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its numbers."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


Source: TypeAlias = NDArray[Any] | Column
"""Losses or weights, in memory or not."""


def pieces(column: Source) -> Iterator[tuple[int, NDArray[Any]]]:
    """The column in runs of `PIECE` rows, each after the number of its first row."""
    for start in range(0, len(column), PIECE):
        yield start, column[start : start + PIECE]


def sum_pairwise(
    terms: Callable[[int, int], NDArray[np.float64]], start: int, stop: int
) -> NDArray[np.float64]:
    """Sums over rows [start, stop) with the bits of ``np.sum`` over an array of them all.

    Args:
        terms: the sums of the rows [a, b), each as ``np.sum`` makes it, shape (k,). It is asked
            for all rows, in their order.
        start, stop: the rows.
    """
    if stop - start <= PIECE:
        return terms(start, stop)
    # numpy 1.26 to 2.4, pairwise_sum: float64 side by side in memory is added up along this tree.
    half = (stop - start) // 2
    half -= half % 8
    return sum_pairwise(terms, start, start + half) + sum_pairwise(terms, start + half, stop)
