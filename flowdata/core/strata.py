"""Strata: groups of rows of which every batch gets its share."""

import functools
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import as_array
from flowdata.core.weights import FlowWeights
from flowdata.errors import MismatchError

_MOST_STRATA = 1 << 24


@dataclass(frozen=True, eq=False)
class Strata:
    """Groups of rows; every batch gets each group, and its heavy and light rows, in proportion.

    The epoch's draws, sorted by group and weight, are cut into ``batch_size`` equal parts, and each
    batch takes one draw from each part. So the share of every group, and of easy and hard samples
    in it, is the same in all batches up to two draws; of weights that were made group by group, as
    `flowdata.mix` makes them, that of every group up to one. How often a row is drawn in an epoch,
    and in expectation, does not change. Gradients get less noisy by as much as groups and weights
    explain them.

    Args:
        groups: a group for each row, such as its label: n integers.
        batch_size: draws that are trained on together, by all ranks.
        levels: parts of a group, from heavy to light, of equally many rows.

    Raises:
        ValueError: for groups that are not integers, or sizes below 1.

    >>> weights = FlowWeights.from_weights([1.0, 0.5, 1.0, 0.5])
    >>> Strata([0, 0, 1, 1], batch_size=2, levels=2).codes(weights).tolist()
    [0, 1, 2, 3]
    """

    groups: ArrayLike
    batch_size: int
    levels: int = 5

    def __post_init__(self) -> None:
        # A copy, as of losses: what is drawn and its fingerprint are made of it at other times.
        groups = np.array(as_array(self.groups))
        groups.flags.writeable = False
        if groups.ndim != 1 or groups.dtype.kind not in "iub":
            raise ValueError(
                f"groups must be n integers, one for each row, got {groups.dtype} of shape "
                f"{groups.shape}; number them, by np.unique(names, return_inverse=True)[1]"
            )
        for name in ("batch_size", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        object.__setattr__(self, "groups", groups)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the groups and sizes."""
        groups = np.ascontiguousarray(self.groups, dtype=np.int64)
        digest = xxhash.xxh3_128(f"{self.batch_size}|{self.levels}|".encode())
        digest.update(groups.data)
        return digest.hexdigest()

    def codes(self, weights: FlowWeights) -> NDArray[np.int64]:
        """The stratum of each row, shape (n,): group by group, from heavy to light.

        Raises:
            MismatchError: for another number of groups than of weights.
            ValueError: for more strata than can be told apart.
        """
        groups = np.asarray(self.groups)
        if groups.size != len(weights):
            raise MismatchError(
                f"strata are of {groups.size:,} rows, but there are {len(weights):,} weights; "
                "give the groups of the rows that were scored, in their order"
            )
        _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if sizes.size * self.levels > _MOST_STRATA:
            raise ValueError(f"{sizes.size:,} groups of {self.levels} levels are too many")
        # Group by group, and in each from heavy to light, so that levels are runs of the order.
        order = np.lexsort((-weights.relative, numbers))
        places = np.arange(groups.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        levels = places * self.levels // np.repeat(sizes, sizes)
        codes = np.empty(groups.size, dtype=np.int64)
        codes[order] = numbers[order] * self.levels + levels
        return codes


def deal_to_batches(
    slots: NDArray[np.intp],
    batch_size: int,
    random: np.random.Philox,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.intp]:
    """Deal sorted draws out to batches, each of which gets one of every equal part of them.

    Draws that are over, spread evenly, make the last batch. Within a batch they are in a random
    order, so that ranks which share it are alike.

    Args:
        slots: rows by draw, sorted by group.
        batch_size: of every batch but the last.
        random: what deals.
        groups: of all rows: batches have the same number of draws of a group, up to one. Without,
            up to two, where a group begins and ends within a part.
    """
    batches, over = divmod(slots.size, batch_size)
    offset = (int(random.random_raw()) >> 11) * 2.0**-53
    last = ((np.arange(over) + offset) * (slots.size / max(over, 1))).astype(np.int64)
    last = np.minimum(last, slots.size - 1)
    # Row k of this matrix is the k-th part of the epoch, of which each batch gets one draw.
    parts = np.delete(slots, last).reshape(batch_size, batches)
    dealt = _each_shuffled(parts, random)
    if groups is not None and batches:
        _even_out(dealt, groups[parts[:, [0, -1]]], groups, random)
    by_batch = dealt.T
    whole = _each_shuffled(by_batch, random).reshape(-1)
    return np.concatenate([whole, _each_shuffled(slots[last][None], random)[0]])


def _even_out(
    dealt: NDArray[np.intp],
    ends: NDArray[np.int64],
    groups: NDArray[np.int64],
    random: np.random.Philox,
) -> None:
    """Let the last part of each group go first to the batches that have none of its first part.

    Args:
        dealt: rows, by part and batch; changed in place.
        ends: the first and the last group of each part, shape (parts, 2).
        groups: of all rows.
        random: chooses among batches that are alike.
    """
    goes_on = np.append(False, ends[1:, 0] == ends[:-1, 1]) & (ends[:, 0] != ends[:, 1])
    for part in np.flatnonzero(goes_on).tolist():
        group = ends[part, 0]
        first = int(np.searchsorted(ends[:, 1], group))
        has_more = groups[dealt[first]] == group
        order = np.lexsort((random.random_raw(has_more.size), has_more))
        rows = dealt[part]
        of_group = groups[rows] == group
        dealt[part, order] = np.concatenate([rows[of_group], rows[~of_group]])


def _each_shuffled(rows: NDArray[np.intp], random: np.random.Philox) -> NDArray[np.intp]:
    """Each row of a matrix in a random order of its own."""
    keys = random.random_raw(rows.size).reshape(rows.shape)
    return np.take_along_axis(rows, keys.argsort(axis=1, kind="stable"), axis=1)
