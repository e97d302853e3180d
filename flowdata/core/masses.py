"""Masses: weights as integers, so that an epoch's draws add up exactly."""

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import CHUNK
from flowdata.core.weights import FlowWeights

# One draw is worth 2^bits units of mass. At 2^44 and less, the mass of a row whose expected
# count is a whole number comes out exact in spite of the rounding of float64.
_DRAW_BITS = 44
_TOTAL_BITS = 62
MOST_DRAWS = (1 << (_TOTAL_BITS - 12)) - 1
"""Draws of the longest epoch: 2^12 units of mass are left for each."""


def draw_bits(draws: int) -> int:
    """b, where a draw of an epoch of so many is worth 2^b units of mass."""
    return min(_DRAW_BITS, _TOTAL_BITS - draws.bit_length())


class Masses:
    """Weights as integers that sum to exactly ``total``, made block by block when asked for.

    Rounding leaves a remainder of some units. It goes to the one row whose mass is furthest
    from a whole number of draws (2^bits units), so that it cannot change a floor or a ceil.

    Args:
        weights: of n rows.
        total: of all masses.
        bits: 2^bits is the mass of one draw.
        bounds: row numbers, ascending: the mass before each of them is kept in ``edges``.
    """

    def __init__(
        self,
        weights: FlowWeights,
        total: int,
        bits: int,
        bounds: NDArray[np.int64] | None = None,
    ) -> None:
        self._weights = weights
        self._scale = total / weights.total
        self._row, self._remainder = 0, 0
        bounds = np.zeros(0, dtype=np.int64) if bounds is None else bounds
        self.edges = np.zeros(bounds.size, dtype=np.int64)
        # The bits of a mass that are less than a whole draw.
        fraction = (1 << bits) - 1
        placed, widest = 0, -1
        for start in range(0, len(weights), CHUNK):
            masses = self._rounded(start, min(start + CHUNK, len(weights)))
            slack = np.minimum(masses & fraction, -masses & fraction)
            best = int(slack.argmax())
            if slack[best] > widest:
                widest, self._row = int(slack[best]), start + best
            first, last = np.searchsorted(bounds, (start, start + masses.size), side="right")
            sums = np.cumsum(masses, out=masses)
            self.edges[first:last] = placed + sums[bounds[first:last] - start - 1]
            placed += int(sums[-1])
        self._remainder = total - placed
        self.edges[bounds > self._row] += self._remainder

    def of(self, start: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Masses of ``rows``, counted from ``start``, all within one block."""
        return self.between(start, min(start + CHUNK, len(self._weights))).take(rows)

    def between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Masses of rows [start, stop)."""
        masses = self._rounded(start, stop)
        if start <= self._row < stop:
            masses[self._row - start] += self._remainder
        return masses

    def all(self, n: int) -> NDArray[np.int64]:
        """Masses of all n rows."""
        masses = np.empty(n, dtype=np.int64)
        for start in range(0, n, CHUNK):
            stop = min(start + CHUNK, n)
            masses[start:stop] = self.between(start, stop)
        return masses

    def _rounded(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.rint(self._weights.part(start, stop) * self._scale).astype(np.int64)


def count_draws(masses: NDArray[np.int64], carry: int, bits: int) -> tuple[NDArray[np.int64], int]:
    """Draws of rows that are laid end to end after a carry, and what is carried on to the next.

    Args:
        masses: of the rows, int64; overwritten by the draws, which are returned.
        carry: mass before the first row, below 2^bits.
        bits: 2^bits is the mass of one draw.
    """
    masses[0] += carry
    np.cumsum(masses, out=masses)
    # Points lie 2^bits apart: a row is drawn once for each that its mass passes.
    left = int(masses[-1]) & (1 << bits) - 1
    masses >>= bits
    masses[1:] -= masses[:-1].copy()
    return masses, left
