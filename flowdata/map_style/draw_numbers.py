"""What is taken as the number of a draw, or as several of them."""

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOT_BY_COLUMN = (
    "the items of a FlowDataset are draws, by number; a column of the data set in it is "
    "flow_dataset.dataset[{0!r}], in the order of its rows"
)


def draw_numbers(index: Any, draws: int) -> int | NDArray[np.int64]:
    """One draw, or an int64 array of those that a list, slice, array or tensor names, in [0, M).

    Args:
        index: negative numbers count from the end.
        draws: M.

    Raises:
        IndexError: for a draw outside the epoch.
        TypeError: for what is no number, such as a mask or the name of a column.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(draws))
    if isinstance(index, (str, bytes)):
        raise TypeError(_NOT_BY_COLUMN.format(index))
    if isinstance(index, (list, tuple, range)) or getattr(index, "ndim", 0) > 0:
        return many_draws(index, draws)
    if isinstance(index, bool) or "bool" in str(getattr(index, "dtype", "")):
        raise TypeError(f"a draw is a number, got {index!r}: a mask cannot choose draws")
    try:
        draw = operator.index(index)
    except TypeError:
        raise TypeError(
            f"a draw is a number, and draws are a slice, list or array of numbers, got {index!r}"
        ) from None
    if not -draws <= draw < draws:
        raise IndexError(f"draw {draw} is outside an epoch of {draws:,} draws")
    return draw % draws


def many_draws(index: Any, draws: int) -> NDArray[np.int64]:
    """The draws that a list or array names; see `draw_numbers`."""
    try:
        places = np.asarray(index)
    except ValueError:
        # Lists of different lengths.
        places = np.empty((len(index), 0))
    if places.ndim == 1 and places.size == 0:
        return np.zeros(0, dtype=np.int64)
    if places.ndim != 1 or places.dtype.kind not in "iu":
        too_large = places.dtype.kind == "O" and all(isinstance(draw, int) for draw in index)
        if places.ndim == 1 and too_large:
            raise IndexError(f"a draw of {index} is outside an epoch of {draws:,} draws")
        raise TypeError(
            f"draws are a list or array of whole numbers, got {type(index).__name__} "
            f"({places.dtype} of shape {places.shape})"
            + (": a mask cannot choose draws" if places.dtype.kind == "b" else "")
        )
    lowest, highest = int(places.min()), int(places.max())
    if not -draws <= lowest <= highest < draws:
        wrong = lowest if lowest < -draws else highest
        raise IndexError(f"draw {wrong} is outside an epoch of {draws:,} draws")
    places = places.astype(np.int64)
    if lowest < 0:
        places[places < 0] += draws
    return places
