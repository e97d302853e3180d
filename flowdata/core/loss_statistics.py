"""Statistics of valid losses: the same numbers from an array and from a column on a disk."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import SHOWN_ROWS, count_rows, is_invalid, name_rows
from flowdata.core.column import PIECE, Column, pieces

_INVALID = "losses that are NaN, infinite or negative"
# The bits of a float32 >= 0, of which the first is 0, rise as the number does.
_LOW_BITS = 15
_HIGH = 1 << 16
_LOW = (1 << _LOW_BITS) - 1
_NO_SIGN = np.uint32(0x7FFFFFFF)


class LossStatistics(Protocol):
    """What is asked of losses to make weights of them."""

    @property
    def size(self) -> int:
        """How many are valid."""
        ...

    @property
    def invalid(self) -> int:
        """How many are NaN, infinite or negative."""
        ...

    @property
    def lowest(self) -> float:
        """The lowest valid one."""
        ...

    def describe_invalid(self) -> str:
        """How many are invalid, and the first of them."""
        ...

    def ordered(self, places: Sequence[int]) -> list[float]:
        """The valid losses at these places in ascending order."""
        ...

    def mean(self) -> float:
        """The mean of the valid ones, in float64."""
        ...

    def zeros(self) -> int:
        """How many are 0."""
        ...


class HeldLosses:
    """Statistics of an array, shape (n,)."""

    def __init__(self, losses: NDArray[Any]) -> None:
        self._losses = losses
        self._invalid = is_invalid(losses)
        self.invalid = int(np.count_nonzero(self._invalid))
        self._valid = losses[~self._invalid] if self.invalid else losses
        self.size: int = self._valid.size

    @property
    def lowest(self) -> float:
        """The lowest valid one."""
        return float(self._valid.min())

    def describe_invalid(self) -> str:
        """How many are invalid, and the first of them."""
        return count_rows(self._invalid, _INVALID, self._losses)

    def ordered(self, places: Sequence[int]) -> list[float]:
        """The valid losses at these places in ascending order."""
        # Linear in the number of losses, where a sort is not.
        return [float(loss) for loss in np.partition(self._valid, places)[places]]

    def mean(self) -> float:
        """The mean of the valid ones, in float64."""
        return float(self._valid.mean(dtype=np.float64))

    def zeros(self) -> int:
        """How many are 0."""
        return int(np.count_nonzero(self._valid == 0))


class SurveyedLosses:
    """Statistics of the valid losses of a float32 column, which is read once, in pieces.

    Attributes:
        size: number of valid losses.
        lowest: the lowest of them, NaN if there is none.
        invalid: number of losses that are NaN, infinite or negative.
    """

    def __init__(self, column: Column) -> None:
        self._column = column
        self._high = np.zeros(_HIGH, dtype=np.int64)
        self._first_invalid: dict[int, Any] = {}
        self.invalid = 0
        self.lowest = np.inf
        for start, losses in pieces(column):
            invalid = is_invalid(losses)
            if invalid.any():
                rows = np.flatnonzero(invalid)
                self.invalid += rows.size
                for row in rows[: SHOWN_ROWS - len(self._first_invalid)].tolist():
                    self._first_invalid[start + row] = losses[row]
                losses = losses[~invalid]
            if losses.size:
                self._high += np.bincount(_bits(losses) >> _LOW_BITS, minlength=_HIGH)
                self.lowest = min(self.lowest, float(losses.min()))
        self.size = len(column) - self.invalid

    def describe_invalid(self) -> str:
        """How many are invalid, and the first of them."""
        return name_rows(self.invalid, len(self._column), _INVALID, self._first_invalid)

    def ordered(self, places: Sequence[int]) -> list[float]:
        """The losses at these places in ascending order, by a second look at the column."""
        up_to = np.cumsum(self._high)
        # Losses alike in their high bits are next to each other in the order: of these few, the
        # low bits are counted too.
        high = np.searchsorted(up_to, places, side="right")
        low = {int(bits): np.zeros(_LOW + 1, dtype=np.int64) for bits in high}
        for _, losses in pieces(self._column):
            # Other invalid losses than negative ones have high bits that no valid one has.
            bits = _bits(losses[losses >= 0] if self.invalid else losses)
            for wanted, counts in low.items():
                counts += np.bincount(bits[bits >> _LOW_BITS == wanted] & _LOW, minlength=_LOW + 1)
        found = []
        for place, wanted in zip(places, high.tolist(), strict=True):
            before = int(up_to[wanted] - self._high[wanted])
            last = np.searchsorted(np.cumsum(low[wanted]), place - before, side="right")
            found.append(float(np.uint32(wanted << _LOW_BITS | int(last)).view(np.float32)))
        return found

    def mean(self) -> float:
        """Their mean, in float64, by another look at the column."""
        # numpy 1.26 to 2.4 casts 8,192 rows together, which `PIECE` is a multiple of, and adds one
        # such sum to the next: so do pieces of as many valid rows.
        total, left = np.float64(0.0), np.empty(0, dtype=self._column.dtype)
        for _, losses in pieces(self._column):
            left = np.concatenate([left, losses[~is_invalid(losses)]])
            if left.size >= PIECE:
                total = np.add.reduce(left[:PIECE], dtype=np.float64, initial=total)
                left = left[PIECE:]
        return float(np.add.reduce(left, dtype=np.float64, initial=total) / self.size)

    def zeros(self) -> int:
        """How many are 0, by another look at the column."""
        return sum(int(np.count_nonzero(losses == 0)) for _, losses in pieces(self._column))


def _bits(losses: NDArray[np.float32]) -> NDArray[np.uint32]:
    # -0.0 is a loss of 0.
    return losses.view(np.uint32) & _NO_SIGN
