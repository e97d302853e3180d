"""What FlowWeights are made of: from losses by a temperature, a function, or group by group."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, is_invalid, numbers_of, one_dimensional
from flowdata.core.column import Source
from flowdata.core.groups import Groups
from flowdata.core.loss_statistics import HeldLosses, LossStatistics, SurveyedLosses
from flowdata.core.relative_weights import Given, OfLogarithms, OfLosses, RelativeWeights
from flowdata.core.shares import By, Shares, resolve_shares, share_out
from flowdata.core.sorted_losses import warn_if_sorted
from flowdata.core.temperature import Temperature, resolve_temperature
from flowdata.core.weight_functions import WeightFunction, weights_by
from flowdata.errors import InvalidLossError

OnInvalid: TypeAlias = Literal["raise", "drop"]


class NoWeightError(InvalidLossError):
    """Weights that are all 0."""


@dataclass(frozen=True)
class Made:
    """Weights of n rows, and what they are of.

    Attributes:
        relative: over the largest weight.
        log_max: the logarithm of the largest weight.
        source: what ``relative`` is made from: losses if ``temperature`` is set, else weights, or
            their logarithms, or losses that have no part in them but by being valid.
        temperature: tau, of weights exp(-loss / tau).
        exponent: of a power of weights that are no exponentials of losses.
        how: how they were made, in a few words.
        groups: of the rows, where they were made group by group.
        shared: whether somebody said what share each group gets.
        losses, lengths: of the rows, where they are known.
    """

    relative: RelativeWeights
    log_max: float
    source: Source
    temperature: float | None = None
    exponent: float = 1.0
    how: str = "given weights"
    groups: Groups | None = None
    shared: bool = False
    losses: Source | None = None
    lengths: Source | None = None

    def digest(self) -> xxhash.xxh3_128:
        """The begin of a hash of what they were made from, which ``source`` goes on."""
        # Not of the weights: the last bit of a power of given weights depends on the processor.
        kind = "logarithms|" if isinstance(self.relative, OfLogarithms) else ""
        return xxhash.xxh3_128(
            f"{kind}{self.temperature!r}|{self.exponent!r}|{self.source.dtype.str}|".encode()
        )


def as_losses(losses: ArrayLike) -> NDArray[Any]:
    """Losses as an array that nobody can change; a warning where they are sorted.

    Raises:
        InvalidLossError: for none at all.
        ValueError: for a wrong shape, a mask, or what is no number.
    """
    given = numbers_of(losses, "losses")
    if given.dtype.kind == "b":
        raise ValueError(
            "losses must be numbers, got dtype bool: a mask of the rows to keep is weights, "
            "FlowWeights.from_weights(mask)"
        )
    array = one_dimensional(given, "losses")
    warn_if_sorted(array)
    return array


def of_weights(array: NDArray[Any]) -> Made:
    """Of weights of shape (n,), float32 or float64, that nobody can change.

    Raises:
        InvalidLossError: for negative, NaN or infinite weights, or all zeros.
    """
    invalid = is_invalid(array)
    if invalid.any():
        raise InvalidLossError(
            count_rows(invalid, "weights that are NaN, infinite or negative", array)
            + "; a weight must be finite and >= 0"
        )
    highest = float(array.max())
    if highest == 0.0:
        raise NoWeightError(f"all {array.size:,} weights are 0: no row can be drawn")
    return Made(Given(array.astype(np.float64) / highest), math.log(highest), array)


def of_logarithms(logarithms: NDArray[np.float64], log_max: float, how: str) -> Made:
    """Of the logarithms of weights over the largest, shape (n,): 0 for that one."""
    logarithms.flags.writeable = False
    return Made(OfLogarithms(logarithms), log_max, logarithms, how=how)


def of_product(one: Made, other: Made, other_log_max: float) -> Made:
    """Of the products of two weights of each row.

    Raises:
        InvalidLossError: where all of them are 0.
    """
    logarithms = one.relative.logarithms()
    logarithms += other.relative.logarithms()
    top = float(logarithms.max())
    if not math.isfinite(top):
        raise InvalidLossError(
            f"no one of {logarithms.size:,} rows has a weight above 0 in both: no row can be drawn"
        )
    logarithms -= top
    made = of_logarithms(logarithms, one.log_max + other_log_max + top, "a product of weights")
    return replace(
        made,
        groups=one.groups,
        shared=one.shared,
        losses=other.losses if one.losses is None else one.losses,
        lengths=other.lengths if one.lengths is None else one.lengths,
    )


@dataclass(frozen=True)
class FromLosses:
    """How weights are made from losses; see `FlowWeights.from_losses` for the options.

    Attributes:
        lengths: tokens of each row, where they are known.
    """

    temperature: Temperature = "median"
    on_invalid: OnInvalid = "raise"
    function: WeightFunction | None = None
    groups: Groups | None = None
    shares: Shares | None = None
    by: By = "rows"
    lengths: Source | None = None

    def made(self, source: Source) -> Made:
        """Weights of losses that nobody can change: an array, or a column on a disk.

        Raises:
            InvalidLossError: for invalid losses, and where no weights can be made of them.
            ValueError: for an unknown option.
        """
        losses = self._valid(source)
        made = self._made_of(source, losses)
        return replace(made, losses=source, lengths=self.lengths)

    def _made_of(self, source: Source, losses: LossStatistics) -> Made:
        if self.groups is None:
            if self.shares is not None or self.by != "rows":
                raise ValueError("shares= and by= are of groups: give groups= too")
            return self._at_one_temperature(source, losses)
        shares = resolve_shares(self.shares, self.by, self.groups, self.lengths)
        if len(self.groups) == 1:
            made = self._at_one_temperature(source, losses)
        else:
            made = self._by_group(source[:], self.groups, shares)
        return replace(made, groups=self.groups, shared=shares is not None)

    def _valid(self, source: Source) -> HeldLosses | SurveyedLosses:
        if self.on_invalid not in ("raise", "drop"):
            raise ValueError(f'on_invalid must be "raise" or "drop", got {self.on_invalid!r}')
        losses = HeldLosses(source) if isinstance(source, np.ndarray) else SurveyedLosses(source)
        if losses.invalid and self.on_invalid == "raise":
            raise InvalidLossError(
                losses.describe_invalid()
                + "; fix the samples or the model, or give these rows weight 0: "
                'on_invalid="drop", of a table table.weights(on_invalid="drop")'
            )
        if losses.size == 0:
            raise InvalidLossError(f"none of the {len(source):,} losses is finite and non-negative")
        return losses

    def _at_one_temperature(self, source: Source, losses: LossStatistics) -> Made:
        if self.function is not None:
            held = source[:]
            # A function need not use the temperature, which may be 0 then.
            tau = resolve_temperature(losses, self.temperature, may_be_zero=True)
            weights = weights_by(self.function, held, ~is_invalid(held), tau)
            return replace(of_weights(weights), how="a function of the losses")
        tau, lowest = resolve_temperature(losses, self.temperature), losses.lowest
        relative = OfLosses(source, lowest, tau, has_invalid=losses.invalid > 0)
        return Made(relative, -lowest / tau, source, tau, how="exp(-loss / temperature)")

    def _by_group(
        self, losses: NDArray[Any], groups: Groups, shares: NDArray[np.float64] | None
    ) -> Made:
        logarithms, largest = np.full(losses.size, -np.inf), np.full(len(groups), -np.inf)
        for number, rows in enumerate(groups.rows()):
            some = losses[rows]
            known = HeldLosses(some)
            if not known.size:
                continue
            try:
                made = self._at_one_temperature(some, known)
            except NoWeightError:
                continue
            except InvalidLossError as error:
                if shares is not None and shares[number] == 0.0:
                    continue  # It is never drawn, whatever its temperature.
                raise InvalidLossError(f"in the group {groups.names[number]!r}: {error}") from error
            logarithms[rows], largest[number] = made.relative.logarithms(), made.log_max
        sizes = self.lengths if self.by == "tokens" else None
        log_max = share_out(logarithms, largest, groups, shares, sizes)
        return of_logarithms(logarithms, log_max, f"one for each of {len(groups):,} groups")
