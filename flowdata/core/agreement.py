"""How well losses of a small model stand in for those of a large one, by a sample of the rows."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import is_invalid, one_dimensional
from flowdata.core.permutation import Purpose, random_bits

Floats = NDArray[np.float64]

_STRATA = 16
_REPLICATES = 1000
_INTERVAL = 0.025, 0.975


class Estimate(NamedTuple):
    """A number, and its 95 % interval."""

    value: float
    low: float
    high: float

    def text(self, form: str) -> str:
        """All three, each in this format."""
        value, low, high = (format(number, form) for number in self)
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Agreement:
    """How far weights by a small model are from those by a large one; ``print`` shows it.

    Each is an estimate for all rows, with its 95 % interval.

    Attributes:
        rows: rows that the small model scored, with a valid loss.
        sampled: rows that both scored.
        rank_correlation: Spearman's, of the losses.
        moved: share of the draws that go to other rows than by the large model.
        moved_if_uniform: the same, if all rows were drawn alike: what is to be beaten.
        weight_error: relative error of a weight, both of mean 1, that half of the rows exceed.
    """

    rows: int
    sampled: int
    rank_correlation: Estimate
    moved: Estimate
    moved_if_uniform: Estimate
    weight_error: Estimate

    def __str__(self) -> str:
        return "\n".join(
            [
                f"scored by both models        {self.sampled:,} of {self.rows:,} rows",
                f"rank correlation of losses   {self.rank_correlation.text('.3f')}",
                f"draws that go to other rows  {self.moved.text('.1%')}",
                f"  if all were drawn alike    {self.moved_if_uniform.text('.1%')}",
                f"median error of a weight     {self.weight_error.text('.1%')}",
            ]
        )


def stratified_rows(losses: ArrayLike, size: int, *, seed: int = 0) -> NDArray[np.int64]:
    """Rows with easy, hard and all other losses, as many from each sixteenth of them.

    Args:
        losses: shape (n,); rows of NaN, infinite or negative losses are not chosen.
        size: how many, at least 2; all rows where there are no more.
        seed: of the choice.

    Returns:
        Row numbers, ascending.

    Raises:
        ValueError: for fewer than 2.

    >>> rows = stratified_rows(np.arange(1000.0), 32)
    >>> [int(count) for count in np.bincount(rows // 125)]
    [4, 4, 4, 4, 4, 4, 4, 4]
    """
    values = one_dimensional(losses, "losses")
    order = _order(values)
    size = min(size, order.size)
    if size < 2:
        raise ValueError(f"a sample has at least 2 rows with a valid loss, got {size}")
    strata = np.array_split(order, _strata(size))
    sizes = [part.size for part in np.array_split(np.arange(size), len(strata))]
    keys = random_bits(seed, 0, Purpose.SAMPLE).random_raw(order.size)
    chosen, start = [], 0
    for rows, count in zip(strata, sizes, strict=True):
        order_of_keys = np.argsort(keys[start : start + rows.size], kind="stable")
        chosen.append(rows[order_of_keys[:count]])
        start += rows.size
    return np.sort(np.concatenate(chosen))


def agreement(proxy: ArrayLike, rows: ArrayLike, losses: ArrayLike, *, seed: int = 0) -> Agreement:
    """Compare the losses of a small model with those of a large one on a sample of rows.

    Rows count for the sixteenth of the small model's losses that they were drawn from. Intervals
    are percentiles of a bootstrap within these (Rao and Wu 1988, with the correction for samples
    that are a large part of all rows). Weights are exp(-loss / median loss). A loss of the large
    model that is NaN or infinite is a weight of 0.

    Args:
        proxy: the small model's losses of all n rows.
        rows: row numbers of the sample, shape (m,), as of `stratified_rows`.
        losses: the large model's losses of these rows, shape (m,).
        seed: of the bootstrap.

    Raises:
        ValueError: for shapes that do not fit, a row that is there twice or has no valid loss of
            the small model, a sample that leaves out a part of the losses, or a median of 0.
    """
    values = one_dimensional(proxy, "losses of the small model").astype(np.float64)
    numbers = np.asarray(rows, dtype=np.int64)
    found = one_dimensional(losses, "losses of the large model").astype(np.float64)
    if numbers.shape != found.shape or np.unique(numbers).size != numbers.size:
        raise ValueError(
            f"a loss for each of the rows, each there once, is needed: got {found.size} losses and "
            f"{numbers.size} rows, {np.unique(numbers).size} of them different"
        )
    order = _order(values)
    strata = np.full(values.size, -1)
    for number, part in enumerate(np.array_split(order, _strata(numbers.size))):
        strata[part] = number
    own = strata[numbers]
    if (own < 0).any():
        raise ValueError(f"row {numbers[own < 0][0]} has no valid loss of the small model")
    held, seen = np.bincount(strata[order]), np.bincount(own, minlength=strata.max() + 1)
    if not seen.all():
        raise ValueError(
            f"the sample has no row of {np.count_nonzero(seen == 0)} of {seen.size} equal parts of "
            "the losses: choose it by stratified_rows"
        )
    weights = _weights(values[order], np.ones(order.size), "small")
    of_rows = np.empty(values.size)
    of_rows[order] = weights
    found[is_invalid(found)] = np.inf
    sample = _Sample.of(values[numbers], found, of_rows[numbers])
    figures = sample.figures((held / seen)[own])
    replicates = [sample.figures(mass) for mass in _replicates(held, seen, own, seed)]
    low, high = np.quantile(replicates, _INTERVAL, axis=0)
    estimates = (Estimate(*map(float, each)) for each in zip(figures, low, high, strict=True))
    return Agreement(order.size, numbers.size, *estimates)


class _Sample(NamedTuple):
    """Rows that both models scored."""

    ranked: tuple[NDArray[np.int64], NDArray[np.int64]]
    """For each model the place of a row's loss among the different ones."""
    losses: Floats
    """Of the large model."""
    order: NDArray[np.int64]
    """By these."""
    weights: Floats
    """By the small model, of mean 1 over all rows."""

    @classmethod
    def of(cls, small: Floats, large: Floats, weights: Floats) -> "_Sample":
        ranked = tuple(np.unique(each, return_inverse=True)[1] for each in (small, large))
        return cls((ranked[0], ranked[1]), large, np.argsort(large, kind="stable"), weights)

    def figures(self, mass: Floats) -> tuple[float, float, float, float]:
        """The figures of an `Agreement`, where a row stands for so many."""
        own = _weights(self.losses, mass, "large", self.order)
        share = mass / mass.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            errors = np.abs(self.weights / own - 1)
        # Of a row that neither draws.
        errors[np.isnan(errors)] = 0.0
        small, large = (_mid_ranks(places, share) for places in self.ranked)
        return (
            _correlation(small, large, share),
            float(share @ np.abs(self.weights - own)) / 2,
            float(share @ np.abs(1 - own)) / 2,
            _median(errors, mass, np.argsort(errors, kind="stable")),
        )


def _weights(
    losses: Floats, mass: Floats, whose: str, order: NDArray[np.int64] | None = None
) -> Floats:
    """exp(-loss / median), of mean 1 over the rows that these stand for."""
    order = np.argsort(losses, kind="stable") if order is None else order
    median = _median(losses, mass, order)
    if not 0 < median < np.inf:
        raise ValueError(f"the median loss of the {whose} model is {median}: there is no weight")
    weights = np.exp(-losses / median)
    return np.asarray(weights * (mass.sum() / (mass @ weights)))


def _median(values: Floats, mass: Floats, order: NDArray[np.int64]) -> float:
    """The median of values that count so much each; between the two in the middle, if so."""
    below = np.cumsum(mass[order])
    half = below[-1] / 2
    # A half that rounding has moved is still one.
    close = half * 1e-12
    places = np.searchsorted(below, [half - close, half + close])
    return float(values[order[np.minimum(places, order.size - 1)]].mean())


def _mid_ranks(places: NDArray[np.int64], share: Floats) -> Floats:
    """The share of rows below each, and half of those that are equal to it."""
    of_place = np.bincount(places, weights=share)
    return np.asarray((np.cumsum(of_place) - of_place / 2)[places])


def _correlation(first: Floats, second: Floats, share: Floats) -> float:
    first, second = first - share @ first, second - share @ second
    scale = np.sqrt((share @ first**2) * (share @ second**2))
    return float(share @ (first * second) / scale) if scale > 0 else 0.0


def _replicates(
    held: NDArray[np.int64], seen: NDArray[np.int64], own: NDArray[np.int64], seed: int
) -> Floats:
    """For how many rows each of the sample stands in each replicate, (replicates, m)."""
    # Uniform numbers by hand: methods of numpy's Generator may change.
    bits = random_bits(seed, 1, Purpose.SAMPLE)
    made = np.empty((_REPLICATES, own.size))
    for stratum, (rows, count) in enumerate(zip(held.tolist(), seen.tolist(), strict=True)):
        drawn = max(count - 1, 1)
        raw = bits.random_raw((_REPLICATES, drawn))
        chosen = ((raw >> np.uint64(11)) * 2.0**-53 * count).astype(np.int64)
        flat = chosen + count * np.arange(_REPLICATES)[:, None]
        counts = np.bincount(flat.ravel(), minlength=_REPLICATES * count)
        counts = counts.reshape(_REPLICATES, count)
        # None of it is left to chance where all rows were seen.
        chance = np.sqrt(1 - count / rows)
        made[:, own == stratum] = rows / count * (1 - chance + chance * counts * count / drawn)
    return made


def _order(losses: NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows of valid losses, the lowest first."""
    valid = np.flatnonzero(~is_invalid(losses))
    return valid[np.argsort(losses[valid], kind="stable")]


def _strata(size: int) -> int:
    """Parts of the losses that a sample of this size is drawn from, at least two rows of each."""
    return max(min(_STRATA, size // 2), 1)
