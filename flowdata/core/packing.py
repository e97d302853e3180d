"""Packing: items of given lengths, put together into packs of at most a capacity."""

from bisect import bisect_left, insort
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

# Lengths, descending, and how many items have each.
_Histogram: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int64]]

# Lengths that are told apart exactly. More of them are rounded up to 11 bits: 1/2,048 at most.
_MOST_DISTINCT = 1 << 14
_KEPT_BITS = 11
# Items of equal length are often draws of one row: they are spread over so many packs, where this
# takes no more of them than one in so many.
_SPREAD, _SPREAD_FOR = 32, 2048


def pack(
    lengths: NDArray[Any], capacity: int, *, first: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The pack of each item: int64, shape (M,), packs numbered from 0, none of them empty.

    Best-fit decreasing on the histogram of lengths: the longest items first, each into the pack
    with the least room that it fits in, all items of a length and all packs of equal room at once
    (Krell, Kosec, Perez and Fitzgibbon, "Efficient Sequence Packing without Cross-contamination",
    arXiv 2107.02027). Its time grows with the distinct lengths; items are only sorted. At most
    16,384 lengths are told apart, more are rounded up by up to 1/1,024.

    Args:
        lengths: of the items, integers from 1 to ``capacity``.
        capacity: the sum of lengths that a pack has room for.
        first: items that are put in before all others. With a random half, other items share a
            pack; packs are seldom more for it where many items are short.

    Raises:
        ValueError: for a length below 1 or above the capacity.

    >>> pack(np.array([3, 5, 2, 4]), 7).tolist()
    [1, 0, 0, 1]
    """
    lengths = np.asarray(lengths)
    if lengths.size == 0:
        return np.zeros(0, dtype=np.int64)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if not 1 <= shortest <= longest <= capacity:
        raise ValueError(
            f"items of lengths 1 to {capacity:,} can be packed, got {shortest:,} to {longest:,}"
        )
    order = _longest_first(lengths, longest)
    if first is not None:
        of_first = first[order]
        order = np.concatenate([order[of_first], order[~of_first]])
    halves = np.split(order, [0 if first is None else np.count_nonzero(first)])
    histograms = [_histogram(lengths[half], capacity) for half in halves]
    packs = _filled(histograms, capacity, spread=_SPREAD)
    if first is None and packs.opened > packs.least:
        # Where items fit exactly, spreading them may take more packs.
        dense = _filled(histograms, capacity, spread=1)
        packs = dense if dense.opened < packs.opened - packs.opened // _SPREAD_FOR else packs
    packed = np.empty(lengths.size, dtype=np.int64)
    packed[order] = packs.of_items()
    return packed


def split_packs(packs: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Packs of the same items, split until there are ``count``: those of the most items first.

    Args:
        packs: the pack of each item, as `pack` gives it.
        count: from as many as there are to as many as items.
    """
    packs = packs.copy()
    sizes = np.bincount(packs)
    while (missing := count - sizes.size) > 0:
        halved = np.argsort(-sizes, kind="stable")[:missing]
        halved = halved[sizes[halved] > 1]
        new = np.full(sizes.size, -1)
        new[halved] = sizes.size + np.arange(halved.size)
        items = np.flatnonzero(new[packs] >= 0)
        items = items[np.argsort(packs[items], kind="stable")]
        of_halved = sizes[np.sort(halved)]
        place = np.arange(items.size) - np.repeat(np.cumsum(of_halved) - of_halved, of_halved)
        # Every other item of a pack goes into the new one.
        moved = items[place % 2 == 1]
        packs[moved] = new[packs[moved]]
        sizes = np.bincount(packs)
    return packs


class _Packs:
    """Packs that are filled, by the room that is left in them.

    A run (first, count) stands for packs with the numbers [first, first + count).

    Args:
        capacity: of a pack.
        least: packs that are needed at least.
        spread: packs that the items of a length are spread over, where that costs none.
    """

    def __init__(self, capacity: int, least: int, spread: int) -> None:
        self._capacity, self.least, self._spread = capacity, least, spread
        self.opened = 0
        """Packs that have items."""
        self._rooms: list[int] = []
        """Rooms that any pack has, ascending."""
        self._runs: dict[int, list[tuple[int, int]]] = {}
        # Of each run that got items: its first pack, packs, and items for each of them.
        self._filled: list[tuple[int, int, int]] = []

    def add(self, length: int, items: int) -> None:
        """Put in items of a length."""
        spread = -(-items // self._spread)
        items = self._fill(length, items, spread)
        # So many packs are needed anyway.
        items = self._open(length, items, spread, self.least - self.opened)
        items = self._fill(length, items, items)
        self._open(length, items, items, items)

    def of_items(self) -> NDArray[Any]:
        """The pack of each item, in the order in which they were put in."""
        first, packs, each = np.array(self._filled, dtype=np.int64).T
        items = packs * each
        begins = np.cumsum(items) - items
        # A part of an epoch's memory: integers of 32 bits where they do.
        small = np.int32 if int(items.sum()) < 1 << 31 else np.int64
        packed = np.arange(items.sum(), dtype=small)
        packed -= np.repeat(begins.astype(small), items)
        packed %= np.repeat(packs.astype(small), items)
        packed += np.repeat(first.astype(small), items)
        return packed

    def _fill(self, length: int, items: int, most: int) -> int:
        """Put items into packs that are there, at most so many each; the items that are left."""
        after: list[tuple[int, int, int]] = []
        at = bisect_left(self._rooms, length)
        while items and at < len(self._rooms):
            room = self._rooms[at]
            runs = self._runs[room]
            while items and runs:
                first, packs = runs.pop()
                used, items = self._put(first, packs, room, length, items, most, after)
                if used < packs:
                    runs.append((first + used, packs - used))
            if not runs:
                del self._rooms[at], self._runs[room]
            else:
                at += 1
        self._keep(after)
        return items

    def _open(self, length: int, items: int, most: int, packs: int) -> int:
        """Put items into new packs, at most so many each and so many packs; the items left."""
        if not items or packs <= 0:
            return items
        after: list[tuple[int, int, int]] = []
        used, items = self._put(self.opened, packs, self._capacity, length, items, most, after)
        self.opened += used
        self._keep(after)
        return items

    def _put(
        self,
        first: int,
        packs: int,
        room: int,
        length: int,
        items: int,
        most: int,
        after: list[tuple[int, int, int]],
    ) -> tuple[int, int]:
        """Put items into a run of packs; how many packs got some, and the items that are left."""
        each = min(room // length, most)
        full = min(packs, items // each)
        if full:
            self._filled.append((first, full, each))
            after.append((room - each * length, first, full))
            items -= full * each
        if 0 < items < each and full < packs:
            self._filled.append((first + full, 1, items))
            after.append((room - items * length, first + full, 1))
            return full + 1, 0
        return full, items

    def _keep(self, after: list[tuple[int, int, int]]) -> None:
        for room, first, packs in after:
            if room not in self._runs:
                self._runs[room] = []
                insort(self._rooms, room)
            self._runs[room].append((first, packs))


def _filled(histograms: list[_Histogram], capacity: int, spread: int) -> _Packs:
    tokens = sum(int(lengths @ counts) for lengths, counts in histograms)
    packs = _Packs(capacity, least=-(-tokens // capacity), spread=spread)
    for lengths, counts in histograms:
        for length, count in zip(lengths.tolist(), counts.tolist(), strict=True):
            packs.add(length, count)
    return packs


def _histogram(descending: NDArray[Any], capacity: int) -> _Histogram:
    """Distinct lengths of items in descending order, and how many items have each."""
    begins = np.flatnonzero(np.diff(descending, prepend=0))
    distinct = descending[begins].astype(np.int64)
    counts = np.diff(begins, append=descending.size)
    if distinct.size > _MOST_DISTINCT:
        distinct = _rounded_up(distinct, capacity)
        begins = np.flatnonzero(np.diff(distinct, prepend=0))
        distinct, counts = distinct[begins], np.add.reduceat(counts, begins)
    return distinct, counts


def _rounded_up(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Lengths of at most `_KEPT_BITS` binary digits, then zeros."""
    bits = np.frexp(lengths.astype(np.float64))[1]
    unit = np.int64(1) << np.maximum(bits - _KEPT_BITS, 0)
    rounded: NDArray[np.int64] = np.minimum(-(-lengths // unit) * unit, capacity)
    return rounded


def _longest_first(lengths: NDArray[Any], longest: int) -> NDArray[np.int64]:
    # numpy sorts integers of 16 bits by their digits, in a tenth of the time.
    keys = longest - lengths
    return (keys.astype(np.uint16) if longest < 1 << 16 else keys).argsort(kind="stable")
