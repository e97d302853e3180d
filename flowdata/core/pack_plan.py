"""PackPlan: the draws of an epoch, put together into packs of at most so many tokens."""

import copy
from collections.abc import Iterator
from typing import Any, Literal, Self, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.lengths import (
    HasLengths,
    as_lengths,
    at_least_one,
    fingerprint_of,
    require_fitting,
    require_short,
)
from flowdata.core.pack_template import Integers, small
from flowdata.core.packed_plan import PackedPlan
from flowdata.core.plan import EpochPlan
from flowdata.core.steps import draws_of_step

TooLong: TypeAlias = Literal["raise", "truncate"]


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
            require_short(whole, plan.weights, self.max_length)
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

    def rows_of_step(
        self,
        step: int,
        batch_size: int = 1,
        ranks: int = 1,
        rank: int | None = None,
        *,
        drop_last: bool = False,
    ) -> list[NDArray[np.int64]]:
        """The rows of each pack of a step; see `EpochPlan.rows_of_step`, of packs for draws."""
        return self.of(draws_of_step(self, step, batch_size, ranks, rank, drop_last=drop_last))

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

    def _with(self, plan: PackedPlan) -> Self:
        packs = copy.copy(self)
        packs.plan = plan
        return packs
