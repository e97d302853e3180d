"""FlowWeights: the weight of each row, ``w = exp(-loss / temperature)``, and what it implies."""

import functools
import math
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, is_invalid, numbers_of, one_dimensional
from flowdata.core.column import PIECE, Source, sum_pairwise
from flowdata.core.loss_statistics import HeldLosses, SurveyedLosses
from flowdata.core.relative_weights import Given, OfLosses, RelativeWeights
from flowdata.core.sorted_losses import warn_if_sorted
from flowdata.core.temperature import Temperature, resolve_temperature
from flowdata.core.weight_summary import WeightSummary, notes_on
from flowdata.errors import InvalidLossError, warn

Normalization: TypeAlias = Literal["mean", "max", "sum"] | None
OnInvalid: TypeAlias = Literal["raise", "drop"]


@runtime_checkable
class HasWeights(Protocol):
    """Anything that makes FlowWeights, a LossTable above all."""

    def weights(self) -> "FlowWeights":
        """Weights at the median temperature."""
        ...


class FlowWeights:
    """Weights of n rows: immutable, float64, made by `from_losses` or `from_weights`.

    They are relative to the largest one, ``exp(-(loss - min loss) / tau)``, so none overflows, and
    the largest never underflows. Made from losses they have the same bits on every machine; with
    ``power(alpha)`` of weights that were given, the last bit depends on the processor. Of losses
    in memory they are held, eight bytes a row; of a column on a disk `part` computes those of a
    run of rows, with the same bits, and statistics are made by going through it.

    >>> weights = FlowWeights.from_losses([0.0, 1.0, 2.0])
    >>> weights.temperature, weights.values.round(4).tolist()
    (1.0, [1.0, 0.3679, 0.1353])
    """

    def __init__(
        self,
        relative: RelativeWeights,
        log_max: float,
        *,
        source: Source,
        temperature: float | None,
        normalize: Normalization,
        exponent: float = 1.0,
    ) -> None:
        """Not for callers: use `from_losses` or `from_weights`.

        ``source`` is what ``relative`` is made from: losses if ``temperature`` is set, else
        weights, or losses that have no part in them but by being valid.
        """
        self.temperature = temperature
        self.normalize = normalize
        self._relative = relative
        self._log_max = log_max
        self._source = source
        self._exponent = exponent
        self._is_held = isinstance(source, np.ndarray)
        self._powers: dict[float, FlowWeights] = {}

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
        source: Source,
        *,
        temperature: Temperature = "median",
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
    ) -> "FlowWeights":
        """As `from_losses`, of losses that nobody can change: they are kept, and not copied.

        ``source`` is of float32 or float64 and shape (n,), or a float32 column on a disk. That is
        read through three times: for its statistics, for the temperature if that is a median or a
        quantile, and for the sums.
        """
        if on_invalid not in ("raise", "drop"):
            raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
        losses = HeldLosses(source) if isinstance(source, np.ndarray) else SurveyedLosses(source)
        if losses.invalid and on_invalid == "raise":
            raise InvalidLossError(
                losses.describe_invalid()
                + '; fix the samples or the model, or pass on_invalid="drop" to give these rows '
                "weight 0"
            )
        if losses.size == 0:
            raise InvalidLossError(f"none of the {len(source):,} losses is finite and non-negative")
        tau, lowest = resolve_temperature(losses, temperature), losses.lowest
        weights = cls(
            OfLosses(source, lowest, tau, has_invalid=losses.invalid > 0),
            -lowest / tau,
            source=source,
            temperature=tau,
            normalize=_check(normalize),
        )
        if weights.ess < 0.01 * len(weights):
            warn(notes_on(weights.ess, len(weights))[0])
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
        return cls(
            Given(array.astype(np.float64) / highest),
            math.log(highest),
            source=array,
            temperature=None,
            normalize=_check(normalize),
        )

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if not self._is_held or isinstance(self._relative, Given):
            # Another process makes those that it wants, or has them in `_relative`.
            state.pop("relative", None)
        return state

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, rows: Any) -> Any:
        """The weight of a row, or of an array of rows, under `normalize`."""
        return self.relative[rows] * self._scale

    def __repr__(self) -> str:
        return (
            f"FlowWeights(rows={len(self):,}, temperature={self.temperature}, "
            f"mean={self.mean:.4g}, ess={self.ess:,.1f})"
        )

    @functools.cached_property
    def relative(self) -> NDArray[np.float64]:
        """All weights, over the largest: float64, shape (n,), held from now on."""
        relative = self._relative.part(0, len(self))
        relative.flags.writeable = False
        return relative

    def hold(self) -> None:
        """Hold all weights from now on, for what asks for `part` of all rows again and again."""
        self.relative  # noqa: B018

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """The relative weights of rows [start, stop), float64: not to be written to."""
        if self._is_held or "relative" in self.__dict__:
            return self.relative[start:stop]
        return self._relative.part(start, min(stop, len(self)))

    @functools.cached_property
    def total(self) -> float:
        """Sum of the relative weights: at least 1."""
        return float(self.relative.sum()) if self._is_held else self._sums[0]

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
        if self._is_held:
            return self.total**2 / float(np.square(self.relative).sum())
        return self.total**2 / self._sums[1]

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of what the weights were made from, equal on every machine."""
        if not self._is_held:
            return self._sums[2]
        digest = self._digest()
        digest.update(np.ascontiguousarray(self._source).data)
        return digest.hexdigest()

    @functools.cached_property
    def _sums(self) -> tuple[float, float, str]:
        """Sums of the relative weights and of their squares, and the hash of the source."""
        digest, made = self._digest(), self._relative
        assert isinstance(made, OfLosses)

        def sums(start: int, stop: int) -> NDArray[np.float64]:
            losses = self._source[start:stop]
            digest.update(np.ascontiguousarray(losses).data)
            relative = made.of(losses)
            return np.array([relative.sum(), np.square(relative).sum()])

        total, squares = sum_pairwise(sums, 0, len(self)).tolist()
        return total, squares, digest.hexdigest()

    def _digest(self) -> xxhash.xxh3_128:
        # Of what they were made from, not of the weights: the last bit of a power of given weights
        # depends on the processor.
        return xxhash.xxh3_128(
            f"{self.temperature!r}|{self._exponent!r}|{self._source.dtype.str}|".encode()
        )

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
        if self._is_held:
            return self._power(alpha)
        # Its sums are made by going through the column: once.
        if alpha not in self._powers:
            self._powers[alpha] = self._power(alpha)
        return self._powers[alpha]

    def _power(self, alpha: float) -> "FlowWeights":
        # alpha = 0 gives equal weights, which no finite temperature does.
        of_losses = alpha > 0.0 and self.temperature is not None
        return FlowWeights(
            self._relative.power(alpha, self.temperature),
            alpha * self._log_max,
            source=self._source,
            temperature=self.temperature / alpha if of_losses and self.temperature else None,
            normalize=self.normalize,
            exponent=1.0 if of_losses else alpha * self._exponent,
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
        rare = dropped = 0
        for start in range(0, len(self), PIECE):
            relative = self.part(start, start + PIECE)
            rare += int(np.count_nonzero(relative * (len(self) / self.total) < 0.01))
            dropped += int(np.count_nonzero(relative == 0.0))
        return WeightSummary(
            rows=len(self),
            dropped=dropped,
            temperature=self.temperature,
            mean=self.mean,
            max=self.max,
            mean_over_max=self.total / len(self),
            ess=self.ess,
            largest_expected_count=len(self) / self.total,
            rarely_drawn=rare / len(self),
            notes=tuple(notes_on(self.ess, len(self))),
        )


def as_weights(weights: "FlowWeights | HasWeights | ArrayLike") -> FlowWeights:
    """FlowWeights from FlowWeights, a LossTable (median temperature) or an array of weights."""
    if isinstance(weights, FlowWeights):
        return weights
    if isinstance(weights, HasWeights):
        return weights.weights()
    return FlowWeights.from_weights(weights)


def _check(normalize: Normalization) -> Normalization:
    if normalize not in (None, "mean", "max", "sum"):
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    return normalize
