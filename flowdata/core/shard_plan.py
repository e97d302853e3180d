"""ShardPlan: weighted sampling of an epoch of rows that lie in shards, shard by shard."""

import functools
from collections import OrderedDict
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrangement import Arrangement
from flowdata.core.masses import Masses, count_draws
from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits
from flowdata.core.plan import EpochSize, Plan, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights

# Independent draws that are looked up at a time.
_SEARCH_BLOCK = 1 << 20


class ShardPlan(Plan):
    """How often an epoch draws each row of each shard.

    The laws of `EpochPlan` (floor or ceil of M p_i in every epoch, M p_i in expectation, M draws
    in all), in another order of the pass: shards are laid end to end in a keyed random order, and
    in each its rows in a keyed random order of their own. What a shard gets follows from the mass
    of whole shards, so an epoch begins in the time of a pass over shards, not rows; the rows of a
    shard are laid out when `counts_of` asks for them. Memory is 16 bytes a shard, 24 more while an
    epoch is drawn, and what the weights take.

    One pass over all weights is made at once; plans of other epochs share it.

    Draws have slots [0, M) in reading order: shard after shard in the order of the epoch, and in
    each as its rows lie.

    Args:
        weights: FlowWeights, a LossTable, or n non-negative weights.
        bounds: first row of each shard, and n: int64, shape (shards + 1,).
        epoch, seed, epoch_size, scheme, alpha: see `EpochPlan`. An epoch of
            ``scheme="multinomial"`` begins in the time of a pass over its draws.
        arrange: what stands next to what in a stream. Of `Strata`, each group gets its share of a
            shard's draws within one draw.
        strata: another name for ``arrange=Strata(...)``.

    Raises:
        InvalidLossError: for weights that are empty, invalid or all 0.
        MismatchError: for strata or lengths of another number of rows.
        ValueError: for an unknown option, a negative seed or an epoch without draws.

    >>> plan = ShardPlan([1.0, 3.0, 4.0], np.array([0, 2, 3]), epoch_size=8)
    >>> plan.counts().tolist(), plan.counts_of(1).tolist()
    ([1, 3, 4], [4])
    """

    _COMPUTED = ("_layout", "_kept")

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
        bounds: NDArray[np.int64],
        *,
        epoch: int = 0,
        seed: int = 0,
        epoch_size: EpochSize = "full",
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
    ) -> None:
        super().__init__(
            weights,
            epoch=epoch,
            seed=seed,
            epoch_size=epoch_size,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
        )
        self.bounds = bounds
        self._masses = Masses(self.weights, self._mass_total(), self._mass_bits, bounds)
        self._layout: _Layout | None
        self._kept: OrderedDict[int, NDArray[np.int64]] | None

    def __getitem__(self, draws: object) -> NoReturn:
        # Also what `iter` and `in` come to.
        raise TypeError(
            "a ShardPlan does not list its draws, as an EpochPlan does: counts() says how often "
            "each row is drawn, counts_of(shard) each row of a shard; a stream gives them in order"
        )

    @property
    def shard_order(self) -> NDArray[np.int64]:
        """The shards in the order in which an epoch reads them, shape (shards,)."""
        return self._laid_out().order

    @property
    def first_slots(self) -> NDArray[np.int64]:
        """The first slot of each shard in that order, and M: shape (shards + 1,)."""
        return self._laid_out().first_slots

    def counts(self) -> NDArray[np.int64]:
        """How often each row is drawn in this epoch, shape (n,), sum M."""
        shards = range(self.bounds.size - 1)
        return np.concatenate([np.zeros(0, dtype=np.int64), *map(self.counts_of, shards)])

    def counts_of(self, shard: int) -> NDArray[np.int64]:
        """How often each row of a shard is drawn in this epoch: int64, in the order of the rows.

        Raises:
            IndexError: for a number of no shard.
        """
        if not 0 <= shard < self.bounds.size - 1:
            raise IndexError(f"there is no shard {shard}: there are {self.bounds.size - 1:,}")
        first, last = self.bounds[shard : shard + 2].tolist()
        drawn, _ = self._laid_out().of(shard)
        if not drawn:
            return np.zeros(last - first, dtype=np.int64)
        if self.scheme == "multinomial":
            return self._independent(shard, self._masses.between(first, last), drawn)
        counts = np.empty(last - first, dtype=np.int64)
        order, counts_in_order = self._systematic(shard)
        counts[order] = counts_in_order
        return counts

    def draws_before(self, shard: int, *, keep: int) -> NDArray[np.int64]:
        """Draws of a shard's rows before each of them, and of all: ascending, from 0.

        Args:
            shard: its number.
            keep: of so many shards it is kept, those that were asked for last.
        """
        if self._kept is None:
            self._kept = OrderedDict()
        if shard not in self._kept:
            while len(self._kept) >= keep:
                self._kept.popitem(last=False)
            counts = self.counts_of(shard)
            before = np.zeros(counts.size + 1, dtype=np.int64)
            np.cumsum(counts, out=before[1:])
            self._kept[shard] = before
        self._kept.move_to_end(shard)
        return self._kept[shard]

    def strata_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """The stratum of each row, if there are strata."""
        return None if self._stratum_of_row is None else self._stratum_of_row[rows]

    def _systematic(self, shard: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of a shard, from its first, in the order of the pass, and the draws of each."""
        first, last = self.bounds[shard : shard + 2].tolist()
        drawn, carry = self._laid_out().of(shard)
        order = self._row_order(shard, first, last)
        masses = self._masses.between(first, last)
        counts, _ = count_draws(masses[order], carry, self._mass_bits)
        assert counts.sum() == drawn
        return order, counts

    def _order_of_shards(self) -> NDArray[np.int64]:
        shards = self.bounds.size - 1
        order = KeyedPermutation(
            shards, seed=self.seed, epoch=self.epoch, purpose=Purpose.SHARD_ORDER
        )
        return order(np.arange(shards))

    def _row_order(self, shard: int, first: int, last: int) -> NDArray[np.int64]:
        if self._stratum_of_row is None:
            order = KeyedPermutation(
                last - first,
                seed=self.seed,
                epoch=self.epoch,
                purpose=Purpose.ROWS_OF_SHARD,
                part=(shard,),
            )
            return order(np.arange(last - first))
        random = random_bits(self.seed, self.epoch, Purpose.ROWS_OF_SHARD, shard)
        # Sorted by stratum, and at random within: 24 bits for the stratum, 40 for the chance.
        keys = random.random_raw(last - first) >> 24
        keys |= self._stratum_of_row[first:last].astype(np.uint64) << 40
        return keys.argsort(kind="stable")

    def _independent(self, shard: int, masses: NDArray[np.int64], drawn: int) -> NDArray[np.int64]:
        edges = np.cumsum(masses)
        total = int(edges[-1])
        random = random_bits(self.seed, self.epoch, Purpose.ROWS_OF_SHARD, shard)
        points = np.zeros(0, dtype=np.int64)
        # Of random numbers with as many bits as the mass, those below it are even on it.
        while points.size < drawn:
            more = (random.random_raw(2 * drawn) >> np.uint64(64 - total.bit_length())).view(
                np.int64
            )
            points = np.concatenate([points, more[more < total]])
        rows = np.searchsorted(edges, points[:drawn], side="right")
        return np.bincount(rows, minlength=masses.size)

    def _laid_out(self) -> "_Layout":
        if self._layout is None:
            shards, order = self.bounds.size - 1, self._order_of_shards()
            if self.scheme == "systematic":
                random = random_bits(self.seed, self.epoch, Purpose.ROW_ORDER)
                # The one random number of a systematic pass: mass before the first row.
                offset = int(random.random_raw()) >> (64 - self._mass_bits)
                before = np.empty(shards + 1, dtype=np.int64)
                before[0] = offset
                np.cumsum(np.diff(self._masses.edges)[order], out=before[1:])
                before[1:] += offset
                carries = before[:-1] & ((1 << self._mass_bits) - 1)
                self._layout = _Layout(order, before >> self._mass_bits, carries)
            else:
                drawn = self._independent_draws_of_shards()
                first_slots = np.zeros(shards + 1, dtype=np.int64)
                np.cumsum(drawn[order], out=first_slots[1:])
                self._layout = _Layout(order, first_slots, np.zeros(shards, dtype=np.int64))
        return self._layout

    def _independent_draws_of_shards(self) -> NDArray[np.int64]:
        shards = self.bounds.size - 1
        random = random_bits(self.seed, self.epoch, Purpose.MULTINOMIAL)
        drawn = np.zeros(shards, dtype=np.int64)
        for start in range(0, self._size, _SEARCH_BLOCK):
            size = min(_SEARCH_BLOCK, self._size - start)
            points = (random.random_raw(size) >> np.uint64(64 - self._mass_bits)).view(np.int64)
            # Sorted, the search walks through the edges once.
            points.sort()
            found = np.searchsorted(self._masses.edges[1:], points, side="right")
            drawn += np.bincount(found, minlength=shards)
        return drawn


class _Layout:
    """Where the shards of one epoch lie in its systematic pass."""

    def __init__(
        self,
        order: NDArray[np.int64],
        first_slots: NDArray[np.int64],
        carries: NDArray[np.int64],
    ) -> None:
        self.order, self.first_slots, self._carries = order, first_slots, carries

    @functools.cached_property
    def ordinals(self) -> NDArray[np.int64]:
        """The place of each shard in the order."""
        ordinals = np.empty_like(self.order)
        ordinals[self.order] = np.arange(self.order.size)
        return ordinals

    def of(self, shard: int) -> tuple[int, int]:
        """Draws of a shard, and the mass that is carried into it."""
        ordinal = self.ordinals[shard]
        first, last = self.first_slots[ordinal : ordinal + 2].tolist()
        return last - first, int(self._carries[ordinal])
