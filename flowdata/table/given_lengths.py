"""Lengths of rows that a user has, whatever they come as."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows
from flowdata.core.lengths import HasLengths, as_lengths
from flowdata.errors import MismatchError

_MOST = np.iinfo(np.int32).max


def lengths_of(lengths: HasLengths | ArrayLike, rows: int) -> NDArray[np.int32]:
    """Tokens of each row, int32, shape (n,): a copy, which the caller cannot change.

    Raises:
        MismatchError: for another number of lengths than rows.
        ValueError: for another shape, or what is no whole number of tokens, naming the rows.
    """
    found = as_lengths(lengths)
    if found.size != rows:
        raise MismatchError(
            f"there are {found.size:,} lengths for {rows:,} rows: give those of the rows that "
            "the losses belong to"
        )
    wrong = (found < 0) | (found > _MOST)
    if wrong.any():
        raise ValueError(count_rows(wrong, f"lengths are below 0 or above {_MOST:,}", found))
    counts = found.astype(np.int32)
    counts.flags.writeable = False
    return counts
