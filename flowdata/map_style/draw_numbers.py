"""What is taken as the number of a draw, or as several of them."""

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOT_BY_COLUMN = (
    "items are {1}s, by number; a column of the data set in this one is .dataset[{0!r}], in the "
    "order of its rows"
)


def draw_numbers(index: Any, draws: int, item: str = "draw") -> int | NDArray[np.int64]:
    """One draw, or an int64 array of those that a list, slice, array or tensor names, in [0, M).

    Args:
        index: negative numbers count from the end.
        draws: M.
        item: what errors call one.

    Raises:
        IndexError: for a draw outside the epoch.
        TypeError: for what is no number, such as a mask or the name of a column.
    """
    if isinstance(index, slice):
        return np.arange(*index.indices(draws))
    if isinstance(index, (str, bytes)):
        raise TypeError(_NOT_BY_COLUMN.format(index, item))
    if isinstance(index, (list, tuple, range)) or getattr(index, "ndim", 0) > 0:
        return many_draws(index, draws, item)
    if isinstance(index, bool) or "bool" in str(getattr(index, "dtype", "")):
        raise TypeError(f"a {item} is a number, got {index!r}: a mask cannot choose {item}s")
    try:
        draw = operator.index(index)
    except TypeError:
        raise TypeError(
            f"a {item} is a number, and {item}s are a slice, list or array of numbers, got "
            f"{index!r}"
        ) from None
    if not -draws <= draw < draws:
        raise IndexError(f"{item} {draw} is outside an epoch of {draws:,} {item}s")
    return draw % draws


def many_draws(index: Any, draws: int, item: str = "draw") -> NDArray[np.int64]:
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
            raise IndexError(f"a {item} of {index} is outside an epoch of {draws:,} {item}s")
        raise TypeError(
            f"{item}s are a list or array of whole numbers, got {type(index).__name__} "
            f"({places.dtype} of shape {places.shape})"
            + (f": a mask cannot choose {item}s" if places.dtype.kind == "b" else "")
        )
    lowest, highest = int(places.min()), int(places.max())
    if not -draws <= lowest <= highest < draws:
        wrong = lowest if lowest < -draws else highest
        raise IndexError(f"{item} {wrong} is outside an epoch of {draws:,} {item}s")
    places = places.astype(np.int64)
    if lowest < 0:
        places[places < 0] += draws
    return places
