"""PackPlan: the draws of an epoch, put together into packs of at most so many tokens."""

import copy
import math
from collections.abc import Iterator
from typing import Any, Literal, Self, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows
from flowdata.core.lengths import (
    HasLengths,
    as_lengths,
    at_least_one,
    fingerprint_of,
    require_fitting,
)
from flowdata.core.masses import count_draws
from flowdata.core.pack_template import Integers, PackTemplate, Slots, small, sum_of
from flowdata.core.packing import pack
from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits, sorted_at_random
from flowdata.core.plan import EpochPlan
from flowdata.core.weights import FlowWeights

TooLong: TypeAlias = Literal["raise", "truncate"]

# Standard deviations of the number of packs of independent draws that are allowed for, by
# Bernstein's inequality: an epoch needs more with a probability below 2e-8.
_SIGMAS = 6.0
# One pack in so many is added, so that epochs that are packed by chance do with N.
_SPARE = 2048


class PackPlan:
    """The packs of an epoch: an immutable sequence of N arrays of row numbers.

    Each draw of the epoch is in one pack, whole, and a pack has at most ``max_length`` tokens. N is
    the same in every epoch, and a multiple of ``batch_size``. Packs come in a keyed random order,
    and are a pure function of (weights, lengths, options, seed, epoch).

    Why N is constant (``scheme="systematic"``). Rows are laid in order of length (of stratum, then
    length), at random among equal lengths. Slot k of the pass holds the row in which mass
    (k + 1) 2^b - offset lies, where the one random offset of an epoch is in [0, 2^b): a row that
    touches the mass from k 2^b to (k + 1) 2^b. The longest such row is the width W[k] of the slot;
    it does not depend on the epoch, as rows that change places are of equal length. So the slots
    are packed once, as if each had length W[k], into N packs (the template), and every epoch puts
    the draw of a slot where the template has the slot: no pack can have more than ``max_length``
    tokens. Since lengths ascend, slot k + 1 has a draw of at least W[k], so the widths exceed the
    tokens of an epoch by less than one ``max_length`` (for each stratum) in all. For short epochs,
    in which that is much, the offsets are cut into equal parts with a template each, all with the
    same N; the widths of a part exceed by that part of it.
    Rows meet others in every epoch, as far as their lengths allow: draws are shuffled among slots
    of equal width, and an epoch is packed by chance in another way, which is taken if it needs no
    more than N packs. Draws of one row, which lie side by side in the pass, do not stay together.

    Independent draws (``scheme="multinomial"``) have no such bound: N has a margin of 6 standard
    deviations above what is expected, and each epoch is packed on its own. One that needs more, of
    some fifty million, is a ValueError.

    Args:
        plan: the draws: weights, epoch, seed, size, scheme, alpha and strata are taken from it.
            Strata share out the epoch, not each batch.
        lengths: tokens of each row, n whole numbers, or a table that has them.
        max_length: tokens that a pack has room for.
        batch_size: packs that are trained on together, by all ranks; it divides N.
        too_long: what to do with rows that may be drawn and are longer than ``max_length``:
            "raise", or "truncate", which counts them as ``max_length``, as their reader cuts them.

    Raises:
        TypeError: for another plan, such as one of shards.
        MismatchError: for another number of lengths than of weights.
        ValueError: for lengths that are no whole numbers from 1 to ``max_length`` (of rows that may
            be drawn), for fewer draws than packs are needed, or an unknown option.

    >>> packs = PackPlan(EpochPlan([1.0, 1.0, 2.0], epoch_size=4), [3, 5, 2], max_length=7)
    >>> len(packs), sorted(sorted(pack.tolist()) for pack in packs)
    (2, [[0, 2], [1, 2]])
    """

    def __init__(
        self,
        plan: EpochPlan,
        lengths: HasLengths | ArrayLike,
        max_length: int,
        *,
        batch_size: int = 1,
        too_long: TooLong = "raise",
    ) -> None:
        self.max_length = at_least_one(max_length, "max_length")
        self.batch_size = at_least_one(batch_size, "batch_size")
        if too_long not in ("raise", "truncate"):
            raise ValueError(f'too_long must be "raise" or "truncate", got {too_long!r}')
        if not isinstance(plan, EpochPlan):
            raise TypeError(f"packs are made of an EpochPlan, got {type(plan).__name__}")
        if plan.by_length is not None:
            raise ValueError("packs are made by length already: give the plan no ByLength")
        whole = as_lengths(lengths)
        require_fitting(whole, plan.weights)
        if too_long == "raise":
            _require_short(whole, plan.weights, self.max_length)
        self._packing = {
            "lengths": fingerprint_of(whole),
            "max_length": self.max_length,
            "batch_size": self.batch_size,
            "too_long": too_long,
        }
        clipped = small(np.clip(whole, 1, max_length))
        del whole
        self.plan: PackedPlan = PackedPlan.of(plan, clipped, self.max_length, self.batch_size)
        """The draws, laid by length, in the order of the packs."""
        self._size, self._tokens = self.plan.packs, self.plan.mean_tokens

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return (
            f"PackPlan(packs={self._size:,}, draws={len(self.plan):,}, "
            f"max_length={self.max_length:,}, fill={self.fill:.4f}, epoch={self.epoch}, "
            f"seed={self.seed})"
        )

    @property
    def epoch(self) -> int:
        """Number of the epoch."""
        return self.plan.epoch

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return self.plan.seed

    @property
    def fill(self) -> float:
        """The share of the packs' room that is tokens, in the mean over epochs."""
        return self._tokens / (self._size * self.max_length)

    @property
    def lengths(self) -> Integers:
        """Tokens that each row counts as in a pack, shape (n,): at most ``max_length``."""
        return self.plan.lengths

    @overload
    def __getitem__(self, numbers: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, numbers: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, numbers: int | slice) -> Any:
        """The rows of one pack, int64, or a list of those of a slice of packs."""
        if isinstance(numbers, slice):
            return self.of(np.arange(*numbers.indices(self._size)))
        return self.of([range(self._size)[numbers]])[0]

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[number] for number in range(self._size))

    def of(self, numbers: ArrayLike) -> list[NDArray[np.int64]]:
        """The rows of packs, an int64 array for each number in [0, N).

        Raises:
            IndexError: for a number of no pack.
        """
        places = np.asarray(numbers, dtype=np.int64)
        if places.size and not 0 <= places.min() <= places.max() < self._size:
            raise IndexError(
                f"packs {places.min():,} to {places.max():,} are not all in an epoch of "
                f"{self._size:,} packs"
            )
        return self.plan.rows_of_packs(places)

    def identity(self) -> dict[str, Any]:
        """What decides which rows are in which pack, except seed and epoch; JSON-able."""
        return self.plan.identity() | {"packs": dict(self._packing)}

    def released(self) -> Self:
        """The same packs without what was computed of their epoch."""
        return self._with(self.plan.released())

    def at_epoch(self, epoch: int, *, seed: int | None = None) -> Self:
        """The packs of another epoch (and seed) of the same weights and options."""
        plan = self.plan.at_epoch(epoch, seed=seed)
        return self if plan is self.plan else self._with(plan)

    def _with(self, plan: "PackedPlan") -> Self:
        packs = copy.copy(self)
        packs.plan = plan
        return packs


