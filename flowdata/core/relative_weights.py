"""Relative weights, 1 for the largest: those of any run of rows, from the losses of these rows."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import is_invalid
from flowdata.core.column import Source
from flowdata.core.exponential import exp

_CHUNK = 1 << 14


class RelativeWeights(Protocol):
    """The weight of each row over the largest of all rows."""

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """Those of rows [start, stop), 0 <= start <= stop <= n."""
        ...

    def power(self, alpha: float, temperature: float | None) -> "RelativeWeights":
        """Those of the weights w^alpha, 0 <= alpha < 1, of weights at this temperature."""
        ...


@dataclass(frozen=True)
class OfLosses:
    """``exp(-alpha * (loss - lowest) / tau)``, and 0 for invalid losses.

    Attributes:
        losses: of all rows; they must not change.
        lowest: the lowest valid one.
        tau: the temperature.
        alpha: in [0, 1].
        has_invalid: whether any loss is NaN, infinite or negative.
    """

    losses: Source
    lowest: float
    tau: float
    alpha: float = 1.0
    has_invalid: bool = False

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """Those of rows [start, stop)."""
        return self.of(self.losses[start:stop])

    def of(self, losses: NDArray[Any]) -> NDArray[np.float64]:
        """Those of rows of these losses, shape (m,)."""
        relative = np.empty(losses.size, dtype=np.float64)
        for first in range(0, losses.size, _CHUNK):
            some, part = losses[first : first + _CHUNK], relative[first : first + _CHUNK]
            # Invalid losses come this far only to be given weight 0.
            with np.errstate(invalid="ignore", over="ignore"):
                np.subtract(self.lowest, some, out=part, dtype=np.float64)
                part /= self.tau
                part *= self.alpha
                exp(part)
            if self.has_invalid:
                part[is_invalid(some)] = 0.0
        return relative

    def power(self, alpha: float, temperature: float | None) -> "OfLosses":
        """Those of the weights w^alpha; at no temperature weights are equal, and stay so."""
        return self if temperature is None else replace(self, tau=temperature, alpha=alpha)


@dataclass(frozen=True)
class Given:
    """Relative weights that are held."""

    relative: NDArray[np.float64]

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """Those of rows [start, stop)."""
        return self.relative[start:stop]

    def power(self, alpha: float, temperature: float | None) -> "Given":  # noqa: ARG002
        """Those of the weights w^alpha, of weights that are no exponentials of losses."""
        with np.errstate(divide="ignore"):
            logarithms = np.log(self.relative)
        kept = ~np.isneginf(logarithms)
        relative = np.zeros(self.relative.size)
        relative[kept] = exp(alpha * logarithms[kept])
        return Given(relative)
