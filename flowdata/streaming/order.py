"""The order of a streamed epoch: who reads which draws, and how they are mixed.

The draws of an epoch have positions [0, M) in reading order: shard after shard in a keyed random
order, in each shard as its samples lie. A rank takes a run of positions, a worker a run of its
rank's: so a shard is read by one worker, or by two where a border runs through it. A worker takes
some shards at a time and goes through all of them at once, window by window; the draws of a
window come out in a keyed random order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits, shuffled
from flowdata.core.plan import EpochPlan

Positions: TypeAlias = range | NDArray[np.int64]
"""Ascending positions; a range wherever possible, which takes no memory."""


@dataclass(frozen=True)
class Layout:
    """How an epoch is divided.

    Attributes:
        ranks, workers: of which every rank has as many.
        batch: draws that must stay together: a worker's share is whole batches.
        drop_last: leave out the last draws rather than repeat some, where ranks do not divide.
    """

    ranks: int
    workers: int
    batch: int
    drop_last: bool = False

    def per_rank(self, draws: int) -> int:
        """Draws of each rank."""
        return draws // self.ranks if self.drop_last else -(-draws // self.ranks)

    def shares(self, draws: int) -> list[int]:
        """Draws of the workers of a rank: whole batches, dealt out in turn as a loader does."""
        own = self.per_rank(draws)
        batches = -(-own // self.batch)
        each, more = divmod(batches, self.workers)
        shares = [(each + (worker < more)) * self.batch for worker in range(self.workers)]
        # The last batch of all may be incomplete.
        if batches:
            shares[(batches - 1) % self.workers] -= batches * self.batch - own
        return shares

    def batches(self, done: int) -> int:
        """Batches of a rank that has done so many draws."""
        return -(-done // self.batch)

    def by_worker(self, draws: int, done: int) -> list[int]:
        """Draws that each worker has done when its rank has done so many, of all draws left."""
        shares = self.shares(draws)
        if self.workers == 1:
            return [min(done, shares[0])]
        rounds, more = divmod(self.batches(done), self.workers)
        turns = ((rounds + (worker < more)) * self.batch for worker in range(self.workers))
        return [min(pair) for pair in zip(turns, shares, strict=True)]


@dataclass(frozen=True)
class Window:
    """Draws that are read together and come out mixed.

    Attributes:
        group: number of the shards that are open together, in this worker's epoch.
        shards: their numbers, those that this window reads.
        rows: of each of them the rows that are drawn, ascending, repeated where drawn again.
        order: the draws of all of them, one after another, in the order they come out.
    """

    group: int
    shards: list[int]
    rows: list[NDArray[np.int64]]
    order: NDArray[np.int64]


class StreamOrder:
    """Positions of one epoch: 4 or 8 bytes a row of the table.

    Args:
        plan: the draws of the epoch.
        bounds: first row of each shard, and n, shape (shards + 1,).
        window: draws that are mixed, at most 65,536 less the shards open.
        shards_open: shards that are gone through at once.
    """

    def __init__(
        self, plan: EpochPlan, bounds: NDArray[np.int64], *, window: int, shards_open: int
    ) -> None:
        self.epoch = plan.epoch
        self._seed = plan.seed
        self._window, self._shards_open = window, shards_open
        dtype: Any = np.int32 if len(plan) <= np.iinfo(np.int32).max else np.int64
        self._until = np.zeros(len(plan.weights) + 1, dtype=dtype)
        np.cumsum(plan.counts(), out=self._until[1:])
        order = KeyedPermutation(
            len(bounds) - 1, seed=plan.seed, epoch=plan.epoch, purpose=Purpose.SHARD_ORDER
        )
        self._shards = order(np.arange(len(bounds) - 1))
        self._bounds = bounds
        owed = self._until[bounds[1:]] - self._until[bounds[:-1]]
        self._edges = np.zeros(len(bounds), dtype=np.int64)
        np.cumsum(owed[self._shards], out=self._edges[1:])

    def windows(
        self, positions: Positions, part: Sequence[int], skip: int = 0
    ) -> Iterator[tuple[Window, int]]:
        """The windows over a worker's positions, and how many draws of each are done.

        Args:
            positions: what the worker owes.
            part: numbers of this worker, which its random order depends on.
            skip: draws that are done; windows done altogether do not appear.
        """
        for group, number, pieces in self._pieces(positions):
            size = sum(len(piece) for _, piece in pieces)
            if skip >= size:
                skip -= size
                continue
            rows = [self._rows(place, piece) for place, piece in pieces]
            order = self._mixed(size, part, group, number)
            shards = [int(self._shards[place]) for place, _ in pieces]
            yield Window(group, shards, rows, order), skip
            skip = 0

    def left(
        self, positions: Positions, layout: Layout, done: Sequence[int], generation: int
    ) -> NDArray[np.int64]:
        """Positions not drawn yet, when each rank's workers have done so many, ascending."""
        # Each worker's draws come out mixed within windows, so what is left is no run of positions.
        open_ = np.ones(len(positions), dtype=np.bool_)
        for rank in range(layout.ranks):
            for worker, count in enumerate(done):
                share = share_of(positions, layout, rank, worker)
                drawn = self._first(share, (generation, rank, worker), count)
                open_[_places(positions, drawn)] = False
        return _array(positions)[open_]

    def _first(self, positions: Positions, part: Sequence[int], count: int) -> NDArray[np.int64]:
        """Those of a worker's positions that are drawn first."""
        parts = [np.zeros(0, dtype=np.int64)]
        for group, number, pieces in self._pieces(positions):
            if count <= 0:
                break
            window = np.concatenate([_array(piece) for _, piece in pieces])
            if count < window.size:
                window = window[self._mixed(window.size, part, group, number)[:count]]
            parts.append(window)
            count -= window.size
        return np.concatenate(parts)

    def _mixed(self, size: int, part: Sequence[int], group: int, number: int) -> NDArray[np.int64]:
        purpose = Purpose.WINDOW_ORDER
        return shuffled(size, random_bits(self._seed, self.epoch, purpose, *part, group, number))

    def _pieces(
        self, positions: Positions
    ) -> Iterator[tuple[int, int, list[tuple[int, Positions]]]]:
        """Windows as (group, number, what they take of each shard): each takes an equal part."""
        cuts = self._cuts(positions)
        held = np.flatnonzero(np.diff(cuts))
        # Shards that are open together are read to their end before the next ones are opened, and
        # each window takes as large a part of every one of them: so all end at the same time.
        for group, start in enumerate(range(0, held.size, self._shards_open)):
            places = held[start : start + self._shards_open]
            first, counts = cuts[places], cuts[places + 1] - cuts[places]
            windows = -(-int(counts.sum()) // self._window)
            for number in range(windows):
                begin = (first + counts * number // windows).tolist()
                end = (first + counts * (number + 1) // windows).tolist()
                pieces = [
                    (int(place), positions[low:high])
                    for place, low, high in zip(places, begin, end, strict=True)
                    if high > low
                ]
                yield group, number, pieces

    def _cuts(self, positions: Positions) -> NDArray[np.int64]:
        """Where the positions of each shard begin, in reading order, and where all end."""
        if isinstance(positions, range):
            return np.clip(self._edges - positions.start, 0, len(positions))
        return np.searchsorted(positions, self._edges)

    def _rows(self, place: int, positions: Positions) -> NDArray[np.int64]:
        """The rows of positions within one shard."""
        shard = self._shards[place]
        first, last = self._bounds[shard], self._bounds[shard + 1]
        # Positions count in reading order, `_until` in the order of the table.
        before = int(self._until[first]) - int(self._edges[place])
        drawn = self._until[first : last + 1]
        wanted = (_array(positions) + before).astype(drawn.dtype)
        found = np.searchsorted(drawn, wanted, side="right") - 1
        return np.asarray(found + first, dtype=np.int64)


def share_of(positions: Positions, layout: Layout, rank: int, worker: int) -> Positions:
    """The positions of one worker, ascending."""
    own = layout.per_rank(len(positions))
    start, stop = rank * own, (rank + 1) * own
    if stop <= len(positions):
        mine = positions[start:stop]
    else:
        # The draws that come last once more, so that they are the last to be repeated.
        places = np.arange(start, stop)
        over = places >= len(positions)
        places[over] = len(positions) - 1 - (places[over] - len(positions)) % len(positions)
        mine = _array(positions)[np.sort(places)]
    shares = layout.shares(len(positions))
    begin = sum(shares[:worker])
    return mine[begin : begin + shares[worker]]


def _places(positions: Positions, found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where some of the positions are among them."""
    if isinstance(positions, range):
        return found - positions.start
    return np.searchsorted(positions, found)


def _array(positions: Positions) -> NDArray[np.int64]:
    if isinstance(positions, range):
        return np.arange(positions.start, positions.stop, dtype=np.int64)
    return positions
