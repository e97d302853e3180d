"""A streamed epoch divided between ranks and workers, and the order of each one's draws.

The draws of an epoch have slots [0, M) in reading order: shard after shard in a keyed random
order, in each shard as its samples lie. A rank takes a run of slots, a worker a run of its
rank's: so a shard is read by one worker, or by two where a border runs through it. A worker takes
some shards at a time and goes through all of them at once, window by window; the draws of a
window come out in a keyed random order. Time and memory grow with shards, not with rows or draws.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import Purpose, random_bits, shuffled
from flowdata.core.shard_plan import ShardPlan
from flowdata.core.strata import Strata, deal_to_batches
from flowdata.streaming.slots import Slots

# The first windows of a worker are an eighth, a quarter and a half of the others: what comes out of
# a window comes only when all of it was read, and the first batch shall not have to wait for that.
_FIRST_WINDOWS = (8, 4, 2)


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
    """

    group: int
    shards: list[int]
    rows: list[NDArray[np.int64]]
    order: NDArray[np.int64]
    shares: Sequence[float]


class StreamOrder:
    """The rows of one epoch's slots, and their windows.

    Args:
        plan: the draws of the epoch.
        window: draws that are mixed, at most 65,536 less the shards open.
        shards_open: shards that are gone through at once.
    """

    def __init__(self, plan: ShardPlan, *, window: int, shards_open: int) -> None:
        self.epoch = plan.epoch
        self._plan = plan
        self._window, self._shards_open = window, shards_open

    def windows(
        self, slots: Slots, random_key: Sequence[int], skip: int = 0, *, ranks: int = 1
    ) -> Iterator[tuple[Window, int]]:
        """The windows over a worker's slots, and how many draws of each are done.

        Args:
            slots: those of the worker.
            random_key: (segment, rank, worker), which the order in a window depends on.
            skip: draws that are done; windows done altogether do not appear.
            ranks: that share a batch, if there are strata.
        """
        share = _Share(slots, self._plan.first_slots, self._shards_open)
        group, skip = share.find_group(skip)
        while group < share.groups:
            drawn: dict[int, float] = {}
            for part in self._windows_of_group(share, group):
                if skip >= part.size:
                    skip -= part.size
                    continue
                rows = self._rows_of(slots, part)
                order = self._shuffle(random_key, part, rows, ranks)
                shards = self._plan.shard_order[part.ordinals].tolist()
                drawn |= {shard: self._share_of(shard) for shard in shards if shard not in drawn}
                yield Window(group, shards, rows, order, [drawn[shard] for shard in shards]), skip
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
        share = _Share(slots, self._plan.first_slots, self._shards_open)
        group, left = share.find_group(count)
        drawn = [Slots.run(0, count - left)]
        if left:
            for part in self._windows_of_group(share, group):
                if left >= part.size:
                    drawn.append(Slots(part.lows, part.highs))
                    left -= part.size
                    continue
                # Draws come out mixed within a window, so what is done of it are single ones.
                rows = self._rows_of(slots, part) if self._plan.strata else []
                order = self._shuffle(random_key, part, rows, ranks)[:left]
                drawn.append(Slots.of(part.places()[order]))
                break
        return Slots.joined(drawn)

    def _windows_of_group(self, share: "_Share", group: int) -> Iterator["_Part"]:
        """The windows over the shards of a group: each takes an equal part of all of them.

        Shards that are open together are read to their end before the next ones are opened, and
        all end at the same time.
        """
        first = group * self._shards_open
        chosen = slice(first, first + self._shards_open)
        ordinals, begin = share.ordinals[chosen], share.begins[chosen]
        counts = share.ends[chosen] - begin
        total = int(counts.sum())
        bounds = _window_bounds(total, self._window, ramp=group == 0)
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            lows, highs = (begin + counts * bound // total for bound in (low, high))
            taken = lows < highs
            if taken.any():
                yield _Part(group, number, ordinals[taken], lows[taken], highs[taken])

    def _shuffle(
        self,
        random_key: Sequence[int],
        part: "_Part",
        rows: list[NDArray[np.int64]],
        ranks: int,
    ) -> NDArray[np.int64]:
        """The order in which the draws of a window come out."""
        bits = random_bits(
            self._plan.seed,
            self.epoch,
            Purpose.WINDOW_ORDER,
            *random_key,
            part.group,
            part.number,
        )
        if (strata := self._plan.strata) is None:
            return shuffled(part.size, bits)
        codes = self._plan.strata_of(np.concatenate(rows))
        assert codes is not None
        return deal_to_batches(
            codes.argsort(kind="stable"), max(strata.batch_size // ranks, 1), bits
        )

    def _share_of(self, shard: int) -> float:
        before = self._plan.draws_before(shard, keep=2 * self._shards_open)
        return np.count_nonzero(np.diff(before)) / max(before.size - 1, 1)

    def _rows_of(self, slots: Slots, part: "_Part") -> list[NDArray[np.int64]]:
        """The rows of a window, of each of its shards, ascending."""
        found = []
        for ordinal, low, high in zip(
            part.ordinals.tolist(), part.lows.tolist(), part.highs.tolist(), strict=True
        ):
            shard = int(self._plan.shard_order[ordinal])
            # Windows are made ahead: those of the next shards, while these are being read.
            before = self._plan.draws_before(shard, keep=2 * self._shards_open)
            wanted = slots.cut(low, high).array() - self._plan.first_slots[ordinal]
            rows = np.searchsorted(before, wanted, side="right") - 1
            found.append(rows + self._plan.bounds[shard])
        return found


@dataclass(frozen=True)
class _Part:
    """A window as the places that it takes of each shard, by the shards' ordinals.

    An ordinal is the number of a shard in the order in which an epoch reads them.
    """

    group: int
    number: int
    ordinals: NDArray[np.int64]
    lows: NDArray[np.int64]
    highs: NDArray[np.int64]

    @property
    def size(self) -> int:
        return int((self.highs - self.lows).sum())

    def places(self) -> NDArray[np.int64]:
        """Those of all its draws, shard after shard."""
        pairs = zip(self.lows.tolist(), self.highs.tolist(), strict=True)
        return np.concatenate([np.arange(low, high) for low, high in pairs])


class _Share:
    """A worker's slots, cut at shards and at groups of shards.

    Attributes:
        ordinals: of the shards that it has draws of.
        begins, ends: which of its slots are those of each.
        groups: number of groups.
    """

    def __init__(self, slots: Slots, first_slots: NDArray[np.int64], shards_open: int) -> None:
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
        last = np.minimum(np.arange(1, self.groups + 1) * shards_open, found.size) - 1
        self._group_ends = self.ends[last]

    def find_group(self, done: int) -> tuple[int, int]:
        """The group that a draw is in, and how many draws of that group come before it."""
        group = int(np.searchsorted(self._group_ends, done, side="right"))
        return group, done - (int(self._group_ends[group - 1]) if group else 0)


def _window_bounds(total: int, window: int, *, ramp: bool) -> list[int]:
    """Where the windows over so many draws begin and end."""
    bounds = [0]
    if ramp:
        for part in _FIRST_WINDOWS:
            size = max(window // part, 1)
            if bounds[-1] + size < total:
                bounds.append(bounds[-1] + size)
    start = bounds[-1]
    windows = -(-(total - start) // window)
    return bounds + [start + (total - start) * (n + 1) // windows for n in range(windows)]


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


def require_fitting_strata(strata: Strata | None, ranks: int, batch_size: int | None) -> None:
    """Make sure that the batches of strata are those of all ranks together.

    Raises:
        ValueError: if they are not, as far as batches are known.
    """
    if strata is None:
        return
    each, over = divmod(strata.batch_size, ranks)
    if over or batch_size not in (None, each):
        raise ValueError(
            f"strata are of batches of {strata.batch_size} draws over all ranks, but there are "
            f"{ranks} ranks with batches of {batch_size or each}: give "
            "Strata(batch_size=batch size of a rank x ranks)"
        )
