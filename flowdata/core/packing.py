"""Packing: items of given lengths, put together into packs of at most a capacity."""

from bisect import bisect_left, insort

import numpy as np
from numpy.typing import NDArray

# Lengths that are told apart exactly. More of them are rounded up to 11 bits: 1/2,048 at most.
_MOST_DISTINCT = 1 << 14
_KEPT_BITS = 11
# Items of equal length are often draws of one row: they are spread over so many packs, where this
# takes no more of them.
_SPREAD = 32


def pack(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """The pack of each item: int64, shape (M,), packs numbered from 0, none of them empty.

    Best-fit decreasing on the histogram of lengths: the longest items first, each into the pack
    with the least room that it fits in, all items of a length and all packs of equal room at once
    (Krell, Kosec, Perez and Fitzgibbon, "Efficient Sequence Packing without Cross-contamination",
    arXiv 2107.02027). Its time grows with the distinct lengths; items are only sorted. At most
    16,384 lengths are told apart, more are rounded up by up to 1/1,024.

    Args:
        lengths: of the items, 1 to ``capacity`` each.
        capacity: the sum of lengths that a pack has room for.

    Raises:
        ValueError: for a length below 1 or above the capacity.

    >>> pack(np.array([3, 5, 2, 4]), 7).tolist()
    [1, 0, 0, 1]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.size == 0:
        return np.zeros(0, dtype=np.int64)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if not 1 <= shortest <= longest <= capacity:
        raise ValueError(
            f"items of lengths 1 to {capacity:,} can be packed, got {shortest:,} to {longest:,}"
        )
    distinct, counts = _histogram(lengths, longest)
    if distinct.size > _MOST_DISTINCT:
        rounded = _rounded_up(distinct, capacity)
        first = np.flatnonzero(np.diff(rounded, prepend=0))
        # Rounding keeps the order, so items that are sorted by length stay sorted.
        distinct, counts = rounded[first], np.add.reduceat(counts, first)
    packs = _filled(distinct, counts, capacity, spread=_SPREAD)
    if packs.opened > packs.least:
        # Where items fit exactly, spreading them may cost a pack.
        packs = min(packs, _filled(distinct, counts, capacity), key=lambda each: each.opened)
    packed = np.empty(lengths.size, dtype=np.int64)
    packed[_longest_first(lengths, longest)] = packs.of_items()
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
        order = np.argsort(packs, kind="stable")
        place = np.arange(packs.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # Every other item of a pack goes into the new one.
        moved = order[(new[packs[order]] >= 0) & (place % 2 == 1)]
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
        """Put in items of a length, none longer than those before."""
        spread = -(-items // self._spread)
        items = self._fill(length, items, spread)
        # So many packs are needed anyway.
        items = self._open(length, items, spread, self.least - self.opened)
        items = self._fill(length, items, items)
        self._open(length, items, items, items)

    def of_items(self) -> NDArray[np.int64]:
        """The pack of each item, in the order in which they were put in."""
        first, packs, each = np.array(self._filled, dtype=np.int64).T
        items = packs * each
        place = np.arange(items.sum()) - np.repeat(np.cumsum(items) - items, items)
        packed: NDArray[np.int64] = np.repeat(first, items) + place % np.repeat(packs, items)
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


def _filled(
    distinct: NDArray[np.int64], counts: NDArray[np.int64], capacity: int, spread: int = 1
) -> _Packs:
    packs = _Packs(capacity, least=-(-int(distinct @ counts) // capacity), spread=spread)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        packs.add(length, count)
    return packs


def _histogram(
    lengths: NDArray[np.int64], longest: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct lengths, ascending, and how many items have each."""
    if longest > 4 * lengths.size + _MOST_DISTINCT:
        return np.unique(lengths, return_counts=True)
    counts = np.bincount(lengths)
    distinct = np.flatnonzero(counts)
    return distinct, counts[distinct]


def _rounded_up(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    """Lengths of at most `_KEPT_BITS` binary digits, then zeros."""
    bits = np.frexp(lengths.astype(np.float64))[1]
    unit = np.int64(1) << np.maximum(bits - _KEPT_BITS, 0)
    rounded: NDArray[np.int64] = np.minimum(-(-lengths // unit) * unit, capacity)
    return rounded


def _longest_first(lengths: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    # numpy sorts integers of 16 bits by their digits, in a tenth of the time.
    keys = longest - lengths
    return (keys.astype(np.uint16) if longest < 1 << 16 else keys).argsort(kind="stable")
