"""A streamed epoch divided between ranks and workers, and the order of each one's draws.

The draws of an epoch have slots [0, M) in reading order: shard after shard in a keyed random
order, in each shard as its samples lie. A rank takes a run of slots, a worker a run of its
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

Slots: TypeAlias = range | NDArray[np.int64]
"""Numbers of draws in reading order, ascending; a range wherever possible: it takes no memory."""


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

    def on_turn(self, worker: int, done: int) -> int:
        """The worker whose share a loader's worker takes over when its rank has done so many.

        A loader begins with worker 0, whichever was on turn when the state was saved.
        """
        return (worker + self.batches(done)) % self.workers

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
    """The rows of one epoch's slots, and their windows: 4 or 8 bytes a row of the table.

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
        self._draws_before_row = np.zeros(len(plan.weights) + 1, dtype=dtype)
        np.cumsum(plan.counts(), out=self._draws_before_row[1:])
        order = KeyedPermutation(
            len(bounds) - 1, seed=plan.seed, epoch=plan.epoch, purpose=Purpose.SHARD_ORDER
        )
        self._shard_order = order(np.arange(len(bounds) - 1))
        self._bounds = bounds
        draws_of_shard = self._draws_before_row[bounds[1:]] - self._draws_before_row[bounds[:-1]]
        self._first_slots = np.zeros(len(bounds), dtype=np.int64)
        np.cumsum(draws_of_shard[self._shard_order], out=self._first_slots[1:])

    def windows(
        self, slots: Slots, random_key: Sequence[int], skip: int = 0
    ) -> Iterator[tuple[Window, int]]:
        """The windows over a worker's slots, and how many draws of each are done.

        Args:
            slots: those of the worker.
            random_key: (segment, rank, worker), which the order in a window depends on.
            skip: draws that are done; windows done altogether do not appear.
        """
        for group, number, pieces in self._split_into_windows(slots):
            size = sum(len(piece) for _, piece in pieces)
            if skip >= size:
                skip -= size
                continue
            rows = [self._rows_of(ordinal, piece) for ordinal, piece in pieces]
            order = self._shuffle(size, random_key, group, number)
            shards = [int(self._shard_order[ordinal]) for ordinal, _ in pieces]
            yield Window(group, shards, rows, order), skip
            skip = 0

    def remaining(
        self, slots: Slots, layout: Layout, done: Sequence[int], segment: int
    ) -> NDArray[np.int64]:
        """Slots not drawn yet, when each rank's workers have done so many, ascending.

        Args:
            slots: those that were divided.
            layout: how.
            done: draws of each worker, the same on all ranks.
            segment: number of the segment of the epoch that was run so.
        """
        own = layout.per_rank(len(slots))
        if sum(done) >= own:
            return _as_array(slots[own * layout.ranks :])
        # Each worker's draws come out mixed within windows, so what is left is no run of slots.
        open_ = np.ones(len(slots), dtype=np.bool_)
        for rank in range(layout.ranks):
            for worker in np.flatnonzero(done).tolist():
                share = share_of(slots, layout, rank, worker)
                drawn = self._first_drawn(share, (segment, rank, worker), done[worker])
                open_[_indices_of(slots, drawn)] = False
        return _as_array(slots)[open_]

    def _first_drawn(
        self, slots: Slots, random_key: Sequence[int], count: int
    ) -> NDArray[np.int64]:
        """Those of a worker's slots that are drawn first, so many."""
        drawn = [np.zeros(0, dtype=np.int64)]
        for group, number, pieces in self._split_into_windows(slots):
            if count <= 0:
                break
            window = np.concatenate([_as_array(piece) for _, piece in pieces])
            if count < window.size:
                window = window[self._shuffle(window.size, random_key, group, number)[:count]]
            drawn.append(window)
            count -= window.size
        return np.concatenate(drawn)

    def _shuffle(
        self, size: int, random_key: Sequence[int], group: int, number: int
    ) -> NDArray[np.int64]:
        purpose = Purpose.WINDOW_ORDER
        return shuffled(
            size, random_bits(self._seed, self.epoch, purpose, *random_key, group, number)
        )

    def _split_into_windows(
        self, slots: Slots
    ) -> Iterator[tuple[int, int, list[tuple[int, Slots]]]]:
        """Windows as (group, number, what they take of each shard): each takes an equal part.

        A shard goes by its ordinal: its number in the order in which an epoch reads them.
        """
        cuts = self._cut_at_shards(slots)
        nonempty = np.flatnonzero(np.diff(cuts))
        # Shards that are open together are read to their end before the next ones are opened, and
        # each window takes as large a part of every one of them: so all end at the same time.
        for group, start in enumerate(range(0, nonempty.size, self._shards_open)):
            ordinals = nonempty[start : start + self._shards_open]
            first, counts = cuts[ordinals], cuts[ordinals + 1] - cuts[ordinals]
            windows = -(-int(counts.sum()) // self._window)
            for number in range(windows):
                begin = (first + counts * number // windows).tolist()
                end = (first + counts * (number + 1) // windows).tolist()
                pieces = [
                    (int(ordinal), slots[low:high])
                    for ordinal, low, high in zip(ordinals, begin, end, strict=True)
                    if high > low
                ]
                yield group, number, pieces

    def _cut_at_shards(self, slots: Slots) -> NDArray[np.int64]:
        """Where the slots of each shard begin, in reading order, and where all end."""
        if isinstance(slots, range):
            return np.clip(self._first_slots - slots.start, 0, len(slots))
        return np.searchsorted(slots, self._first_slots)

    def _rows_of(self, ordinal: int, slots: Slots) -> NDArray[np.int64]:
        """The rows of slots within one shard."""
        shard = self._shard_order[ordinal]
        first, last = self._bounds[shard], self._bounds[shard + 1]
        # Slots count in reading order, `_draws_before_row` in the order of the table.
        shift = int(self._draws_before_row[first]) - int(self._first_slots[ordinal])
        drawn = self._draws_before_row[first : last + 1]
        wanted = (_as_array(slots) + shift).astype(drawn.dtype)
        found = np.searchsorted(drawn, wanted, side="right") - 1
        return np.asarray(found + first, dtype=np.int64)


def share_of(slots: Slots, layout: Layout, rank: int, worker: int) -> Slots:
    """The slots of one worker, ascending; some twice if ranks do not divide them, or left out."""
    own = layout.per_rank(len(slots))
    start, stop = rank * own, (rank + 1) * own
    if stop <= len(slots):
        mine = slots[start:stop]
    else:
        # Pad with the last slots, so that what is repeated is read towards the end, and mostly of a
        # shard that the last rank reads anyway. `Cursor` pads with an epoch's first draws, whose
        # order is random; the first slots are all of one shard, which rank 0 reads.
        indices = np.arange(start, stop)
        over = indices >= len(slots)
        indices[over] = len(slots) - 1 - (indices[over] - len(slots)) % len(slots)
        mine = _as_array(slots)[np.sort(indices)]
    shares = layout.shares(len(slots))
    begin = sum(shares[:worker])
    return mine[begin : begin + shares[worker]]


def _indices_of(slots: Slots, found: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where some of the slots are among all of them."""
    if isinstance(slots, range):
        return found - slots.start
    return np.searchsorted(slots, found)


def _as_array(slots: Slots) -> NDArray[np.int64]:
    if isinstance(slots, range):
        return np.arange(slots.start, slots.stop, dtype=np.int64)
    return slots
