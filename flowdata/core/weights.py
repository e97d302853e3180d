"""FlowWeights: the weight of each row, ``w = exp(-loss / temperature)``, and what it implies."""

import functools
import math
import sys
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import one_dimensional
from flowdata.core.column import Source, sum_pairwise
from flowdata.core.groups import Groups, Name
from flowdata.core.made_weights import FromLosses, Made, as_losses, of_product, of_weights
from flowdata.core.made_weights import OnInvalid as OnInvalid
from flowdata.core.normalization import Normalization as Normalization
from flowdata.core.normalization import require_known
from flowdata.core.relative_weights import Given, OfLogarithms, OfLosses
from flowdata.core.selected_weights import of_rows
from flowdata.core.shares import Shares
from flowdata.core.temperature import Temperature
from flowdata.core.weight_functions import WeightFunction
from flowdata.core.weight_summary import WeightSummary, notes_on, summary_of
from flowdata.errors import InvalidLossError, MismatchError, warn

_LARGEST = math.log(sys.float_info.max)


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

    def __init__(self, made: Made, *, normalize: Normalization = None) -> None:
        """Not for callers: use `from_losses` or `from_weights`."""
        if normalize is None and made.log_max > _LARGEST:
            raise InvalidLossError(
                f"the largest weight would be e^{made.log_max:,.0f}, too large for a number: give "
                'normalize="mean" or smaller weights'
            )
        self.made = made
        """What the weights are made of."""
        self.normalize = require_known(normalize)
        self._is_held = isinstance(made.source, np.ndarray)
        self._powers: dict[float, FlowWeights] = {}

    @classmethod
    def from_losses(
        cls,
        losses: ArrayLike,
        *,
        temperature: Temperature = "median",
        normalize: Normalization = None,
        on_invalid: OnInvalid = "raise",
        function: WeightFunction | None = None,
        groups: ArrayLike | None = None,
        shares: Shares | None = None,
    ) -> "FlowWeights":
        """Weights ``exp(-loss / tau)`` (FLOW, arXiv 2502.02797, Algorithm 1), or any others.

        Args:
            losses: non-negative per-sample losses of the pre-trained model, shape (n,).
            temperature: tau: "median" (the paper's), "mean", "quantile:q" with q in (0, 1), or
                a positive number in the unit of the loss.
            normalize: scale of `values`: None leaves them as they are, "mean", "max" and "sum"
                divide by that statistic.
            on_invalid: "raise" refuses NaN, infinite and negative losses; "drop" gives such
                rows weight exactly 0 and leaves them out of the temperature.
            function: ``function(losses, tau)`` gives the weights in place of exp(-loss / tau):
                numbers >= 0, or booleans. It gets valid losses, float64, shape (m,).
            groups: a name or whole number for each row. Each group has its own temperature.
            shares: of all draws, with groups: "rows", each group's share of the rows (default);
                "equal"; "flow", what its weights give; or a number for each group by its name, in
                proportion.

        It warns of losses in sorted order, which cannot be those of rows in their own.

        Raises:
            InvalidLossError: for empty data, invalid losses, a temperature that is not positive.
            ValueError: for a wrong shape, a mask or an unknown option.
        """
        array = as_losses(losses)
        return cls.from_kept_losses(
            array,
            normalize=normalize,
            temperature=temperature,
            on_invalid=on_invalid,
            function=function,
            groups=None if groups is None else Groups.of(groups, array.size),
            shares=shares,
        )

    @classmethod
    def from_kept_losses(
        cls, source: Source, *, normalize: Normalization = None, **options: Any
    ) -> "FlowWeights":
        """As `from_losses`, of losses that nobody can change: they are kept, and not copied.

        ``options`` are those of `FromLosses`: as there, with `Groups`, and lengths of rows too.

        ``source`` is of float32 or float64 and shape (n,), or a float32 column on a disk. That is
        read through three times: for its statistics, for the temperature if that is a median or a
        quantile, and for the sums. With a function or groups it is read at once, and 16 to 20
        bytes a row are held.
        """
        weights = cls(FromLosses(**options).made(source), normalize=normalize)
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
        return cls(of_weights(one_dimensional(weights, "weights")), normalize=normalize)

    def times(self, factor: "FlowWeights | HasWeights | ArrayLike") -> "FlowWeights":
        """These weights times others of the same rows: class weights, a mask, another table's.

        In logarithms, so that no product underflows: where the rows of the largest weights are
        masked, the others have the weights that they have to each other. A row of weight 0 in
        either keeps it. Groups keep their names, and not their shares.

        Args:
            factor: FlowWeights, a LossTable, n numbers >= 0, or n booleans.

        Raises:
            InvalidLossError: for weights that are none, and where no row is left.
            MismatchError: for another number of rows.

        >>> FlowWeights.from_weights([1.0, 2.0, 4.0]).times([True, True, False]).values.tolist()
        [1.0, 2.0, 0.0]
        """
        other = as_weights(factor)
        if len(other) != len(self):
            raise MismatchError(
                f"there are {len(self):,} weights, but {len(other):,} to multiply them by: give "
                "those of the same rows, in their order"
            )
        made = of_product(self.made, other.made, other.log_max)
        return FlowWeights(made, normalize=self.normalize)

    def select(self, rows: slice | ArrayLike) -> "FlowWeights":
        """The weights of some rows, by numbers, a slice or a mask, with their groups and losses.

        To each other they are as before; under `normalize` they are scaled anew.
        """
        return FlowWeights(of_rows(self.made, self, rows), normalize=self.normalize)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if not self._is_held or isinstance(self.made.relative, Given | OfLogarithms):
            # Another process makes those that it wants, or has them in `made`.
            state.pop("relative", None)
        # Losses and lengths are for the summary.
        state["made"] = replace(self.made, losses=None, lengths=None)
        return state

    def __len__(self) -> int:
        return len(self.made.source)

    @property
    def temperature(self) -> float | None:
        """tau, of weights ``exp(-loss / tau)``; None for others."""
        return self.made.temperature

    @property
    def groups(self) -> NDArray[Any] | None:
        """The number of each row's group, shape (n,), of weights made group by group."""
        return None if self.made.groups is None else self.made.groups.codes

    @property
    def has_groups(self) -> bool:
        """Whether there is more than one group."""
        return len(self.group_names) > 1

    @property
    def group_names(self) -> tuple[Name, ...]:
        """The name of each group, by its number."""
        return () if self.made.groups is None else self.made.groups.names

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
        relative = self.made.relative.part(0, len(self))
        relative.flags.writeable = False
        return relative

    def hold(self) -> None:
        """Hold all weights from now on, for what asks for `part` of all rows again and again."""
        self.relative  # noqa: B018

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """The relative weights of rows [start, stop), float64: not to be written to."""
        if self._is_held or "relative" in self.__dict__:
            return self.relative[start:stop]
        return self.made.relative.part(start, min(stop, len(self)))

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
        digest = self.made.digest()
        digest.update(np.ascontiguousarray(self.made.source).data)
        if self.groups is not None and self.has_groups:
            # Plans lay rows by group.
            digest.update(self.groups.data)
        return digest.hexdigest()

    @functools.cached_property
    def _sums(self) -> tuple[float, float, str]:
        """Sums of the relative weights and of their squares, and the hash of the source."""
        digest, made = self.made.digest(), self.made.relative
        assert isinstance(made, OfLosses)

        def sums(start: int, stop: int) -> NDArray[np.float64]:
            losses = self.made.source[start:stop]
            digest.update(np.ascontiguousarray(losses).data)
            relative = made.of(losses)
            return np.array([relative.sum(), np.square(relative).sum()])

        total, squares = sum_pairwise(sums, 0, len(self)).tolist()
        return total, squares, digest.hexdigest()

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
                return math.exp(self.made.log_max)

    @property
    def log_max(self) -> float:
        """The logarithm of `max`, also where that is too small, or too large, for a float."""
        return self.made.log_max if self.normalize is None else math.log(self._scale)

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
        made = self.made
        of_losses = alpha > 0.0 and made.temperature is not None
        powered = replace(
            made,
            relative=made.relative.power(alpha, made.temperature),
            log_max=alpha * made.log_max,
            temperature=made.temperature / alpha if of_losses and made.temperature else None,
            exponent=1.0 if of_losses else alpha * made.exponent,
            how=made.how if of_losses else "a power of weights",
        )
        return FlowWeights(powered, normalize=self.normalize)

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

    def summary(self, groups: ArrayLike | None = None) -> WeightSummary:
        """The figures to look at before training with these weights.

        Args:
            groups: a name or whole number for each row: the summary has the figures of each group
                too. Default: the groups that the weights were made by, if there are any.
        """
        given = None if groups is None else Groups.of(groups, len(self))
        return summary_of(self, given)

    def plot(self, axes: Any = None) -> Any:
        """Draw how weights are spread over losses, or over rows, and return the matplotlib Axes.

        Args:
            axes: the Axes to draw into; default: those of a new figure.

        Raises:
            ModuleNotFoundError: without matplotlib, the extra ``plot``.
        """
        # What draws stands above the core, and is asked for by name when it is wanted.
        return import_module("flowdata.report.plots").plot_weights(self, axes)


def as_weights(weights: "FlowWeights | HasWeights | ArrayLike") -> FlowWeights:
    """FlowWeights from FlowWeights, a LossTable (median temperature) or an array of weights."""
    if isinstance(weights, FlowWeights):
        return weights
    if isinstance(weights, HasWeights):
        return weights.weights()
    return FlowWeights.from_weights(weights)
