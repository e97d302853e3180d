"""Rows laid group by group, so that each group's draws add up to its share in every epoch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.masses import Masses
from flowdata.core.permutation import CHUNK


class GroupLayout:
    """A systematic pass over groups one after the other, in a single pass over blocks of rows.

    What lies before a group is known from the masses of whole groups. So each group goes on where
    it was left, whenever one of its rows comes: as if its rows had been laid next to each other.

    Args:
        codes: the group of each row, shape (n,).
        masses: of the rows.
        bits: 2^bits is the mass of one draw.
    """

    def __init__(self, codes: NDArray[Any], masses: Masses, bits: int) -> None:
        self._codes = codes
        self._masses = masses
        self._bits = bits
        self._of_groups = np.zeros(int(codes.max()) + 1, dtype=np.int64)
        for start in range(0, codes.size, CHUNK):
            stop = min(start + CHUNK, codes.size)
            np.add.at(self._of_groups, codes[start:stop], masses.between(start, stop))

    def carries(self, offset: int) -> NDArray[np.int64]:
        """The mass of less than a draw before each group, where ``offset`` is before the first."""
        before = offset + np.cumsum(self._of_groups) - self._of_groups
        carries: NDArray[np.int64] = before & (1 << self._bits) - 1
        return carries

    def count_draws(
        self, start: int, rows: NDArray[np.int64], carries: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As `masses.count_draws`, of the rows of a block, of all groups.

        Args:
            start: the first row of the block.
            rows: all of its rows, counted from there, in the order in which each group has them.
            carries: what each group carries on, which is kept up to date.

        Returns:
            The rows in the order of groups, and the draws of each.
        """
        codes = self._codes[start : start + CHUNK].take(rows)
        # A stable sort of numbers of 8 or 16 bits takes time in proportion to their number.
        order = codes.argsort(kind="stable")
        rows, codes = rows.take(order), codes.take(order)
        firsts = np.append(0, np.flatnonzero(codes[1:] != codes[:-1]) + 1)
        groups, lasts = codes[firsts], np.append(firsts[1:], rows.size) - 1
        laid = np.cumsum(self._masses.of(start, rows))
        before = np.append(0, laid[lasts[:-1]])
        laid += (carries[groups] - before).repeat(lasts - firsts + 1)
        carries[groups] = laid[lasts] & (1 << self._bits) - 1
        laid >>= self._bits
        draws = np.diff(laid, prepend=0)
        # The first row of a group has no other before it.
        draws[firsts] = laid[firsts]
        return rows, draws