class PackedPlan(EpochPlan):
    """An EpochPlan whose rows are laid by length, and whose draws come pack after pack."""

    _COMPUTED = ("_slots", "_order", "_starts")

    packs: int
    mean_tokens: float
    lengths: Integers
    _max_length: int
    _batch_size: int
    _starts: NDArray[np.int64] | None
    _templates: "_Templates"

    @classmethod
    def of(
        cls, plan: EpochPlan, lengths: Integers, max_length: int, batch_size: int
    ) -> "PackedPlan":
        """The plan of the same options, in packs.

        Args:
            plan: the options.
            lengths: of the rows, 1 to ``max_length``.
            max_length, batch_size: see `PackPlan`.
        """
        packed = object.__new__(cls)
        packed.__dict__ |= plan.released().__dict__
        packed.lengths = lengths
        packed._max_length, packed._batch_size = max_length, batch_size
        packed._templates = _Templates()
        packed._release()
        packed.packs, packed.mean_tokens = packed._lay_out()
        return packed

    def rows_of_packs(self, numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """The rows of packs, an int64 array for each."""
        slots = self._filled_slots()
        assert self._starts is not None
        bounds = zip(
            self._starts[numbers].tolist(), self._starts[numbers + 1].tolist(), strict=True
        )
        return [slots[start:stop].astype(np.int64) for start, stop in bounds]

    def _lay_out(self) -> tuple[int, float]:
        """The number of packs of every epoch, and tokens of an epoch in expectation."""
        order = self._codes().argsort(kind="stable")
        lengths = self.lengths[order]
        if self.scheme == "multinomial":
            return self._expected(lengths, self._all_masses()[order])
        runs = None if self._stratum_of_row is None else self._stratum_of_row[order]
        slots = Slots(lengths, self._all_masses()[order], self._mass_bits, runs)
        del order, lengths, runs
        parts = slots.parts()
        widths = [slots.widths(part, parts) for part in range(parts)]
        packed = [pack(np.sort(each), self._max_length) for each in widths]
        most = max(int(packs.max()) + 1 for packs in packed)
        whole_batches = len(self) // self._batch_size * self._batch_size
        count = self._multiple(max(most, min(most + most // _SPARE, whole_batches)))
        self._templates.made = [
            PackTemplate.of(*each, count, random_bits(0, 0, Purpose.PACK_ORDER, part))
            for part, each in enumerate(zip(widths, packed, strict=True))
        ]
        return count, slots.mean_tokens()

    def _expected(self, lengths: Integers, masses: NDArray[np.int64]) -> tuple[int, float]:
        """As `_lay_out`, of independent draws: an expected number of packs, and a margin."""
        draws = len(self)
        edges = np.cumsum(masses)
        quantiles = ((np.arange(draws) + 0.5) / draws * float(edges[-1])).astype(np.int64)
        rows = np.minimum(np.searchsorted(edges, quantiles, side="right"), edges.size - 1)
        packs = int(pack(lengths[rows], self._max_length).max()) + 1
        shares = masses / float(edges[-1])
        deviation = _deviation(lengths / self._max_length, shares) * math.sqrt(draws)
        margin = _SIGMAS**2 / 6 + math.hypot(_SIGMAS**2 / 6, _SIGMAS * deviation)
        # A pack for each draw is always enough.
        count = self._multiple(min(packs + math.ceil(margin), draws))
        return count, draws * sum_of(lengths, shares)

    def _multiple(self, packs: int) -> int:
        """The number of packs, rounded up to a multiple of the batch size.

        Raises:
            ValueError: where there are fewer draws.
        """
        count = -(-packs // self._batch_size) * self._batch_size
        if count > len(self):
            raise ValueError(
                f"{packs:,} packs are needed, and {count:,} to be a multiple of batch_size="
                f"{self._batch_size:,}, but an epoch has only {len(self):,} draws to put into "
                "them: choose a larger epoch_size or a smaller batch_size"
            )
        return count

    def _filled_slots(self) -> NDArray[Any]:
        if self._slots is None:
            random = random_bits(self.seed, self.epoch, Purpose.PACKED_ROWS)
            if self.scheme == "systematic":
                rows, template = self._laid(random)
                template = template.varied(self._max_length, random)
            else:
                rows, template = self._packed_anew(random)
            order = KeyedPermutation(
                self.packs, seed=self.seed, epoch=self.epoch, purpose=Purpose.PACK_ORDER
            )
            self._slots, self._starts = template.fill(rows, order(np.arange(self.packs)), random)
        return self._slots

    def _laid(self, random: np.random.Philox) -> tuple[Integers, PackTemplate]:
        """The rows of the slots of a systematic pass, and the template that they fit."""
        if self._templates.made is None:
            # Here is a copy in another process.
            self._lay_out()
        templates = self._templates.made
        assert templates is not None
        order = sorted_at_random(self._codes(), random)
        offset = int(random.random_raw()) >> (64 - self._mass_bits)
        counts, _ = count_draws(self._all_masses()[order], offset, self._mass_bits)
        part = offset * len(templates) >> self._mass_bits
        return small(order).repeat(counts), templates[part]

    def _packed_anew(self, random: np.random.Philox) -> tuple[Integers, PackTemplate]:
        """The rows of independent draws, and a template of their own."""
        rows = self._multinomial(self._held_masses())
        lengths = self.lengths[rows]
        packs = pack(np.sort(lengths), self._max_length)
        if (needed := int(packs.max()) + 1) > self.packs:
            raise ValueError(
                f"the independent draws of epoch {self.epoch} need {needed:,} packs of "
                f"{self._max_length:,} tokens, more than the {self.packs:,} of every epoch: use "
                'scheme="systematic", which needs the same number in all, or another seed'
            )
        return rows, PackTemplate.of(lengths, packs, self.packs, random)

    def _codes(self) -> Integers:
        """What rows are sorted by: stratum, then length, up in one and down in the next."""
        strata = self._stratum_of_row
        if strata is None:
            return self.lengths
        longest = int(self.lengths.max())
        lengths = np.where(strata % 2, longest - self.lengths, self.lengths)
        return strata * (longest + 1) + lengths

    def _all_masses(self) -> NDArray[np.int64]:
        return self._held_masses().all(len(self.weights))


class _Templates:
    """Templates that plans of all epochs share; copies in other processes make them anew."""

    def __init__(self) -> None:
        self.made: list[PackTemplate] | None = None

    def __reduce__(self) -> Any:
        return _Templates, ()


def _deviation(sizes: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """By how much one draw changes the packs that are needed, as a standard deviation.

    Args:
        sizes: of the rows, as shares of a pack.
        shares: of the draws that rows have.
    """
    # What is needed is at least the sum of each of these functions of the sizes, which count items
    # that pack badly in full (Fekete and Schepers 2001), and close to the greatest of the sums.
    deviations = []
    for parts in (0, 1, 2, 3):
        units = (parts + 1) * sizes
        needs = sizes
        if parts:
            needs = np.where(units == np.floor(units), sizes, np.floor(units) / parts)
        mean = sum_of(needs, shares)
        deviations.append(math.sqrt(sum_of((needs - mean) ** 2, shares)))
    return max(deviations)


def _require_short(lengths: NDArray[np.int64], weights: FlowWeights, max_length: int) -> None:
    long = lengths > max_length
    if long.any() and (long := long & (weights.relative > 0)).any():
        raise ValueError(
            f"packs hold {max_length:,} tokens: "
            + count_rows(long, "rows that may be drawn are longer", lengths)
            + "; choose a larger max_length, give them weight 0, or cut them and pass "
            'too_long="truncate"'
        )
