"""Monitor: what happens while training, by the plan, and by losses that are handed over."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import numbers_of, one_dimensional
from flowdata.core.column import PIECE
from flowdata.core.groups import Groups
from flowdata.core.plan import non_negative
from flowdata.core.states import VERSION, require_same, shown
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.errors import MismatchError
from flowdata.monitoring.counts import Counts
from flowdata.monitoring.deciles import (
    DECILES,
    NO_LOSS,
    CurrentLosses,
    decile_of_rows,
    name_of,
)
from flowdata.monitoring.pictures import Shares, deciles_text, groups_text, plot_deciles, shares
from flowdata.monitoring.places import (
    Drawn,
    Order,
    RunningPass,
    Stretch,
    is_source,
    read_stretches,
)
from flowdata.report.plots import new_axes

_CURRENT = 1
_PLAN, _ITEMS, _STRETCHES, _LOSSES = "plan", "items", "stretches", "losses"


class Monitor:
    """Counts which rows were drawn so far, and follows the losses of easy and hard ones.

    The rows of a step follow from the plan, those of all ranks: nothing is read from batches. In a
    loop of your own, say `step` after each batch; under the transformers Trainer and Lightning a
    ``MonitorCallback(monitor)`` does it, see `flowdata.frameworks`. Figures go wherever you log.

    Args:
        drawn: the FlowSampler, FlowPackSampler, FlowDataset, FlowPacks or FlowShards that is
            trained on; or the weights or table of its rows, where a callback finds what is drawn.
        groups: a name or whole number for each row; default: those the weights were made by.
        losses: of the pre-trained model, shape (n,); default: those that the weights were made of.
            Without any there are no figures by decile.
        over: samples that the mean current losses go back over, of this process.
        in_order: whether a FlowDataset or FlowPacks is read in order (a loader without shuffling).
            Where it is not, and with FlowShards, which rows a step has is not known: they are
            counted at the end of each epoch. Callbacks find out by themselves.

    Raises:
        MismatchError: for groups or losses of another number of rows.
        TypeError, ValueError: for what cannot be drawn from, or is no losses.

    >>> from flowdata import FlowSampler
    >>> sampler = FlowSampler([1.0, 1.0, 2.0], epoch_size=4)
    >>> monitor = Monitor(sampler, groups=["a", "a", "b"])
    >>> for row in sampler:
    ...     assert monitor.step(1).tolist() == [row]
    >>> monitor.figures()
    {'flowdata/coverage': 1.0, 'flowdata/draws/group_a': 0.5, 'flowdata/draws/group_b': 0.5}
    """

    def __init__(
        self,
        drawn: Any,
        *,
        groups: ArrayLike | None = None,
        losses: ArrayLike | None = None,
        over: float = 10_000,
        in_order: bool = False,
    ) -> None:
        self._drawn = Drawn(drawn) if is_source(drawn) else None
        weights = _weights_of(drawn) if self._drawn is None else self._drawn.weights
        self._rows, self._over, self.in_order = len(weights), over, in_order
        self.groups = weights.made.groups if groups is None else Groups.of(groups, self._rows)
        """The group of each row, if there are groups."""
        known = weights.made.losses if losses is None else _as_scored(losses, self._rows)
        self._scored: NDArray[Any] | None = None if known is None else known[:]
        self.deciles = None if self._scored is None else decile_of_rows(self._scored)
        """The tenth of the rows that each one is in by its scored loss, if losses are known."""
        self._rows_drawable = sum(
            int(np.count_nonzero(weights.part(start, start + PIECE)))
            for start in range(0, self._rows, PIECE)
        )
        self.reset()

    def reset(self) -> None:
        """Forget everything that was counted."""
        groupings = [groups for groups in (self.groups, self.deciles) if groups is not None]
        self._counts = Counts(self._rows, groupings)
        self._stretches: list[Stretch] = []
        self._running: RunningPass | None = None
        self._position = 0
        self._losses = None
        if self._scored is not None and self.deciles is not None:
            self._losses = CurrentLosses(self._scored, self.deciles, self._over)

    @property
    def source(self) -> Any:
        """What is drawn from, if it is known."""
        return None if self._drawn is None else self._drawn.source

    def watch(self, source: Any) -> Drawn:
        """Count what is drawn from this source from now on.

        What was counted is forgotten, unless it was drawn by the same plan.

        Raises:
            MismatchError: for one of another number of rows.
        """
        drawn = Drawn(source)
        if len(drawn.weights) != self._rows:
            raise MismatchError(
                f"the Monitor is of {self._rows:,} rows, and the {type(source).__name__} that is "
                f"trained on of {len(drawn.weights):,}: make it of the same weights"
            )
        before, self._drawn = self._drawn, drawn
        if before is None or before.identity() != drawn.identity():
            self.reset()
        return drawn

    def step(self, batch_size: int) -> NDArray[np.int64] | None:
        """Count a batch of every rank, of the pass that is under way.

        Args:
            batch_size: draws (or packs) in the batch of this rank, the same on all ranks.

        Returns:
            The rows of this rank's batch, in their order, or None where they are not known.

        Raises:
            ValueError: where it is not known what is drawn from, or for a negative size.
        """
        drawn = self._require_drawn()
        running = self._go_to(drawn)
        ranks, rank = drawn.ranks()
        batch_size = non_negative(batch_size, "batch_size")
        start, stop = self._position, self._position + batch_size * ranks
        self._position = stop
        order: Order = "plan" if drawn.has_order or self.in_order else "unknown"
        if order == "unknown" and stop > drawn.items - (stop - start):
            # Less than a step is left, which a loader may drop: the epoch is over, or nearly so.
            stop = max(stop, drawn.items)
        self.add(Stretch(running.seed, running.epoch, order, start, stop))
        numbers = drawn.numbers_of_rank(start, batch_size, ranks, rank)
        if order == "unknown" or numbers is None:
            return None
        return drawn.rows_of(running.seed, running.epoch, numbers)

    def add(self, stretch: Stretch) -> None:
        """Count items that all ranks together were trained on."""
        items, before = self._require_drawn().items, stretch.start
        if self._stretches and self._stretches[-1].leads_to(stretch):
            whole = self._stretches.pop()._replace(stop=stretch.stop)
        else:
            whole = stretch
        if stretch.order != "unknown":
            self._count(stretch)
        elif before < items <= whole.stop:
            self._count(whole)
        self._stretches.append(whole)

    def log_losses(self, rows: ArrayLike, losses: ArrayLike) -> None:
        """Take the losses that rows have now: forgetting shows as those of easy deciles rising.

        They are kept as means for each decile, of this process. They must be of the kind that was
        scored: in language, means over the tokens of a sample. Those that are not finite are left
        out and counted.

        Args:
            rows: row number of each sample, shape (k,); see `step`.
            losses: of each sample, without weights, shape (k,): an array or a tensor.

        Raises:
            ValueError: for other shapes or rows, or where no scored losses are known.
        """
        if self._losses is None:
            raise ValueError(
                "there are no scored losses to compare with, as the weights were not made of "
                "losses: give Monitor(..., losses=table.losses)"
            )
        self._losses.add(rows, losses)

    def figures(self, *, gather: bool = False) -> dict[str, float]:
        """What is known now, by name: see `flowdata/monitoring/README.md`.

        Nothing of draws before any was counted, nothing of losses before any was handed over.

        Args:
            gather: losses of what all ranks were handed, not of this process alone. Call it on
                all ranks at the same step then: each waits for the others. Callbacks do.
        """
        found: dict[str, float] = {}
        if self._counts.draws:
            found["coverage"] = self._counts.rows_seen / self._rows_drawable
            for name, (_, share) in self._by_decile().items():
                found[f"draws/{name}"] = share
            for name, (_, share) in self._by_group().items():
                found[f"draws/group_{name}"] = share
        scored, now = self._mean_losses(gather=gather)
        for decile in np.flatnonzero(~np.isnan(now)).tolist():
            found[f"loss/{name_of(decile)}"] = float(now[decile])
            found[f"loss_change/{name_of(decile)}"] = float(now[decile] - scored[decile])
        return {f"flowdata/{name}": value for name, value in found.items()}

    def summary(self) -> str:
        """The figures as a text."""
        seen = self._counts.rows_seen
        text = [
            f"{self._counts.draws:,} draws, {seen:,} of {self._rows_drawable:,} rows of positive "
            f"weight seen ({seen / self._rows_drawable:.1%})"
        ]
        if self.deciles is not None:
            text += ["", *deciles_text(self._by_decile(), *self._mean_losses())]
        if self.groups is not None:
            text += ["", *groups_text(self._by_group())]
        if self._losses is not None and self._losses.left_out:
            left_out, given = self._losses.left_out, self._losses.given
            text += ["", f"{left_out:,} of {given:,} losses were no finite numbers: left out"]
        return "\n".join(text)

    def plot(self, axes: Any = None) -> Any:
        """Draw shares of draws and losses by decile, and return the matplotlib Axes.

        Args:
            axes: the Axes to draw into; default: those of a new figure.

        Raises:
            ModuleNotFoundError: without matplotlib, the extra ``plot``.
            ValueError: where no scored losses are known.
        """
        if self.deciles is None:
            raise ValueError("there are no deciles without losses: give Monitor(..., losses=)")
        axes = new_axes() if axes is None else axes
        plot_deciles(axes, self._by_decile(), *self._mean_losses())
        return axes

    def state_dict(self) -> dict[str, Any]:
        """A fresh, JSON-able dict from which `load_state_dict` goes on.

        It says which parts of which epochs were trained on: a few numbers for each epoch.
        """
        drawn = self._drawn
        return {
            VERSION: _CURRENT,
            _PLAN: None if drawn is None else drawn.identity(),
            _ITEMS: None if drawn is None else drawn.items,
            _STRETCHES: [list(stretch) for stretch in self._stretches],
            _LOSSES: None if self._losses is None else self._losses.state(),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state: draws are counted again, by the plan.

        Raises:
            MismatchError: when the state is of other weights or options, or not a state at all.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or own.keys() - state.keys():
            raise MismatchError(f"not a Monitor state: {shown(state)}")
        same = (VERSION, _PLAN, _ITEMS)
        require_same(
            {name: own[name] for name in same},
            {name: state[name] for name in same},
            what="the saved Monitor state",
            advice="Make the Monitor of the same sampler or data set, with the same options",
        )
        stretches = read_stretches(state[_STRETCHES])
        losses = None if self._losses is None else self._losses.read(state[_LOSSES])
        self.reset()
        self._losses = losses
        self._stretches = stretches
        for stretch in stretches:
            if stretch.order != "unknown" or stretch.stop >= self._require_drawn().items:
                self._count(stretch)

    def _count(self, stretch: Stretch) -> None:
        drawn = self._require_drawn()
        if stretch.order != "unknown":
            self._counts.add(drawn.rows(stretch))
        elif stretch.start == 0:
            self._counts.add_counts(drawn.counts(stretch.seed, stretch.epoch))

    def _go_to(self, drawn: Drawn) -> RunningPass:
        """The pass that is under way, and in it the position after what was counted."""
        running, before = drawn.running(), self._running
        is_over = running.began is None and self._position >= drawn.items
        if running.is_pass_of(before) and not is_over:
            return running
        self._running, self._position = running, running.position
        last = self._stretches[-1] if self._stretches else None
        if before is None and running.began is None and last is not None:
            # A data set does not know its position, but a loaded state does.
            goes_on = last.epoch == running.epoch and last.stop < drawn.items
            self._position = last.stop if goes_on else 0
        return running

    def _require_drawn(self) -> Drawn:
        if self._drawn is None:
            raise ValueError(
                "this Monitor was made of weights, and it is not known what is drawn from: make "
                "it of the sampler or data set, Monitor(sampler), or give it to a MonitorCallback"
            )
        return self._drawn

    def _by_decile(self) -> Shares:
        found = {} if self.deciles is None else self._shares(self.deciles, -1)
        found.pop(NO_LOSS, None)
        return found

    def _by_group(self) -> Shares:
        return {} if self.groups is None else self._shares(self.groups, 0)

    def _shares(self, groups: Groups, number: int) -> Shares:
        counts = self._counts
        return shares(groups.names, counts.sizes[number], counts.of_groups[number], counts.draws)

    def _mean_losses(
        self, *, gather: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """As scored, and now, of each decile; NaN where none were handed over."""
        if self._losses is None:
            return np.full(DECILES, np.nan), np.full(DECILES, np.nan)
        return self._losses.means(gather=gather)


def _weights_of(drawn: Any) -> FlowWeights:
    if isinstance(drawn, FlowWeights | HasWeights) or hasattr(drawn, "__getitem__"):
        return as_weights(drawn)
    raise TypeError(
        f"a Monitor is of a sampler or a data set of flowdata, or of weights, got "
        f"{type(drawn).__name__}: what that draws is not known"
    )


def _as_scored(losses: ArrayLike, rows: int) -> NDArray[Any]:
    scored = one_dimensional(numbers_of(losses, "losses"), "losses")
    if scored.size != rows:
        raise MismatchError(
            f"there are {scored.size:,} losses for {rows:,} rows; give the losses of all rows that "
            "were scored, in their order"
        )
    return scored
