"""The temperature tau of the weights, as a statistic of the losses or a number."""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.core.loss_statistics import HeldLosses, LossStatistics
from flowdata.errors import InvalidLossError

Temperature: TypeAlias = float | str


def resolve_temperature(
    losses: NDArray[Any] | LossStatistics, temperature: Temperature, *, may_be_zero: bool = False
) -> float:
    """tau as a positive number, from valid losses of shape (n,) and what the user asked for.

    ``may_be_zero``: whether a statistic of 0 is taken as it is.

    Raises:
        InvalidLossError: when the statistic is 0, as with a median of mostly zero losses.
        ValueError: when a number is not positive and finite, or the name is unknown.
    """
    if isinstance(temperature, str):
        known = HeldLosses(losses) if isinstance(losses, np.ndarray) else losses
        tau = _statistic(known, temperature)
        if tau == 0.0 and not may_be_zero:
            zeros = known.zeros() / known.size
            other = "" if zeros == 1.0 else 'temperature="mean" or '
            raise InvalidLossError(
                f"temperature={temperature!r} is 0 because {zeros:.0%} of the losses are 0, and "
                f"exp(-loss / 0) is undefined; pass {other}a positive number"
            )
        if not math.isfinite(tau):
            raise InvalidLossError(
                f"temperature={temperature!r} is {tau}: the losses are too large to be averaged; "
                "pass a number"
            )
        return tau
    try:
        tau = math.nan if isinstance(temperature, bool | np.bool_) else float(temperature)
    except (TypeError, ValueError, RuntimeError):
        tau = math.nan
    if not (math.isfinite(tau) and tau > 0.0):
        other = "; a function of the losses is function=" if callable(temperature) else ""
        raise ValueError(
            f"temperature must be a positive, finite number, got {temperature!r}{other}"
        )
    return tau


def _statistic(losses: LossStatistics, name: str) -> float:
    if name == "median":
        return _quantile(losses, 0.5)
    if name == "mean":
        return losses.mean()
    kind, _, argument = name.partition(":")
    try:
        q = float(argument)
    except ValueError:
        q = math.nan
    if kind == "quantile" and 0.0 < q < 1.0:
        return _quantile(losses, q)
    raise ValueError(
        'temperature must be "median", "mean", "quantile:q" with 0 < q < 1, or a positive number, '
        f"got {name!r}"
    )


def _quantile(losses: LossStatistics, q: float) -> float:
    """Linear between neighbours, in float64, for any number of losses in their own dtype."""
    place = q * (losses.size - 1)
    below = math.floor(place)
    above = min(below + 1, losses.size - 1)
    low, high = losses.ordered([below, above])
    return low + (place - below) * (high - low)
