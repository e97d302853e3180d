"""Arrays that users give: losses and weights of n rows, in whatever form they have them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.errors import InvalidLossError

_SHOWN_ROWS = 5


def as_array(values: ArrayLike) -> NDArray[Any]:
    """A numpy array of anything array-like, tensors with a gradient or in bfloat16 included."""
    tensor: Any = values
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        # numpy has no bfloat16.
        small = tensor.is_floating_point() and tensor.dtype.itemsize < 4
        tensor = (tensor.double() if small else tensor).numpy()
    return np.asarray(tensor)


def one_dimensional(values: ArrayLike, what: str) -> NDArray[Any]:
    """n numbers as float32 or float64, which the caller can no longer change.

    Raises:
        InvalidLossError: if there is none.
        ValueError: for another shape, or what is no number.
    """
    array = as_array(values)
    if array.ndim != 1:
        raise ValueError(f"{what} must have shape (n,), got shape {array.shape}")
    if array.size == 0:
        raise InvalidLossError(f"{what} are empty: at least one row is needed")
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{what} must be numbers, got dtype {array.dtype}")
    if array.dtype not in (np.float32, np.float64):
        return array.astype(np.float64)
    return array.copy() if array.flags.writeable else array


def is_invalid(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which losses or weights are NaN, infinite or negative."""
    invalid: NDArray[np.bool_] = ~(np.isfinite(values) & (values >= 0))
    return invalid


def count_rows(mask: NDArray[np.bool_], what: str, values: NDArray[Any]) -> str:
    """How many rows a mask has, and the first of them with their values, for an error."""
    rows = np.flatnonzero(mask)
    shown = ", ".join(f"row {row}: {values[row]}" for row in rows[:_SHOWN_ROWS])
    more = ", ..." if rows.size > _SHOWN_ROWS else ""
    return f"{rows.size:,} of {mask.size:,} {what} ({shown}{more})"
