"""A streamed epoch divided between ranks and workers, and the order of each one's draws.

The draws of an epoch have slots [0, M) in reading order: shard after shard in a keyed random
order, in each shard as its samples lie. A rank takes a run of slots, a worker a run of its
rank's: so a shard is read by one worker, or by two where a border runs through it. A worker takes
some shards at a time and goes through all of them at once, window by window; the draws of a
window come out in a keyed random order. Time and memory grow with shards, not with rows or draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowdata.streaming.slots import Slots


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
        shares: of each of them the share of its rows that the epoch draws.
        packs: draws of each pack, in that order; None where the stream has none.
    """

    group: int
    shards: list[int]
    rows: list[NDArray[np.int64]]
    order: NDArray[np.int64]
    shares: Sequence[float]
    packs: list[int] | None = None


class SlotOrder(ABC):
    """The windows over an epoch's slots, each of a draw or a pack.

    Args:
        epoch: its number.
        first_slots: the first slot of each shard in reading order, and their number. In place of a
            shard there may be several.
        shards_open: shards that are gone through at once.
    """

    def __init__(self, epoch: int, first_slots: NDArray[np.int64], shards_open: int) -> None:
        self.epoch = epoch
        self._first_slots, self._shards_open = first_slots, shards_open

    @abstractmethod
    def _windows_of_group(self, share: "Share", group: int) -> Iterator["Part"]:
        """The windows over the shards of a group, the same whatever is done of them."""

    @abstractmethod
    def _window_of(self, share: "Share", part: "Part", skip: int) -> tuple[Window, int]:
        """The window over a part, of which so many slots are done; and the draws of these."""

    @abstractmethod
    def _order_of(self, share: "Share", part: "Part") -> NDArray[np.int64]:
        """The order in which the slots of a part come out: of its places."""

    def windows(
        self, slots: Slots, random_key: Sequence[int], skip: int = 0, *, ranks: int = 1
    ) -> Iterator[tuple[Window, int]]:
        """The windows over a worker's slots, and how many draws of each are done.

        Args:
            slots: those of the worker.
            random_key: (segment, rank, worker), which the order in a window depends on.
            skip: draws that are done; windows done altogether do not appear.
            ranks: that share a batch, if draws are arranged in batches.
        """
        share = Share(slots, self._first_slots, self._shards_open, random_key, ranks)
        group, skip = share.find_group(skip)
        while group < share.groups:
            for part in self._windows_of_group(share, group):
                if skip >= part.size:
                    skip -= part.size
                    continue
                yield self._window_of(share, part, skip)
                skip = 0
            group += 1

    def remaining(self, slots: Slots, layout: Layout, done: Sequence[int], segment: int) -> Slots:
        """Slots not drawn yet, when each rank's workers have done so many.

        Args:
            slots: those that were divided.
            layout: how.
            done: draws of each worker, the same on all ranks.
            segment: number of the segment of the epoch that was run so.
        """
        own = layout.per_rank(len(slots))
        if sum(done) >= own:
            return slots.cut(min(own * layout.ranks, len(slots)), len(slots))
        drawn = []
        for rank in range(layout.ranks):
            for worker in np.flatnonzero(done).tolist():
                places = places_of(len(slots), layout, rank, worker)
                key = (segment, rank, worker)
                first = self._first_drawn(slots.select(places), key, done[worker], layout.ranks)
                drawn.append(places.select(first))
        return slots.without(Slots.joined(drawn))

    def _first_drawn(
        self, slots: Slots, random_key: Sequence[int], count: int, ranks: int
    ) -> Slots:
        """The places of those of a worker's slots that are drawn first, so many."""
        share = Share(slots, self._first_slots, self._shards_open, random_key, ranks)
        group, left = share.find_group(count)
        drawn = [Slots.run(0, count - left)]
        if left:
            for part in self._windows_of_group(share, group):
                if left >= part.size:
                    drawn.append(Slots(part.lows, part.highs))
                    left -= part.size
                    continue
                # Draws come out mixed within a window, so what is done of it are single ones.
                order = self._order_of(share, part)[:left]
                drawn.append(Slots.of(part.places()[order]))
                break
        return Slots.joined(drawn)


