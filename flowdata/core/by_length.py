"""ByLength: batches of rows that are about as long, so that little of them is padding."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.lengths import HasLengths, as_lengths, at_least_one, require_fitting
from flowdata.core.permutation import sorted_at_random
from flowdata.core.weights import FlowWeights


@dataclass(frozen=True, eq=False)
class ByLength:
    """Rows of similar length share a batch; batches come in a random order.

    The draws of an epoch are cut into windows of ``window`` batches. Each window is sorted by
    length, equal lengths at random, and cut into batches, which come in a random order, as do the
    draws within each. Which rows are drawn, and how often, does not change. An incomplete batch is
    the last of the epoch: neighbours of the sorted window (or its longest and shortest), from a
    random place, so that each draw of the window is in it with equal probability.

    Args:
        lengths: tokens of each row, n whole numbers, or a table that has them.
        batch_size: draws that are trained on together, by all ranks.
        window: batches that are sorted at a time. More have less padding, and less chance in them.

    Raises:
        ValueError: for lengths that are no whole numbers, a table without, or sizes below 1.

    >>> from flowdata import EpochPlan
    >>> lengths = [9, 1, 8, 2]
    >>> plan = EpochPlan([1.0] * 4, arrange=ByLength(lengths, batch_size=2))
    >>> sorted([sorted(lengths[row] for row in plan[:2]), sorted(lengths[row] for row in plan[2:])])
    [[1, 2], [8, 9]]
    """

    lengths: HasLengths | ArrayLike
    batch_size: int
    window: int = 50

    def __post_init__(self) -> None:
        for name in ("batch_size", "window"):
            object.__setattr__(self, name, at_least_one(getattr(self, name), name))
        object.__setattr__(self, "lengths", as_lengths(self.lengths))

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the lengths and sizes."""
        digest = xxhash.xxh3_128(f"{self.batch_size}|{self.window}|".encode())
        digest.update(self._lengths.data)
        return digest.hexdigest()

    def require_fitting(self, weights: FlowWeights) -> None:
        """Make sure that lengths are those of the rows.

        Raises:
            MismatchError: for another number of lengths than of weights.
            ValueError: for rows of positive weight that are shorter than 1.
        """
        require_fitting(self._lengths, weights)

    def arranged(self, rows: NDArray[Any], random: np.random.Philox) -> NDArray[Any]:
        """The rows of an epoch's draws in the order of their batches."""
        order = self._sorted_windows(rows, random)
        whole, over = divmod(rows.size, self.batch_size)
        if over:
            # A window that is cut short is the last. Round its end, as all draws of it are to be
            # left out alike: loaders with drop_last=True train on none of these.
            first = whole // self.window * self.window * self.batch_size
            size = rows.size - first
            place = int(random.random_raw()) % size
            left_out = first + (place + np.arange(over)) % size
            order = np.concatenate([np.delete(order, left_out), order[left_out]])
        batches = sorted_at_random(np.arange(whole) // self.window, random)
        in_batches = order[: rows.size - over].reshape(whole, self.batch_size)[batches]
        order = np.concatenate([in_batches.reshape(-1), order[rows.size - over :]])
        within = sorted_at_random(np.arange(rows.size) // self.batch_size, random)
        return rows[order[within]]

    def _sorted_windows(self, rows: NDArray[Any], random: np.random.Philox) -> NDArray[np.int64]:
        """The draws window by window, sorted by length in each."""
        lengths = np.maximum(self._lengths[rows], 0)
        windows = np.arange(rows.size) // (self.window * self.batch_size)
        bits = int(lengths.max()).bit_length()
        if int(windows[-1]).bit_length() + bits > 63:
            lengths = np.unique(lengths, return_inverse=True)[1]
            bits = rows.size.bit_length()
        return sorted_at_random(windows << bits | lengths, random)

    @property
    def _lengths(self) -> NDArray[np.int64]:
        assert isinstance(self.lengths, np.ndarray)
        return self.lengths
