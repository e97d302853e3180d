"""Weights as any function of the losses."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, is_invalid, numbers_of
from flowdata.errors import InvalidLossError

WeightFunction: TypeAlias = Callable[[NDArray[np.float64], float], ArrayLike]
"""(valid losses, float64, shape (m,); the temperature) -> m weights >= 0, or booleans."""


def weights_by(
    function: WeightFunction, losses: NDArray[Any], valid: NDArray[np.bool_], tau: float
) -> NDArray[np.float64]:
    """The weights that a function gives to valid losses, and 0 for the others: shape (n,).

    Raises:
        InvalidLossError: for weights that are negative, NaN or infinite, naming their rows.
        TypeError: for what cannot be called with losses and a temperature.
        ValueError: for another number of weights than of losses.
    """
    _require_callable(function)
    # It may write to what it gets.
    given = losses[valid].astype(np.float64)
    found = numbers_of(function(given, tau), "the weights that function gives")
    if found.shape != (given.size,):
        raise ValueError(
            f"function must give a weight for each of the {given.size:,} losses that it gets, of "
            f"shape ({given.size},), got shape {found.shape}"
        )
    weights = np.zeros(losses.size)
    weights[valid] = found
    if (invalid := is_invalid(weights)).any():
        raise InvalidLossError(
            "function gives "
            + count_rows(invalid, "rows a weight that is NaN, infinite or negative", weights)
            + f", at the temperature {tau:.6g}; a weight must be finite and >= 0"
        )
    return weights


def _require_callable(function: WeightFunction) -> None:
    if not callable(function):
        raise TypeError(f"function must be called with losses and a temperature, got {function!r}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Functions written in C may have none.
        return
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise TypeError(
            "function is called with two arguments, the losses and the temperature: "
            f"lambda losses, tau: ...; this one cannot be, {error}"
        ) from error