@dataclass(frozen=True)
class Part:
    """A window as the places that it takes of each shard, by the shards' ordinals.

    An ordinal is the number of a shard in the order in which an epoch reads them. Before the part
    the worker has ``start`` slots.
    """

    group: int
    number: int
    ordinals: NDArray[np.int64]
    lows: NDArray[np.int64]
    highs: NDArray[np.int64]
    start: int

    @property
    def size(self) -> int:
        """Number of its slots."""
        return int((self.highs - self.lows).sum())

    def places(self) -> NDArray[np.int64]:
        """Those of all its draws, shard after shard."""
        pairs = zip(self.lows.tolist(), self.highs.tolist(), strict=True)
        return np.concatenate([np.arange(low, high) for low, high in pairs])


class Share:
    """A worker's slots, cut at shards and at groups of shards.

    Args:
        slots: of the worker.
        first_slots: of all shards in reading order, and the end.
        shards_open: in a group.
        random_key, ranks: see `StreamOrder.windows`.

    Attributes:
        ordinals: of the shards that it has slots of.
        begins, ends: which of its slots are those of each.
        groups: number of groups.
    """

    def __init__(
        self,
        slots: Slots,
        first_slots: NDArray[np.int64],
        shards_open: int,
        random_key: Sequence[int],
        ranks: int,
    ) -> None:
        self.slots, self.random_key, self.ranks = slots, random_key, ranks
        if not len(slots):
            first_slots = first_slots[:1]
        else:
            # Of a million shards a worker has some thousands.
            low = np.searchsorted(first_slots, slots.starts[0], side="right") - 1
            high = np.searchsorted(first_slots, slots.stops[-1], side="left")
            first_slots = first_slots[low : high + 1]
        cuts = slots.count_below(first_slots)
        found = np.flatnonzero(np.diff(cuts))
        self.ordinals = found + (low if len(slots) else 0)
        self.begins, self.ends = cuts[found], cuts[found + 1]
        self.groups = -(-found.size // shards_open)
        self._together = shards_open
        last = np.minimum(np.arange(1, self.groups + 1) * shards_open, found.size) - 1
        self._group_ends = self.ends[last]

    def of_group(
        self, group: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Ordinals, begins and ends of the shards of a group."""
        chosen = slice(group * self._together, (group + 1) * self._together)
        return self.ordinals[chosen], self.begins[chosen], self.ends[chosen]

    def find_group(self, done: int) -> tuple[int, int]:
        """The group that a draw is in, and how many draws of that group come before it."""
        group = int(np.searchsorted(self._group_ends, done, side="right"))
        return group, done - self.before(group)

    def before(self, group: int) -> int:
        """Slots of the groups before."""
        return int(self._group_ends[group - 1]) if group else 0


def places_of(draws: int, layout: Layout, rank: int, worker: int) -> Slots:
    """The places of one worker's share among the draws that are left, ascending.

    Some are there twice if ranks do not divide the draws, or none's, see `Layout.drop_last`.
    """
    own = layout.per_rank(draws)
    start, stop = rank * own, (rank + 1) * own
    mine = Slots.run(start, min(stop, draws))
    if stop > draws:
        # Pad with the last slots, so that what is repeated is read towards the end, and mostly of a
        # shard that the last rank reads anyway. `Cursor` pads with an epoch's first draws, whose
        # order is random; the first slots are all of one shard, which rank 0 reads.
        repeated = draws - 1 - np.arange(max(start - draws, 0), stop - draws) % draws
        single = max(int(repeated.min()), start)
        last = np.arange(single, draws)
        mine = Slots.joined([Slots.run(start, single), Slots.of(np.concatenate([last, repeated]))])
    shares = layout.shares(draws)
    begin = sum(shares[:worker])
    return mine.cut(begin, begin + shares[worker])


def share_of(slots: Slots, layout: Layout, rank: int, worker: int) -> Slots:
    """The slots of one worker, see `places_of`."""
    return slots.select(places_of(len(slots), layout, rank, worker))
