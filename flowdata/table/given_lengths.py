"""Lengths of rows that a user has, whatever they come as."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, numbers_of
from flowdata.errors import MismatchError

_MOST = np.iinfo(np.int32).max


def lengths_of(lengths: ArrayLike, rows: int) -> NDArray[np.int32]:
    """Tokens of each row, int32, shape (n,): a copy, which the caller cannot change.

    Raises:
        MismatchError: for another number of lengths than rows.
        ValueError: for another shape, or what is no whole number of tokens, naming the rows.
    """
    found = numbers_of(lengths, "lengths")
    if found.ndim != 1 or found.dtype.kind == "b":
        raise ValueError(
            f"lengths must be a number of tokens for each row, of shape (n,), got {found.dtype} "
            f"of shape {found.shape}"
        )
    if found.size != rows:
        raise MismatchError(
            f"there are {found.size:,} lengths for {rows:,} rows: give those of the rows that "
            "the losses belong to"
        )
    with np.errstate(invalid="ignore"):
        wrong = ~((found >= 0) & (found <= _MOST) & (np.floor(found) == found))
    if wrong.any():
        raise ValueError(
            count_rows(wrong, f"lengths are no whole numbers of 0 to {_MOST:,} tokens", found)
        )
    counts = found.astype(np.int32)
    counts.flags.writeable = False
    return counts
