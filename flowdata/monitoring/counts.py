"""Counts: which rows were drawn, and how often those of each group were."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowdata.core.groups import Groups

# From so large a part of the rows on, they are counted all at once.
_MANY = 1 / 8


class Counts:
    """Adds up draws, in time that grows with the draws that are added, not with the rows.

    Args:
        rows: n.
        groupings: of the rows, in one way or several.

    Attributes:
        draws: that were added.
        rows_seen: rows that were drawn at least once.
        sizes, of_groups: rows, and draws, of each group, for each grouping.
    """

    def __init__(self, rows: int, groupings: Sequence[Groups]) -> None:
        self._groupings = groupings
        self._seen = np.zeros(rows, dtype=np.bool_)
        self.draws = self.rows_seen = 0
        self.sizes = [groups.sizes() for groups in groupings]
        self.of_groups = [np.zeros(len(groups), dtype=np.int64) for groups in groupings]

    def add(self, rows: NDArray[np.int64]) -> None:
        """Add draws, by the row of each."""
        if rows.size > _MANY * self._seen.size:
            self.add_counts(np.bincount(rows, minlength=self._seen.size))
            return
        first_seen = np.unique(rows[~self._seen[rows]])
        self._seen[first_seen] = True
        self.rows_seen += first_seen.size
        self.draws += rows.size
        for total, groups in zip(self.of_groups, self._groupings, strict=True):
            total += np.bincount(groups.codes[rows], minlength=total.size)

    def add_counts(self, counts: NDArray[np.int64]) -> None:
        """Add draws, by how often each row was drawn, shape (n,)."""
        self._seen |= counts > 0
        self.rows_seen = int(np.count_nonzero(self._seen))
        self.draws += int(counts.sum())
        for total, groups in zip(self.of_groups, self._groupings, strict=True):
            # Sums of whole numbers are exact in float64, up to 2^53 draws.
            sums = np.bincount(groups.codes, weights=counts, minlength=total.size)
            total += sums.astype(np.int64)
