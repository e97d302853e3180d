"""Relative weights, 1 for the largest: those of any run of rows, from the losses of these rows."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import is_invalid
from flowdata.core.column import Source
from flowdata.core.exponential import exp
from flowdata.core.logarithm import log

_CHUNK = 1 << 14


class RelativeWeights(Protocol):
    """The weight of each row over the largest of all rows."""

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """Those of rows [start, stop), 0 <= start <= stop <= n."""
        ...

    def logarithms(self) -> NDArray[np.float64]:
        """Their logarithms, also where they are too small for float64; -inf for weight 0."""
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
            self._exponents(some, part)
            # Of invalid losses there may be NaN.
            with np.errstate(invalid="ignore"):
                exp(part)
            if self.has_invalid:
                part[is_invalid(some)] = 0.0
        return relative

    def logarithms(self) -> NDArray[np.float64]:
        """Their logarithms."""
        found = np.empty(len(self.losses), dtype=np.float64)
        for first in range(0, found.size, _CHUNK):
            some, part = self.losses[first : first + _CHUNK], found[first : first + _CHUNK]
            self._exponents(some, part)
            if self.has_invalid:
                part[is_invalid(some)] = -np.inf
        return found

    def _exponents(self, losses: NDArray[Any], out: NDArray[np.float64]) -> None:
        # Invalid losses come this far only to be given weight 0.
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(self.lowest, losses, out=out, dtype=np.float64)
            out /= self.tau
            out *= self.alpha

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

    def logarithms(self) -> NDArray[np.float64]:
        """Their logarithms."""
        return log(self.relative)

    def power(self, alpha: float, temperature: float | None) -> "Given":  # noqa: ARG002
        """Those of the weights w^alpha, of weights that are no exponentials of losses."""
        with np.errstate(divide="ignore"):
            logarithms = np.log(self.relative)
        kept = ~np.isneginf(logarithms)
        relative = np.zeros(self.relative.size)
        relative[kept] = exp(alpha * logarithms[kept])
        return Given(relative)


@dataclass(frozen=True)
class OfLogarithms:
    """``exp(alpha * logarithm)``: of products, and of groups with a temperature of their own.

    Attributes:
        held: of all rows; 0 for the largest weight, -inf for weight 0.
        alpha: in [0, 1].
    """

    held: NDArray[np.float64]
    alpha: float = 1.0

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """Those of rows [start, stop)."""
        relative = self._powered(self.held[start:stop])
        for first in range(0, relative.size, _CHUNK):
            exp(relative[first : first + _CHUNK])
        return relative

    def logarithms(self) -> NDArray[np.float64]:
        """Their logarithms."""
        return self._powered(self.held)

    def _powered(self, logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.alpha == 0.0:
            # 0 times minus infinity is no number, but a row of weight 0 keeps it.
            return np.where(np.isneginf(logarithms), -np.inf, 0.0)
        return logarithms * self.alpha

    def power(self, alpha: float, temperature: float | None) -> "OfLogarithms":  # noqa: ARG002
        """Those of the weights w^alpha, also of those that are too small for float64."""
        return replace(self, alpha=alpha * self.alpha)
