"""Losses in sorted order: most likely not in the order of the data set that they belong to."""

import numpy as np

from flowdata.core.column import Source, pieces
from flowdata.errors import warn

_FEWEST_STEPS = 50
"""As many losses that differ from the one before come in order by chance once in 10^64 times."""
_MOST_BACK = 0.01
"""Share of steps the other way that sorted losses may have: a few are sorted in parts."""


def warn_if_sorted(losses: Source) -> None:
    """Warn where losses of shape (n,) rise, or fall, all the way: they were sorted by somebody.

    Rows without a number, which sorting puts at the end, are left out. Few losses, or losses of
    few values, give no warning.
    """
    up, down, last = 0, 0, np.empty(0)
    for _, some in pieces(losses):
        known = np.concatenate([last, some[~np.isnan(some)]])
        up += int(np.count_nonzero(known[1:] > known[:-1]))
        down += int(np.count_nonzero(known[1:] < known[:-1]))
        last = known[-1:]
    if up + down < _FEWEST_STEPS or min(up, down) > _MOST_BACK * (up + down):
        return
    direction = "ascending" if up > down else "descending"
    warn(
        f"the losses are in {direction} order, so row by row they can hardly be those of a data "
        "set: give them in its order, unsorted. If the data set itself is sorted by loss, silence "
        "this: warnings.filterwarnings('ignore', message='the losses are in')"
    )
