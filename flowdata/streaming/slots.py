"""Slots: ascending numbers of draws, as runs, so that they take no memory for each."""

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]


class Slots:
    """Ascending integers as runs [start, stop): immutable.

    Runs are sorted and do not overlap, but for numbers that are there several times: each of
    these is a run of its own.

    >>> slots = Slots([0, 10], [3, 12])
    >>> len(slots), slots.array().tolist(), slots.cut(2, 4).array().tolist()
    (5, [0, 1, 2, 10, 11], [2, 10])
    """

    def __init__(self, starts: Iterable[int] | Ints, stops: Iterable[int] | Ints) -> None:
        self.starts = np.asarray(starts, dtype=np.int64)
        self.stops = np.asarray(stops, dtype=np.int64)
        # How many numbers there are before each run, and in all.
        self._before = np.zeros(self.starts.size + 1, dtype=np.int64)
        np.cumsum(self.stops - self.starts, out=self._before[1:])

    @classmethod
    def run(cls, start: int, stop: int) -> "Slots":
        """The integers from start on, below stop."""
        return cls([start], [stop]) if start < stop else cls([], [])

    @classmethod
    def of(cls, numbers: Ints) -> "Slots":
        """Single integers, sorted here."""
        ascending = np.sort(numbers)
        return cls(ascending, ascending + 1)

    @classmethod
    def joined(cls, parts: Iterable["Slots"]) -> "Slots":
        """All numbers of some slots together; parts may come in any order."""
        kept = list(parts)
        starts = np.concatenate([_NONE, *(part.starts for part in kept)])
        stops = np.concatenate([_NONE, *(part.stops for part in kept)])
        order = np.argsort(starts, kind="stable")
        return cls(starts[order], stops[order])

    def __len__(self) -> int:
        return int(self._before[-1])

    def array(self) -> Ints:
        """All numbers."""
        return self.at(np.arange(len(self)))

    def at(self, indices: Ints) -> Ints:
        """The numbers at some places."""
        runs = np.searchsorted(self._before, indices, side="right") - 1
        return self.starts[runs] + (indices - self._before[runs])

    def cut(self, first: int, last: int) -> "Slots":
        """The numbers at places [first, last)."""
        return self.select(Slots.run(first, last))

    def select(self, places: "Slots") -> "Slots":
        """The numbers at some places."""
        firsts = np.searchsorted(self._before, places.starts, side="right") - 1
        lasts = np.searchsorted(self._before, places.stops, side="left") - 1
        # A run of places goes over several runs of numbers: each of these is a piece.
        pieces = lasts - firsts + 1
        piece_of = np.repeat(np.arange(pieces.size), pieces)
        within = np.arange(piece_of.size) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        runs = firsts[piece_of] + within
        low = np.maximum(places.starts[piece_of], self._before[runs])
        high = np.minimum(places.stops[piece_of], self._before[runs + 1])
        shift = self.starts[runs] - self._before[runs]
        return Slots(low + shift, high + shift)

    def count_below(self, bounds: Ints) -> Ints:
        """How many numbers are less than each bound."""
        if not self.starts.size:
            return np.zeros(bounds.size, dtype=np.int64)
        runs = np.searchsorted(self.starts, bounds, side="left") - 1
        inside = np.minimum(bounds, self.stops[runs]) - self.starts[runs]
        return np.where(runs < 0, 0, self._before[runs] + inside)

    def without(self, places: "Slots") -> "Slots":
        """The numbers at all places but some, which may be named twice."""
        ends = np.maximum.accumulate(places.stops) if places.starts.size else places.stops
        starts = np.concatenate([[0], ends])
        stops = np.concatenate([places.starts, [len(self)]])
        kept = starts < stops
        return self.select(Slots(starts[kept], stops[kept]))


_NONE = np.zeros(0, dtype=np.int64)
