"""EpochPlan: weighted sampling of an epoch, as a pure function of (weights, seed, epoch)."""

import copy
import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, Self, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrangement import Arrangement, resolve
from flowdata.core.by_length import ByLength
from flowdata.core.group_layout import GroupLayout
from flowdata.core.masses import MOST_DRAWS, Masses, count_draws, draw_bits
from flowdata.core.permutation import CHUNK, KeyedPermutation, Purpose, random_bits, shuffled
from flowdata.core.steps import draws_of_step
from flowdata.core.strata import Strata, deal_to_batches
from flowdata.core.weights import FlowWeights, HasWeights, as_weights

EpochSize: TypeAlias = int | float | Literal["full", "ess", "distinct"]
Scheme: TypeAlias = Literal["systematic", "multinomial"]

# Independent draws are points on the whole mass: as fine as a sum in int64 allows.
_MULTINOMIAL_BITS = 61
# Points that are looked up at a time: their temporary arrays stay small beside the plan.
_SEARCH_BLOCK = 1 << 20


class Plan:
    """What the plans of all doors have: weights, the size, number and seed of an epoch.

    ``weights`` are those that are drawn by, after ``alpha``. A plan computes an epoch when it is
    asked for a draw of it; `released` lets go of that.
    """

    _COMPUTED: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        epoch: int,
        seed: int,
        epoch_size: EpochSize,
        scheme: Scheme,
        alpha: float,
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
    ) -> None:
        if scheme not in ("systematic", "multinomial"):
            raise ValueError(f'scheme must be "systematic" or "multinomial", got {scheme!r}')
        self.arrange = resolve(arrange, strata)
        """What stands next to what: Strata, ByLength, or None."""
        strata = self.arrange if isinstance(self.arrange, Strata) else None
        if strata is not None and scheme != "systematic":
            raise ValueError('strata need scheme="systematic": independent draws have none')
        self.weights = as_weights(weights).power(alpha)
        """The weights that are drawn by, after `alpha`."""
        self.strata = strata
        self.by_length = self.arrange if isinstance(self.arrange, ByLength) else None
        if self.by_length is not None:
            self.by_length.require_fitting(self.weights)
        self._stratum_of_row = None if strata is None else strata.codes(self.weights)
        self.seed = non_negative(seed, "seed")
        self.epoch = non_negative(epoch, "epoch")
        self.scheme = scheme
        self.alpha = alpha
        self._size = resolve_epoch_size(self.weights, epoch_size)
        self._mass_bits = draw_bits(self._size) if scheme == "systematic" else _MULTINOMIAL_BITS
        self._release()

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(draws={self._size:,}, rows={len(self.weights):,}, "
            f"epoch={self.epoch}, seed={self.seed}, scheme={self.scheme!r})"
        )

    def identity(self) -> dict[str, Any]:
        """What decides which rows an epoch draws, except seed and epoch; JSON-able.

        A saved position means the same draw in every plan of this identity.
        """
        arranged = {"by_length": self.by_length.fingerprint} if self.by_length else {}
        return {
            "epoch_size": len(self),
            "scheme": self.scheme,
            "alpha": self.alpha,
            "weights": self.weights.fingerprint,
            "strata": self.strata.fingerprint if self.strata else "",
            **arranged,
        }

    def released(self) -> Self:
        """The same plan without what it has computed of its epoch."""
        # `__getstate__` leaves out what was computed, for copies as for pickles.
        return copy.copy(self)

    def at_epoch(self, epoch: int, *, seed: int | None = None) -> Self:
        """The plan of another epoch (and seed) of the same weights and options."""
        epoch = non_negative(epoch, "epoch")
        seed = self.seed if seed is None else non_negative(seed, "seed")
        if (epoch, seed) == (self.epoch, self.seed):
            return self
        plan = self.released()
        plan.epoch, plan.seed = epoch, seed
        return plan

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | dict.fromkeys(self._COMPUTED)

    def _release(self) -> None:
        self.__dict__ |= dict.fromkeys(self._COMPUTED)

    def _mass_total(self) -> int:
        """Units of mass of all rows together."""
        return (self._size if self.scheme == "systematic" else 1) << self._mass_bits


