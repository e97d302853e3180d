"""FlowWeights: the weight of each row, ``w = exp(-loss / temperature)``, and what it implies."""

import functools
import math
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, is_invalid, numbers_of, one_dimensional
from flowdata.core.exponential import exp
from flowdata.core.sorted_losses import warn_if_sorted
from flowdata.core.temperature import Temperature, resolve_temperature
from flowdata.core.weight_summary import WeightSummary
from flowdata.errors import InvalidLossError, warn

Normalization: TypeAlias = Literal["mean", "max", "sum"] | None
OnInvalid: TypeAlias = Literal["raise", "drop"]

_CHUNK = 1 << 14


@runtime_checkable
class HasWeights(Protocol):
    """Anything that makes FlowWeights, a LossTable above all."""

    def weights(self) -> "FlowWeights":
        """Weights at the median temperature."""
        ...


class FlowWeights:
    """Weights of n rows: immutable, float64, made by `from_losses` or `from_weights`.

    They are held relative to the largest one, ``exp(-(loss - min loss) / tau)``, so none
    overflows, and the largest never underflows. Eight bytes a row, beside the losses. Made from
    losses they have the same bits on every machine; with ``power(alpha)`` of weights that were
    given, the last bit depends on the processor.

    >>> weights = FlowWeights.from_losses([0.0, 1.0, 2.0])
    >>> weights.temperature, weights.values.round(4).tolist()
    (1.0, [1.0, 0.3679, 0.1353])
    """

    def __init__(
        self,
        relative: NDArray[np.float64],
        log_max: float,
        *,
        source: NDArray[Any],
        temperature: float | None,
        normalize: Normalization,
        exponent: float = 1.0,
    ) -> None:
        """Not for callers: use `from_losses` or `from_weights`.

        ``source`` is what ``relative`` was made from: losses if ``temperature`` is set, else
        weights.
        """
        relative.flags.writeable = False
        self.relative = relative
        self.temperature = temperature
        self.normalize = normalize
        self._log_max = log_max
        self._source = source
        self._exponent = exponent
        self.total = float(relative.sum())
        """Sum of the relative weights: at least 1."""

    @classmethod
    def from_losses(
        cls,
        losses: ArrayLike,
        *,
        temperature: Temperature = "median",
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
    ) -> "FlowWeights":
        """Weights ``exp(-loss / tau)`` (FLOW, arXiv 2502.02797, Algorithm 1).

        Args:
            losses: non-negative per-sample losses of the pre-trained model, shape (n,).
            temperature: tau: "median" (the paper's), "mean", "quantile:q" with q in (0, 1), or
                a positive number in the unit of the loss.
            normalize: scale of `values`: None leaves them as they are, "mean", "max" and "sum"
                divide by that statistic.
            on_invalid: "raise" refuses NaN, infinite and negative losses; "drop" gives such
                rows weight exactly 0 and leaves them out of the temperature.

        It warns of losses in sorted order, which cannot be those of rows in their own.

        Raises:
            InvalidLossError: for empty data, invalid losses, a temperature that is not positive.
            ValueError: for a wrong shape, a mask or an unknown option.
        """
        given = numbers_of(losses, "losses")
        if given.dtype.kind == "b":
            raise ValueError(
                "losses must be numbers, got dtype bool: a mask of the rows to keep is weights, "
                "FlowWeights.from_weights(mask)"
            )
        array = one_dimensional(given, "losses")
        warn_if_sorted(array)
        return cls.from_kept_losses(
            array, temperature=temperature, normalize=normalize, on_invalid=on_invalid
        )

    @classmethod
    def from_kept_losses(
        cls,
        array: NDArray[Any],
        *,
        temperature: Temperature = "median",
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
    ) -> "FlowWeights":
        """As `from_losses`, of an array that nobody can change: it is kept, and not copied.

        ``array`` is of float32 or float64 and shape (n,), a mapped file for one.
        """
        if on_invalid not in ("raise", "drop"):
            raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
        invalid = is_invalid(array)
        if invalid.any() and on_invalid == "raise":
            raise InvalidLossError(
                count_rows(invalid, "losses that are NaN, infinite or negative", array)
                + '; fix the samples or the model, or pass on_invalid="drop" to give these rows '
                "weight 0"
            )
        valid = array[~invalid] if invalid.any() else array
        if valid.size == 0:
            raise InvalidLossError(f"none of the {array.size:,} losses is finite and non-negative")
        tau = resolve_temperature(valid, temperature)
        lowest = float(valid.min())
        relative = _relative_weights(array, lowest, tau)
        relative[invalid] = 0.0
        weights = cls(
            relative, -lowest / tau, source=array, temperature=tau, normalize=_check(normalize)
        )
        if weights.ess < 0.01 * len(weights):
            warn(weights._notes()[0])
        return weights

    @classmethod
    def from_weights(cls, weights: ArrayLike, *, normalize: Normalization = None) -> "FlowWeights":
        """Take weights computed elsewhere: non-negative, finite, not all 0, shape (n,).

        A mask of booleans gives the rows to keep weight 1, the others 0.

        Raises:
            InvalidLossError: for empty data, negative, NaN or infinite weights, or all zeros.
            ValueError: for a wrong shape.
        """
        array = one_dimensional(weights, "weights")
        invalid = is_invalid(array)
        if invalid.any():
            raise InvalidLossError(
                count_rows(invalid, "weights that are NaN, infinite or negative", array)
                + "; a weight must be finite and >= 0"
            )
        highest = float(array.max())
        if highest == 0.0:
            raise InvalidLossError(f"all {array.size:,} weights are 0: no row can be drawn")
        relative = array.astype(np.float64) / highest
        return cls(
            relative,
            math.log(highest),
            source=array,
            temperature=None,
            normalize=_check(normalize),
        )

    def __len__(self) -> int:
        return self.relative.size

    def __getitem__(self, rows: Any) -> Any:
        """The weight of a row, or of an array of rows, under `normalize`."""
        return self.relative[rows] * self._scale

    def __repr__(self) -> str:
        return (
            f"FlowWeights(rows={len(self):,}, temperature={self.temperature}, "
            f"mean={self.mean:.4g}, ess={self.ess:,.1f})"
        )

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """The relative weights of rows [start, stop), float64: not to be written to."""
        return self.relative[start:stop]

    @property
    def values(self) -> NDArray[np.float64]:
        """All weights under `normalize`, float64, shape (n,); a new array."""
        return self.relative * self._scale

    @property
    def mean(self) -> float:
        """Mean weight under `normalize`."""
        return self.total / len(self) * self._scale

    @property
    def max(self) -> float:
        """Largest weight under `normalize`."""
        return self._scale

    @functools.cached_property
    def ess(self) -> float:
        """Effective sample size, ``(sum w)^2 / sum w^2`` (Kish), between 1 and n."""
        return self.total**2 / float(np.square(self.relative).sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of what the weights were made from, equal on every machine."""
        # Of what they were made from, not of the weights: the last bit of a power of given weights
        # depends on the processor.
        digest = xxhash.xxh3_128(
            f"{self.temperature!r}|{self._exponent!r}|{self._source.dtype.str}|".encode()
        )
        digest.update(np.ascontiguousarray(self._source).data)
        return digest.hexdigest()

    @functools.cached_property
    def _scale(self) -> float:
        """What a relative weight is multiplied by; itself the largest weight."""
        match self.normalize:
            case "mean":
                return len(self) / self.total
            case "max":
                return 1.0
            case "sum":
                return 1.0 / self.total
            case _:
                return math.exp(self._log_max)

    def expected_counts(self, epoch_size: int | None = None) -> NDArray[np.float64]:
        """How often each row is expected in an epoch of that many draws (default n)."""
        draws = len(self) if epoch_size is None else epoch_size
        return self.relative * (draws / self.total)

    def power(self, alpha: float) -> "FlowWeights":
        """The weights w^alpha, for alpha in [0, 1]; rows of weight 0 keep it.

        ``w^alpha`` is what a draw follows when a part of the weight is left to the loss, see
        `residual`. It equals FLOW at temperature ``tau / alpha``.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1], got {alpha}")
        if alpha == 1.0:
            return self
        if alpha == 0.0 or self.temperature is None:
            # alpha = 0 gives equal weights, which no finite temperature does.
            logarithms = self._log_relative()
            kept = ~np.isneginf(logarithms)
            relative = np.zeros(len(self))
            relative[kept] = exp(alpha * logarithms[kept])
            return FlowWeights(
                relative,
                alpha * self._log_max,
                source=self._source,
                temperature=None,
                normalize=self.normalize,
                exponent=alpha * self._exponent,
            )
        return FlowWeights(
            exp(alpha * self._log_relative()),
            alpha * self._log_max,
            source=self._source,
            temperature=self.temperature / alpha,
            normalize=self.normalize,
        )

    def residual(self, alpha: float) -> NDArray[np.float64]:
        """The loss weights that remain when rows are drawn by ``w^alpha``, shape (n,).

        ``w^(1 - alpha) * mean(w^alpha) / mean(w)``, with means over all rows, those of weight 0
        included. With them the expected gradient is ``mean(w g) / mean(w)`` for every alpha: for
        alpha > 0 that of a draw by ``w^alpha``; for alpha = 0 that of a pass over all rows, each
        once, where they are ``w / mean(w)``, of mean 1. All 1 at alpha = 1, but for rows of weight
        0, which are never drawn.

        Draws by ``power(0)`` are no pass over all rows: they leave out those of weight 0. Theirs
        is `residual_of_draws`.
        """
        if alpha == 0.0:
            return self.relative * (len(self) / self.total)
        return self.residual_of_draws(alpha)

    def residual_of_draws(self, alpha: float) -> NDArray[np.float64]:
        """As `residual`, but of draws by ``w^alpha`` for alpha = 0 too, as FlowShards makes them.

        Those are of rows of positive weight alone, each alike: with k of n rows, ``w / mean(w)``
        times k / n.
        """
        drawn, kept = self.power(alpha), self.power(1.0 - alpha)
        return kept.relative * (drawn.total / self.total)

    def summary(self) -> WeightSummary:
        """The figures to look at before training with these weights."""
        counts_below = float(np.mean(self.relative * (len(self) / self.total) < 0.01))
        return WeightSummary(
            rows=len(self),
            dropped=int(np.count_nonzero(self.relative == 0.0)),
            temperature=self.temperature,
            mean=self.mean,
            max=self.max,
            mean_over_max=self.total / len(self),
            ess=self.ess,
            largest_expected_count=len(self) / self.total,
            rarely_drawn=counts_below,
            notes=tuple(self._notes()),
        )

    def _log_relative(self) -> NDArray[np.float64]:
        """Logarithms of `relative` that do not underflow; -inf where the weight is exactly 0."""
        if self.temperature is None:
            with np.errstate(divide="ignore"):
                return np.log(self.relative)
        losses = self._source.astype(np.float64)
        invalid = is_invalid(losses)
        with np.errstate(invalid="ignore"):
            logarithms: NDArray[np.float64] = (losses[~invalid].min() - losses) / self.temperature
        logarithms[invalid] = -np.inf
        return logarithms

    def _notes(self) -> list[str]:
        fraction = self.ess / len(self)
        if fraction < 0.01:
            return [
                f"the effective sample size is {self.ess:.1f} of {len(self):,} rows: a few rows "
                "make up nearly all draws; raise the temperature or check the losses"
            ]
        if fraction > 0.9:
            return [
                f"the effective sample size is {fraction:.1%} of the rows: the weights are nearly "
                "equal, and FLOW is then little more than a smaller learning rate"
            ]
        return []


def as_weights(weights: "FlowWeights | HasWeights | ArrayLike") -> FlowWeights:
    """FlowWeights from FlowWeights, a LossTable (median temperature) or an array of weights."""
    if isinstance(weights, FlowWeights):
        return weights
    if isinstance(weights, HasWeights):
        return weights.weights()
    return FlowWeights.from_weights(weights)


def _relative_weights(losses: NDArray[Any], lowest: float, tau: float) -> NDArray[np.float64]:
    relative = np.empty(losses.size, dtype=np.float64)
    for start in range(0, losses.size, _CHUNK):
        part = relative[start : start + _CHUNK]
        # Infinite and NaN losses come this far only to be given weight 0 by the caller.
        with np.errstate(invalid="ignore", over="ignore"):
            np.subtract(lowest, losses[start : start + _CHUNK], out=part, dtype=np.float64)
            part /= tau
            exp(part)
    return relative


def _check(normalize: Normalization) -> Normalization:
    if normalize not in (None, "mean", "max", "sum"):
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    return normalize
