"""ShardPacks: the draws of an epoch of shards, put together into packs, cluster by cluster."""

import copy
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.clusters import Clusters, cluster_shards, sums_before
from flowdata.core.lengths import (
    HasLengths,
    as_lengths,
    at_least_one,
    fingerprint_of,
    require_fitting,
    require_short,
)
from flowdata.core.packing import pack, split_packs
from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits, sorted_at_random
from flowdata.core.shard_plan import ShardPlan

_MOST_TOKENS = 1 << 24
_LEAST_PACKS = 256
"""Expected packs of a cluster: it wastes about one, by its last pack and by what is not known."""


class ClusterPlan(ShardPlan):
    """A `ShardPlan` of clusters, in which each lays its rows in order of length, the longest first.

    The clusters of a section follow one another as their rows do; sections come in a random order.

    Args:
        plan: whose weights, options, seed and epoch it has.
        clusters: in place of its shards.
        lengths: of the rows, up to ``longest``; shape (n,).
        longest: the greatest that a length can be.
    """

    def __init__(
        self, plan: ShardPlan, clusters: Clusters, lengths: NDArray[np.int32], longest: int
    ) -> None:
        self._sections, self._lengths, self._longest = clusters.sections, lengths, longest
        super().__init__(
            plan.weights, clusters.bounds, epoch=plan.epoch, seed=plan.seed, epoch_size=len(plan)
        )
        # The weights have it already.
        self.alpha = plan.alpha

    def draws_in_order(self, cluster: int) -> NDArray[np.int64]:
        """The rows of a cluster that are drawn, in the order of the pass."""
        order, counts = self._systematic(cluster)
        drawn: NDArray[np.int64] = np.repeat(order, counts) + self.bounds[cluster]
        return drawn

    def widths(self, cluster: int) -> NDArray[np.int64]:
        """The most that each draw of a cluster can be long, in any epoch: descending.

        Of these the last one is not drawn in every epoch.
        """
        first, last = self.bounds[cluster : cluster + 2].tolist()
        order = np.argsort(self._shortness(first, last), kind="stable")
        edges = np.cumsum(self._masses.between(first, last)[order])
        begins = np.arange(-(-int(edges[-1]) >> self._mass_bits)) << self._mass_bits
        found = np.searchsorted(edges, begins, side="right")
        return self._lengths[first:last][order][found].astype(np.int64)

    def most_draws(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The most draws of each cluster, and whether it has one less in some epochs."""
        masses = np.diff(self._masses.edges)
        fraction = (1 << self._mass_bits) - 1
        return -(-masses >> self._mass_bits), (masses & fraction) > 0

    def _row_order(self, shard: int, first: int, last: int) -> NDArray[np.int64]:
        random = random_bits(self.seed, self.epoch, Purpose.ROWS_OF_SHARD, shard)
        return sorted_at_random(self._shortness(first, last), random)

    def _shortness(self, first: int, last: int) -> NDArray[np.int32]:
        return self._longest - self._lengths[first:last]

    def _order_of_shards(self) -> NDArray[np.int64]:
        order = self.section_order()
        return _runs(self._sections[order], self._sections[order + 1])

    def section_order(self) -> NDArray[np.int64]:
        """The sections in the order in which an epoch reads them."""
        sections = self._sections.size - 1
        order = KeyedPermutation(
            sections, seed=self.seed, epoch=self.epoch, purpose=Purpose.SHARD_ORDER
        )
        return order(np.arange(sections))


class ShardPacks:
    """The packs of an epoch of shards: N in every epoch, each of at most ``max_length`` tokens.

    Neighbouring rows form clusters (see `Clusters`), the same in all epochs, and all rows of a
    pack are of one. An epoch lays its clusters one after another, and in each the rows in order of
    length, the longest first, at random among equal ones. So the k-th draw of a cluster is the row
    in which its mass (k+1) 2^b - carry lies, 0 <= carry < 2^b being what the clusters before it
    have left over: whatever that is, the row touches the mass from k 2^b to (k+1) 2^b, and is no
    longer than the longest row there, its *width*. A cluster of mass m has ceil(m / 2^b) draws, or
    one less: then the last. Its widths are packed once; in each epoch the draws go where their
    widths are, shuffled among equal ones. So no pack is ever longer than ``max_length``, and the
    widths of a cluster exceed the lengths of its draws by less than one longest row.

    A pack would be empty in some epochs if it had the last width alone. Then the cluster has one
    pack less. The number of clusters with all their draws is the same in every epoch, as their sum
    is M; so N, that of all packs if as many as possible of those clusters are such, is never
    exceeded. An epoch with less splits packs of several draws.

    Packs have numbers [0, N) in reading order, as draws have in a `ShardPlan`.

    Args:
        plan: of shards, systematic, without an arrangement.
        lengths: tokens of each row: n whole numbers, or a LossTable that has them.
        max_length: tokens of a pack.
        batch_size: packs that are trained on together, by all ranks: N is a multiple of it.
        least_draws: of a cluster, if all shards together have them; besides, it has those for 256
            packs.
        too_long: "raise" for rows longer than ``max_length``, or "truncate" to count them as
            ``max_length``. Rows of weight 0 may have any length.

    Attributes:
        plan: the draws of the epoch.
        lengths: tokens of each row, ``max_length`` at most: int32, shape (n,).
        bounds: first row of each shard, and n.
        shares: of each shard, of the rows the share that an epoch draws, expected.
        fill: of the tokens that there is room for, the share that an epoch has, expected.

    Raises:
        MismatchError: for another number of lengths than of rows.
        ValueError: for lengths that are none, plans that cannot be packed so, and fewer draws than
            packs.

    >>> plan = ShardPlan(np.ones(6), np.array([0, 2, 6]))
    >>> packs = ShardPacks(plan, [4, 3, 2, 1, 2, 4], max_length=6)
    >>> len(packs), sorted(row for pack in packs.of(np.arange(3)) for row in pack.tolist())
    (3, [0, 1, 2, 3, 4, 5])
    """

    arrange = None

    def __init__(
        self,
        plan: ShardPlan,
        lengths: HasLengths | ArrayLike,
        max_length: int,
        *,
        batch_size: int = 1,
        least_draws: int = 0,
        too_long: Literal["raise", "truncate"] = "raise",
    ) -> None:
        max_length = at_least_one(max_length, "max_length")
        self._batch_size = at_least_one(batch_size, "batch_size")
        _require_fitting(plan, max_length, too_long)
        found = as_lengths(lengths)
        require_fitting(found, plan.weights)
        if too_long == "raise":
            require_short(found, plan.weights, max_length)
        self.lengths = np.clip(found, 0, max_length).astype(np.int32)
        self.max_length, self.too_long, self.bounds = max_length, too_long, plan.bounds
        self._fingerprint = fingerprint_of(found)
        expected = _Expected(plan, self.lengths, max_length)
        tokens = float(sums_before(expected.packs, plan.bounds)[-1])
        least = max(_LEAST_PACKS, tokens * least_draws / len(plan))
        self._clusters = cluster_shards(expected.packs, plan.bounds, least)
        drawn, rows = np.diff(sums_before(expected.drawn, plan.bounds)), np.diff(plan.bounds)
        self.shares = np.minimum(drawn / np.maximum(rows, 1), 1.0)
        self.plan = ClusterPlan(plan, self._clusters, self.lengths, max_length)
        self._pack_clusters()
        self.fill = tokens / self._number
        self._layout: _Layout | None = None

    def __len__(self) -> int:
        return self._number

    def __repr__(self) -> str:
        return (
            f"ShardPacks(packs={len(self):,}, max_length={self.max_length:,}, plan={self.plan!r})"
        )

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self.plan.epoch

    @property
    def seed(self) -> int:
        """That of all epochs."""
        return self.plan.seed

    def identity(self) -> dict[str, Any]:
        """What decides which rows are in which pack, except seed and epoch; JSON-able."""
        division = xxhash.xxh3_128(self._clusters.bounds.astype("<i8").tobytes())
        division.update(self._clusters.sections.astype("<i8").tobytes())
        packs = {
            "lengths": self._fingerprint,
            "max_length": self.max_length,
            "batch_size": self._batch_size,
            "too_long": self.too_long,
            "clusters": division.hexdigest(),
        }
        return self.plan.identity() | {"packs": packs}

    def at_epoch(self, epoch: int, *, seed: int | None = None) -> Self:
        """The packs of another epoch (and seed)."""
        plan = self.plan.at_epoch(epoch, seed=seed)
        if plan is self.plan:
            return self
        packs = copy.copy(self)
        packs.plan = plan
        return packs

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_layout": None}

    @property
    def sections(self) -> int:
        """Number of sections."""
        return self._clusters.sections.size - 1

    @property
    def first_of_section(self) -> NDArray[np.int64]:
        """The first pack of each section in reading order, and N."""
        layout = self._laid_out()
        return layout.first_packs[layout.sections]

    def first_of_clusters(self, section: int) -> NDArray[np.int64]:
        """The first pack of each cluster of a section, by its place in reading order, and the end.

        Those of a cluster follow one another, and are best read together.
        """
        layout = self._laid_out()
        first, last = layout.sections[section : section + 2].tolist()
        return layout.first_packs[first : last + 1]

    def of(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of some packs, each once; those of neighbours together are made fastest."""
        layout = self._laid_out()
        ordinals = np.searchsorted(layout.first_packs, numbers, side="right") - 1
        found: list[NDArray[np.int64]] = [_NONE] * numbers.size
        for ordinal in np.unique(ordinals).tolist():
            rows, starts = self._rows_of(layout, ordinal)
            for place in np.flatnonzero(ordinals == ordinal).tolist():
                pack = int(numbers[place] - layout.first_packs[ordinal])
                found[place] = rows[starts[pack] : starts[pack + 1]]
        return found

    def _pack_clusters(self) -> None:
        """Pack each cluster once, and keep how many packs it has."""
        most, varies = self.plan.most_draws()
        self._most_draws = most
        self._packs = np.zeros_like(most)
        # Whether it has one pack less where its last draw is not drawn.
        self._is_loose = np.zeros(most.size, dtype=np.bool_)
        for cluster in np.flatnonzero(most).tolist():
            packed = self._template(cluster)
            self._packs[cluster] = packed.max() + 1
            self._is_loose[cluster] = varies[cluster] and _is_alone(packed)
        whole = len(self.plan) - int((most - varies).sum())
        loose = int(self._is_loose.sum())
        needed = int(self._packs.sum()) - loose + min(loose, whole)
        self._number = -(-needed // self._batch_size) * self._batch_size
        if self._number > len(self.plan):
            raise ValueError(
                f"an epoch of {len(self.plan):,} draws makes {needed:,} packs of "
                f"max_length={self.max_length:,}, and cannot be split into a multiple of "
                f"batch_size={self._batch_size:,}: draw more, or take a smaller batch_size"
            )

    def _template(self, cluster: int) -> NDArray[np.int64]:
        """The pack of each draw of a cluster that has all its draws."""
        return pack(self.plan.widths(cluster), self.max_length)

    def _rows_of(
        self, layout: "_Layout", ordinal: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a cluster, pack after pack, and where each pack begins and the last ends."""
        cluster = int(self.plan.shard_order[ordinal])
        widths = self.plan.widths(cluster)
        packed = pack(widths, self.max_length)
        drawn = self.plan.draws_in_order(cluster)
        if drawn.size < packed.size and self._is_loose[cluster]:
            packed -= packed > packed[-1]
        first, last = layout.first_packs[ordinal : ordinal + 2].tolist()
        packed = split_packs(packed[: drawn.size], last - first)
        random = random_bits(self.seed, self.epoch, Purpose.PACKED_ROWS, cluster)
        # Packs of the longest come first, and a rank may have the first packs only.
        packed = sorted_at_random(np.zeros(last - first, dtype=np.int64), random)[packed]
        # Draws of one row lie side by side, and would share a pack.
        mixed = drawn[sorted_at_random(self.max_length - widths[: drawn.size], random)]
        starts = np.zeros(last - first + 1, dtype=np.int64)
        np.cumsum(np.bincount(packed, minlength=last - first), out=starts[1:])
        return mixed[sorted_at_random(packed, random)], starts

    def _laid_out(self) -> "_Layout":
        if self._layout is None:
            order, drawn = self.plan.shard_order, np.diff(self.plan.first_slots)
            packs = self._packs[order]
            packs -= self._is_loose[order] & (drawn < self._most_draws[order])
            # What an epoch lacks, packs are split for: all clusters alike by what they can give.
            can_split = np.cumsum(drawn - packs)
            lacking = self._number - int(packs.sum())
            if lacking:
                packs += np.diff(can_split * lacking // can_split[-1], prepend=0)
            first_packs = np.zeros(order.size + 1, dtype=np.int64)
            np.cumsum(packs, out=first_packs[1:])
            sizes = np.diff(self._clusters.sections)[self.plan.section_order()]
            self._layout = _Layout(first_packs, np.concatenate([[0], np.cumsum(sizes)]))
        return self._layout


class _Layout(NamedTuple):
    """Where the packs of an epoch lie.

    Attributes:
        first_packs: first pack of each cluster, in reading order, and N.
        sections: place in that order of the first cluster of each section, and of the end.
    """

    first_packs: NDArray[np.int64]
    sections: NDArray[np.int64]


class _Expected(NamedTuple):
    """What an epoch has of each row, in expectation: of the rows [first, last)."""

    plan: ShardPlan
    lengths: NDArray[np.int32]
    max_length: int

    def draws(self, first: int, last: int) -> NDArray[np.float64]:
        weights = self.plan.weights
        return weights.part(first, last) * (len(self.plan) / weights.total)

    def drawn(self, first: int, last: int) -> NDArray[np.float64]:
        """The chance that it is drawn at all."""
        return np.minimum(self.draws(first, last), 1.0)

    def packs(self, first: int, last: int) -> NDArray[np.float64]:
        """Its tokens, in packs."""
        return self.draws(first, last) * self.lengths[first:last] / self.max_length


_NONE = np.zeros(0, dtype=np.int64)


def _runs(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of runs, one after another."""
    sizes = stops - starts
    ends = np.cumsum(sizes)
    runs: NDArray[np.int64] = np.arange(int(sizes.sum())) + np.repeat(starts - ends + sizes, sizes)
    return runs


def _is_alone(packed: NDArray[np.int64]) -> bool:
    """Whether the last draw has a pack for itself."""
    return int(np.count_nonzero(packed == packed[-1])) == 1


def _require_fitting(plan: ShardPlan, max_length: int, too_long: str) -> None:
    if plan.scheme != "systematic":
        raise ValueError(
            f'packs of shards need scheme="systematic", got {plan.scheme!r}: of independent draws '
            "a shard has more or fewer in each epoch, so that its packs cannot be counted before"
        )
    if plan.arrange is not None:
        raise ValueError(
            f"packs of shards are put together by length alone: give no arrange="
            f"{type(plan.arrange).__name__}(...)"
        )
    if max_length >= _MOST_TOKENS:
        raise ValueError(f"max_length must be below 2^24 tokens, got {max_length:,}")
    if too_long not in ("raise", "truncate"):
        raise ValueError(f'too_long must be "raise" or "truncate", got {too_long!r}')