class EpochPlan(Plan):
    """The draws of one epoch: an immutable sequence of M row numbers.

    ``scheme="systematic"``: row i is drawn floor(M p_i) or ceil(M p_i) times in every epoch and
    M p_i times in expectation, p_i = w_i / sum(w). The probabilities are laid end to end as
    integers that sum to M 2^b exactly, rows in a random order, and each of M equidistant points
    with one random offset picks the row it falls on (systematic resampling: Kitagawa 1996;
    Carpenter, Clifford and Fearnhead 1999). Draws are then put in a keyed random order.
    Rows are shuffled within blocks of 16,384 neighbours, and the blocks are shuffled: so no
    period in the file shows, and each part of the file gets its share in every epoch. Rows of
    weights that were made group by group are laid by group: each group is drawn floor or ceil of
    its share times M in every epoch.

    ``scheme="multinomial"``: M independent draws, as ``WeightedRandomSampler`` makes them, but
    exact for any number of rows.

    The plan computes an epoch on first use, in about 20 ns a row, and then holds 4 bytes a draw.
    A row whose expected count is below 2^-40 or so is never drawn, nor is one of weight 0.

    Args:
        weights: FlowWeights, a LossTable, or n non-negative weights.
        epoch: number of the epoch, >= 0.
        seed: >= 0.
        epoch_size: M: an int; a float, as a fraction of n; "full", n draws; "ess", the effective
            sample size; or "distinct", floor(sum w / max w): no row twice in an epoch, each in
            it with probability w_i / max w (times floor(s) / s for s = sum w / max w).
        scheme: "systematic" or "multinomial".
        alpha: draw by w^alpha; the rest of the weight is ``FlowWeights.residual(alpha)``.
        arrange: what stands next to what: `Strata`, to fill every batch evenly from groups of rows
            (the plan then takes about 300 ns a row and 40 bytes while it is computed), or
            `ByLength`, to fill each with rows that are about as long. Default: at random.
        strata: another name for ``arrange=Strata(...)``.

    Raises:
        InvalidLossError: for weights that are empty, invalid or all 0.
        MismatchError: for strata or lengths of another number of rows.
        ValueError: for an unknown option, a negative seed or an epoch without draws.

    >>> plan = EpochPlan([1.0, 3.0], epoch_size=8, seed=1)
    >>> sorted(plan)
    [0, 0, 1, 1, 1, 1, 1, 1]
    >>> plan[2:5].tolist() == [plan[2], plan[3], plan[4]]
    True
    """

    _COMPUTED: ClassVar[tuple[str, ...]] = ("_slots", "_order")

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
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
        self._masses: Masses | None = None
        self._layout: GroupLayout | None = None
        self._slots: NDArray[Any] | None
        self._order: KeyedPermutation | None

    @overload
    def __getitem__(self, draws: int) -> int: ...
    @overload
    def __getitem__(self, draws: slice) -> NDArray[np.int64]: ...
    def __getitem__(self, draws: int | slice) -> Any:
        """The row of one draw, or an int64 array of the rows of a slice of draws."""
        if isinstance(draws, slice):
            return self.rows(np.arange(*draws.indices(self._size)))
        draw = range(self._size)[draws]
        return int(self.rows(np.array([draw]))[0])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self._size, CHUNK):
            yield from self[start : start + CHUNK].tolist()

    def rows(self, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of any draws: int64 in [0, M) -> int64 in [0, n), of the same shape."""
        slots = self._filled_slots()
        places = draws if self._order is None else self._order(draws)
        return slots.take(places).astype(np.int64)

    def rows_of_step(
        self,
        step: int,
        batch_size: int,
        ranks: int = 1,
        rank: int | None = None,
        *,
        drop_last: bool = False,
    ) -> NDArray[np.int64]:
        """The rows of a step of this epoch, in the order of their draws, int64: as no log tells.

        Rank r takes draws r, r + R, ..., ``batch_size`` of them a step, as `FlowSampler` does.
        Loops that shuffle draws, as ``shuffle=True`` and the Trainer's default do, take others.

        Args:
            step: from 0, of this epoch.
            batch_size: draws of one rank in a step; all of those between two steps of the
                optimizer, where gradients are accumulated.
            ranks: R.
            rank: r; default those of all ranks together, which do not depend on who took which.
            drop_last: as of the sampler.

        Raises:
            IndexError: for a step that the epoch has not.
            ValueError: for a rank outside [0, R), and sizes below 1.

        >>> plan = EpochPlan([1.0, 3.0], epoch_size=8, seed=1)
        >>> plan.rows_of_step(1, batch_size=2, ranks=2).tolist() == plan[4:8].tolist()
        True
        """
        return self.rows(draws_of_step(self, step, batch_size, ranks, rank, drop_last=drop_last))

    def counts(self) -> NDArray[np.int64]:
        """How often each row is drawn in this epoch, shape (n,), sum M."""
        return np.bincount(self._filled_slots(), minlength=len(self.weights))

    def _filled_slots(self) -> NDArray[Any]:
        if self._slots is None:
            masses = self._held_masses()
            if self._stratum_of_row is not None:
                self._slots = self._stratified(masses, self._stratum_of_row)
            elif self.scheme == "systematic":
                self._order = KeyedPermutation(
                    self._size, seed=self.seed, epoch=self.epoch, purpose=Purpose.DRAW_ORDER
                )
                self._slots = self._systematic(masses)
            else:
                self._slots = self._multinomial(masses)
            if self.by_length is not None:
                self._slots, self._order = self._arranged(self._slots, self.by_length), None
        return self._slots

    def _held_masses(self) -> Masses:
        if self._masses is None:
            # Each epoch goes through all of them.
            self.weights.hold()
            self._masses = Masses(self.weights, self._mass_total(), self._mass_bits)
        return self._masses

    def _systematic(self, masses: Masses) -> NDArray[Any]:
        """Rows by slot: slot k holds the row in which mass (k + 1) 2^b - offset lies."""
        n, bits = len(self.weights), self._mass_bits
        layout = self._group_layout(masses)
        random = random_bits(self.seed, self.epoch, Purpose.ROW_ORDER)
        # The one random number of a systematic pass: mass that lies before the first row, so that
        # the first point falls anywhere in the first draw's worth with equal probability.
        carry = int(random.random_raw()) >> (64 - bits)
        carries = None if layout is None else layout.carries(carry)
        slots = np.empty(self._size, dtype=_row_dtype(n))
        filled = 0
        for block in self._shuffled_blocks():
            start = block * CHUNK
            rows = shuffled(min(CHUNK, n - start), random)
            if layout is None or carries is None:
                counts, carry = count_draws(masses.of(start, rows), carry, bits)
            else:
                rows, counts = layout.count_draws(start, rows, carries)
            rows += start
            drawn = np.repeat(rows, counts)
            slots[filled : filled + drawn.size] = drawn
            filled += drawn.size
        assert filled == self._size
        return slots

    def _group_layout(self, masses: Masses) -> GroupLayout | None:
        if self._layout is None and self.weights.has_groups:
            assert self.weights.groups is not None
            # Plans of other epochs share it.
            self._layout = GroupLayout(self.weights.groups, masses, self._mass_bits)
        return self._layout

    def _stratified(self, masses: Masses, codes: NDArray[np.int64]) -> NDArray[Any]:
        """Rows by draw: systematic over strata, dealt out to batches."""
        assert self.strata is not None
        random = random_bits(self.seed, self.epoch, Purpose.STRATA)
        # Sorted by stratum, and at random within: 24 bits for the stratum, 40 for the chance.
        keys = random.random_raw(codes.size) >> 24 | codes.astype(np.uint64) << 40
        order = keys.argsort(kind="stable")
        offset = int(random.random_raw()) >> (64 - self._mass_bits)
        counts, _ = count_draws(masses.all(codes.size)[order], offset, self._mass_bits)
        groups = codes // self.strata.levels if self.weights.has_groups else None
        drawn = deal_to_batches(np.repeat(order, counts), self.strata.batch_size, random, groups)
        return drawn.astype(_row_dtype(codes.size))

    def _arranged(self, slots: NDArray[Any], by_length: ByLength) -> NDArray[Any]:
        """Rows by draw, from rows by slot."""
        if self._order is not None:
            slots = slots.take(self._order(np.arange(self._size)))
        return by_length.arranged(slots, random_bits(self.seed, self.epoch, Purpose.BY_LENGTH))

    def _shuffled_blocks(self) -> list[int]:
        blocks = -(-len(self.weights) // CHUNK)
        order = KeyedPermutation(
            blocks, seed=self.seed, epoch=self.epoch, purpose=Purpose.BLOCK_ORDER
        )
        blocks_in_order: list[int] = order(np.arange(blocks)).tolist()
        return blocks_in_order

    def _multinomial(self, masses: Masses) -> NDArray[Any]:
        """Rows of independent draws, in the order they were drawn."""
        n = len(self.weights)
        edges = masses.all(n)
        np.cumsum(edges, out=edges)
        random = random_bits(self.seed, self.epoch, Purpose.MULTINOMIAL)
        slots = np.empty(self._size, dtype=_row_dtype(n))
        for start in range(0, self._size, _SEARCH_BLOCK):
            part = slots[start : start + _SEARCH_BLOCK]
            points = (random.random_raw(part.size) >> (64 - self._mass_bits)).view(np.int64)
            # Searching for sorted points walks through the edges once instead of at random.
            order = np.argsort(points)
            part[order] = np.searchsorted(edges, points[order], side="right")
        return slots


def resolve_epoch_size(weights: FlowWeights, epoch_size: EpochSize) -> int:
    """M as a number of draws >= 1, see `EpochPlan`."""
    n = len(weights)
    if isinstance(epoch_size, str):
        # A sum that is whole may come out a rounding error below; masses round that away again.
        whole = int(weights.total * (1.0 + 2.0**-46))
        named = {"full": n, "ess": round(weights.ess), "distinct": whole}
        if epoch_size not in named:
            raise ValueError(
                'epoch_size must be "full", "ess", "distinct", an int or a float, '
                f"got {epoch_size!r}"
            )
        return named[epoch_size]
    if isinstance(epoch_size, bool) or not isinstance(epoch_size, (int, float, np.number)):
        raise ValueError(f"epoch_size must be a name, an int or a float, got {epoch_size!r}")
    is_count = isinstance(epoch_size, (int, np.integer))
    if not is_count and not math.isfinite(epoch_size):
        raise ValueError(f"epoch_size must be finite, got {epoch_size!r}")
    # A float may overflow when it is multiplied; more rows than a plan can have are as bad.
    size = int(epoch_size) if is_count else round(min(float(epoch_size), 2.0**64) * n)
    if not 1 <= size <= MOST_DRAWS:
        raise ValueError(
            f"epoch_size={epoch_size!r} gives an epoch of {size:,} draws over {n:,} rows; "
            "an int counts draws, a float is a fraction of the rows, and at least 1 draw is needed"
        )
    return size


def _row_dtype(n: int) -> type[np.int32] | type[np.int64]:
    return np.int32 if n <= np.iinfo(np.int32).max else np.int64


def non_negative(value: int, name: str) -> int:
    """The value as an int, if it is one and >= 0; a ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be an int >= 0, got {value!r}")
    return int(value)
