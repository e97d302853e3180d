"""Arrays that users give: losses and weights of n rows, in whatever form they have them."""

import numbers
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.errors import InvalidLossError

SHOWN_ROWS = 5
"""Rows that an error names."""
_NUMBERS = (numbers.Real, Decimal, np.bool_)


def as_array(values: ArrayLike) -> NDArray[Any]:
    """A numpy array of anything array-like, tensors with a gradient or in bfloat16 included.

    It may be a view of the memory that was given.

    Raises:
        InvalidLossError: for rows that are masked.
        ValueError: for rows of unequal length.
    """
    given: Any = values
    if hasattr(given, "detach"):
        given = given.detach().cpu()
        # numpy has no bfloat16.
        small = given.is_floating_point() and given.dtype.itemsize < 4
        return np.asarray((given.double() if small else given).numpy())
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise InvalidLossError(
            f"{np.count_nonzero(given.mask):,} of {given.size:,} rows are masked, so they have no "
            "value: give them one, by .filled(value)"
        )
    if isinstance(given, Sequence) and not isinstance(given, list | tuple | range | str | bytes):
        given = taken_at_once(given)
        if not isinstance(given, list):
            return as_array(given)
    if isinstance(given, list | tuple) and given and hasattr(given[0], "detach"):
        given = [as_array(item) for item in given]
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ValueError(f"a number for each row is needed: {error}") from error
    # ml_dtypes, which jax uses, has a bfloat16 that numpy does not know as a float.
    foreign = array.dtype.kind == "V" and "float" in array.dtype.name
    return array.astype(np.float64) if foreign else array


def taken_at_once(values: Any) -> Any:
    """The values of a sequence that is no array."""
    # A column of a datasets.Dataset (5.2) reads row after row, but a slice of it at once.
    try:
        taken = values[:]
    except TypeError:
        return list(values)
    return list(values) if isinstance(taken, type(values)) else taken


def numbers_of(values: ArrayLike, what: str) -> NDArray[Any]:
    """An array of any shape of floats, integers or booleans; it may be a view, as `as_array`.

    Raises:
        InvalidLossError: naming the rows that are no numbers in an array of objects.
        ValueError: for what is no number at all.
    """
    array = as_array(values)
    if array.dtype.kind == "O" and array.ndim == 1:
        return _numbers_of_objects(array, what)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{what} must be numbers, got dtype {array.dtype}")
    return array


def one_dimensional(values: ArrayLike, what: str) -> NDArray[Any]:
    """n numbers as float32 or float64, a copy, which the caller cannot change.

    Raises:
        InvalidLossError: if there is none, or rows of an array of objects are no numbers.
        ValueError: for another shape, or what is no number.
    """
    array = numbers_of(values, what)
    if array.ndim != 1:
        raise ValueError(f"{what} must have shape (n,), got shape {array.shape}")
    if array.size == 0:
        raise InvalidLossError(f"{what} are empty: at least one row is needed")
    # A read-only array may be a view of memory that changes, as that of a pandas.Series.
    copied = np.array(array, dtype=np.float32 if array.dtype == np.float32 else np.float64)
    copied.flags.writeable = False
    return copied


def _numbers_of_objects(array: NDArray[Any], what: str) -> NDArray[Any]:
    """A column of Python objects, as pandas and lists with a None in them give it."""
    values = [item.item() if hasattr(item, "detach") else item for item in array.tolist()]
    wrong = np.array([not isinstance(item, _NUMBERS) for item in values], dtype=bool)
    if wrong.any():
        raise InvalidLossError(
            f"{what} must be numbers, got dtype object: "
            + count_rows(wrong, "rows are no numbers", array)
            + "; leave such rows out, of the data set too, or give them a number"
        )
    if all(isinstance(item, bool | np.bool_) for item in values):
        return np.array(values, dtype=bool)
    return np.array([float(item) for item in values])


def is_invalid(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which losses or weights are NaN, infinite or negative."""
    invalid: NDArray[np.bool_] = ~(np.isfinite(values) & (values >= 0))
    return invalid


def count_rows(mask: NDArray[np.bool_], what: str, values: NDArray[Any]) -> str:
    """How many rows a mask has, and the first of them with their values, for an error."""
    rows = np.flatnonzero(mask)
    first = {row: values[row] for row in rows[:SHOWN_ROWS].tolist()}
    return name_rows(rows.size, mask.size, what, first)


def name_rows(count: int, of: int, what: str, first: Mapping[int, Any]) -> str:
    """As `count_rows`, of rows that are counted: the first `SHOWN_ROWS` by number and value."""
    shown = ", ".join(f"row {row}: {value}" for row, value in first.items())
    more = ", ..." if count > len(first) else ""
    return f"{count:,} of {of:,} {what} ({shown}{more})"


def row_numbers(rows: Any, size: int) -> NDArray[np.int64]:
    """Numbers, a slice or a mask of ``size`` rows as numbers, int64.

    Raises:
        IndexError: for numbers of no row.
        TypeError: for what is none of these.
        ValueError: for a mask of another shape, and for no rows.
    """
    if isinstance(rows, slice):
        found = np.arange(size, dtype=np.int64)[rows]
    else:
        given = np.atleast_1d(as_array(rows))
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iub"):
            raise TypeError(
                "rows are selected by numbers, a slice, or a mask of booleans, got "
                f"{given.dtype} of shape {given.shape}"
            )
        if given.dtype.kind == "b":
            if given.size != size:
                raise ValueError(f"a mask of {given.size:,} rows cannot select of {size:,}")
            given = np.flatnonzero(given)
        # Not counted from the end: -1 is what a row is that was not found.
        if (wrong := (given < 0) | (given >= size)).any():
            raise IndexError(f"there is no row {given[wrong][0]}: there are {size:,}")
        found = given.astype(np.int64)
    if not found.size:
        raise ValueError("no row is selected: give at least one")
    return found
