"""Pack templates: which slots of an epoch share a pack, the same in every epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.masses import count_draws
from flowdata.core.packing import pack, split_packs
from flowdata.core.permutation import sorted_at_random

Integers = NDArray[np.int32] | NDArray[np.int64]

# Of the tokens of an epoch, what templates may leave empty because their slots are wide enough for
# every epoch; templates of a part of all epochs are narrower.
_MOST_EXCESS = 0.001
_MOST_TEMPLATES = 64
# Draws in all templates together: those of long epochs have little excess.
_MOST_SLOTS = 1 << 20


@dataclass(frozen=True)
class PackTemplate:
    """M slots of given widths in N packs: what an epoch's rows are put into.

    Attributes:
        widths: the length that each slot has room for, shape (M,).
        members: numbers of slots in the order of widths, pack after pack, shape (M,).
        starts: of each pack in ``members``, and M: shape (N + 1,).
    """

    widths: Integers
    members: Integers
    starts: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        widths: Integers,
        packs: NDArray[np.int64],
        count: int,
        random: np.random.Philox,
    ) -> "PackTemplate":
        """The template of slots in packs that are known, split until there are so many.

        Args:
            widths: of the slots, in any order.
            packs: of the widths in ascending order.
            count: N.
            random: puts the members of a pack in order.
        """
        packs = split_packs(packs, count)
        starts = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.bincount(packs), out=starts[1:])
        members = sorted_at_random(packs, random)
        return cls(small(widths), small(members), starts)

    def fill(
        self, rows: Integers, order: NDArray[np.int64], random: np.random.Philox
    ) -> tuple[Integers, NDArray[np.int64]]:
        """Rows pack after pack, and the start of each pack in them, and M.

        Args:
            rows: of the slots, each no longer than its slot is wide.
            order: of the packs.
            random: rows are shuffled by it among slots of equal width.
        """
        sizes = np.diff(self.starts)[order]
        starts = np.zeros_like(self.starts)
        np.cumsum(sizes, out=starts[1:])
        places = np.repeat(self.starts[order] - starts[:-1], sizes)
        places += np.arange(places.size)
        return rows[sorted_at_random(self.widths, random)][self.members[places]], starts

    def varied(self, capacity: int, random: np.random.Philox) -> "PackTemplate":
        """Another template of as many packs, by chance; this one where that takes more packs."""
        packs = pack_by_chance(np.sort(self.widths), capacity, random)
        count = self.starts.size - 1
        return self if packs.max() >= count else self.of(self.widths, packs, count, random)


def pack_by_chance(
    widths: NDArray[Any], capacity: int, random: np.random.Philox
) -> NDArray[np.int64]:
    """The pack of each slot, a random half of them put in first: in some more packs, or in none."""
    half = random.random_raw(widths.size) >> np.uint64(63) == 1
    return pack(widths, capacity, first=half)


class Slots:
    """The slots of a systematic pass over rows in an order that is the same in every epoch.

    Slot k holds the row in which mass (k + 1) 2^b - offset lies, for the one random offset of the
    epoch, 0 <= offset < 2^b. So over all epochs it holds rows that touch the mass from k 2^b
    (not included) to (k + 1) 2^b, and of offsets in a part of [0, 2^b) those that touch a part
    of it: the longest of them is the width of the slot.

    Args:
        lengths: of the rows in that order.
        masses: of the rows, shape (n,); those of mass 0 count for nothing.
        bits: b.
        runs: of each row, the number of the run it belongs to: in a run lengths ascend, or descend.
            Without, they ascend.
    """

    def __init__(
        self,
        lengths: Integers,
        masses: NDArray[np.int64],
        bits: int,
        runs: NDArray[np.int64] | None = None,
    ) -> None:
        if not masses.all():
            drawn = masses > 0
            lengths, masses = lengths[drawn], masses[drawn]
            runs = None if runs is None else runs[drawn]
        self._lengths, self._masses, self._bits = lengths, masses, bits
        self._turns: NDArray[np.int64] | None = None
        if runs is not None:
            last = np.flatnonzero(np.diff(runs))
            # Where a run ends and the next one begins: a unit of mass of each row.
            ends = np.cumsum(masses)[last]
            self._turns = np.concatenate([ends, ends + 1])
            self._at_turns = np.concatenate([lengths[last], lengths[last + 1]])

    def widths(self, part: int = 0, parts: int = 1) -> Integers:
        """Widths of the slots for the offsets of one of equal parts, a power of two of them."""
        span = (1 << self._bits) // parts
        least = part * span
        # What a slot touches ends with its row at the least offset, the longest of one run.
        widths = self._at(least)
        if self._turns is None:
            return widths
        # It begins with that at the greatest: one of them is the longest, unless a run ends there.
        widths = np.maximum(widths, self._at(least + span - 1))
        slots = (self._turns + least - 1) >> self._bits
        begins = ((slots + 1) << self._bits) - least - span
        touches = (slots < widths.size) & (self._turns > begins)
        np.maximum.at(widths, slots[touches], self._at_turns[touches])
        return widths

    def _at(self, offset: int) -> Integers:
        """The lengths in the slots at an offset."""
        counts, _ = count_draws(self._masses.copy(), offset, self._bits)
        return self._lengths.repeat(counts)

    def mean_tokens(self) -> float:
        """Tokens of an epoch in expectation."""
        return sum_of(self._lengths, self._masses) * 2.0**-self._bits

    def parts(self) -> int:
        """Parts of offsets, a power of two, that are worth a template of their own."""
        widths = self.widths()
        excess = int(widths.sum(dtype=np.int64)) / self.mean_tokens() - 1.0
        parts = 1
        while parts < _MOST_TEMPLATES and 2 * parts * widths.size <= _MOST_SLOTS:
            if excess <= parts * _MOST_EXCESS:
                break
            parts *= 2
        return parts


def small(numbers: Integers) -> Integers:
    """Numbers >= 0 in half the memory, where they fit."""
    return numbers.astype(np.int32) if int(numbers.max(initial=0)) < 1 << 31 else numbers


def sum_of(values: NDArray[Any], weights: NDArray[Any]) -> float:
    """The weighted sum: the same bits on every machine, which those of BLAS are not."""
    return float(np.multiply(values, weights, dtype=np.float64).sum())
