"""PackedPlan: the draws of an EpochPlan, laid by length and put pack after pack."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.masses import count_draws
from flowdata.core.pack_template import (
    Integers,
    PackTemplate,
    Slots,
    pack_by_chance,
    small,
    sum_of,
)
from flowdata.core.packing import pack
from flowdata.core.permutation import KeyedPermutation, Purpose, random_bits, sorted_at_random
from flowdata.core.plan import EpochPlan

# Standard deviations of the number of packs of independent draws that are allowed for, by
# Bernstein's inequality: an epoch needs more with a probability below 2e-8.
_SIGMAS = 6.0
# So many packs more than were needed in some trials, but one in so many at most, are added, so that
# epochs that are packed by chance do with N.
_TRIALS, _MOST_SPARE = 2, 2048


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
        tokens = slots.mean_tokens()
        del slots
        packed = [pack(np.sort(each), self._max_length) for each in widths]
        most = max(int(packs.max()) + 1 for packs in packed)
        whole_batches = len(self) // self._batch_size * self._batch_size
        spare = self._spare(np.sort(widths[0]), most)
        count = self._multiple(max(most, min(most + spare, whole_batches)))
        self._templates.made = [
            PackTemplate.of(*each, count, random_bits(0, 0, Purpose.PACK_ORDER, part))
            for part, each in enumerate(zip(widths, packed, strict=True))
        ]
        return count, tokens

    def _spare(self, widths: NDArray[Any], packs: int) -> int:
        """Packs to be added for epochs that are packed by chance, as trials have it."""
        if packs < _MOST_SPARE:
            return 0
        random = random_bits(0, 0, Purpose.PACKED_ROWS)
        trials = (pack_by_chance(widths, self._max_length, random) for _ in range(_TRIALS))
        more = max(int(trial.max()) for trial in trials) + 1 - packs
        return min(max(2 * more, 0), packs // _MOST_SPARE)

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
