"""Figures of losses, weights and what a training kept and learned.

Each function draws into a matplotlib Axes that the caller made; matplotlib is the ``plot`` extra.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import is_invalid
from flowdata.core.group_summary import GroupSummary, shown_groups
from flowdata.core.groups import Groups
from flowdata.core.weights import FlowWeights
from flowdata.report.row_lengths import RowLengths
from flowdata.report.texts import visible

_WEIGHT_COLOR = "black"
_MOST_GROUPS = 8
_POINTS = 500
_USUAL = 0.995
_MOST_BARS = 12
_MOST_OF_NAME = 28


def plot_losses(axes: Any, losses: Mapping[str, NDArray[Any]], weights: FlowWeights) -> None:
    """Histogram of losses, the temperature, and the weight as a function of the loss.

    Args:
        axes: matplotlib Axes; the weight gets an axis of its own on the right.
        losses: losses of each group of samples, stacked in this order.
        weights: the weights of all of them, made by ``FlowWeights.from_losses``.

    Raises:
        ValueError: for weights that have no temperature.
    """
    tau = weights.temperature
    if tau is None:
        raise ValueError("the weight curve needs a temperature: use FlowWeights.from_losses")
    top = _plot_histogram(axes, losses)
    axes.axvline(tau, color=_WEIGHT_COLOR, linestyle=":", label=rf"temperature $\tau$ = {tau:.3g}")
    curve = np.linspace(0.0, top, 200)
    right = axes.twinx()
    right.plot(
        curve, np.exp(-curve / tau), color=_WEIGHT_COLOR, label=r"weight = exp(-loss / $\tau$)"
    )
    right.set(ylabel="weight", ylim=(0.0, 1.05))
    _add_legend(axes, right)


def _plot_histogram(axes: Any, losses: Mapping[str, NDArray[Any]]) -> float:
    """Losses of groups, stacked; the end of the axis."""
    together = np.concatenate(list(losses.values()))
    bins = int(np.clip(together.size**0.5, 8, 40))
    names = [f"{label_of(name)} ({len(values):,})" for name, values in losses.items()]
    top = _end_of_axis(together)
    _, edges, _ = axes.hist(
        list(losses.values()),
        bins=bins,
        range=(float(together.min()), top),
        stacked=True,
        label=names,
        alpha=0.75,
    )
    beyond = int(np.count_nonzero(together > top))
    note = f"\n{beyond:,} beyond {top:.3g}, up to {together.max():.3g}" if beyond else ""
    axes.set(xlabel=f"loss of the pre-trained model{note}", ylabel="samples")
    return float(edges[-1])


def _add_legend(left: Any, right: Any) -> None:
    (marks, names), (more, others) = (each.get_legend_handles_labels() for each in (left, right))
    left.legend(marks + more, names + others, frameon=False, loc="upper right")


def plot_weights(weights: FlowWeights, axes: Any = None, groups: Groups | None = None) -> Any:
    """Losses, by group, and the weight of each; or rows by falling weight, if losses are unknown.

    Args:
        weights: any.
        axes: matplotlib Axes; default: those of a new figure.
        groups: of the rows; default: those that the weights were made by, if any.

    Returns:
        The Axes.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    if axes is None:
        axes = new_axes()
    if weights.made.losses is None:
        plot_expected_counts(axes, weights)
        return axes
    losses = weights.made.losses[:]
    rows = _rows_of(weights.made.groups if groups is None else groups, is_invalid(losses))
    by_name = {name: losses[some] for name, some in rows.items()}
    if weights.temperature is not None:
        plot_losses(axes, by_name, weights)
        return axes
    top = _plot_histogram(axes, by_name)
    right = axes.twinx()
    for number, some in enumerate(rows.values()):
        # Some hundred points show the same as a million.
        order = some[losses[some].argsort()]
        shown = order[np.unique(np.linspace(0, order.size - 1, _POINTS).astype(int))]
        shown = shown[losses[shown] <= top]
        color = f"C{number}" if len(rows) > 1 else _WEIGHT_COLOR
        marks = {"marker": ".", "linestyle": "none", "markersize": 3, "color": color}
        marks["label"] = "weights" if number == 0 else None
        right.plot(losses[shown], weights.relative[shown], **marks)
    right.set(ylabel="weight, over the largest", ylim=(0.0, 1.05))
    _add_legend(axes, right)
    return axes


def _rows_of(groups: Groups | None, invalid: NDArray[np.bool_]) -> dict[str, NDArray[np.intp]]:
    """The rows with a valid loss of each group, of many the largest and the rest."""
    if groups is None or len(groups) == 1:
        return {"samples": np.flatnonzero(~invalid)}
    rows = groups.rows()
    shown = set(np.argsort(-groups.sizes(), kind="stable")[:_MOST_GROUPS].tolist())
    named = {str(groups.names[number]): rows[number] for number in sorted(shown)}
    others = [some for number, some in enumerate(rows) if number not in shown]
    if others:
        named["others"] = np.concatenate(others)
    valid = {name: some[~invalid[some]] for name, some in named.items()}
    return {name: some for name, some in valid.items() if some.size}


def new_axes() -> Any:
    """The Axes of a new figure.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a plot needs matplotlib: pip install 'flowdata[plot]'"
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def _end_of_axis(losses: NDArray[Any]) -> float:
    """The largest loss, unless a few that are far out would squeeze all others into one bar."""
    largest, usual = float(losses.max()), float(np.quantile(losses, _USUAL))
    return usual if largest > 2 * usual > 0.0 else largest


def plot_expected_counts(axes: Any, weights: FlowWeights) -> None:
    """How often rows are expected in an epoch of as many draws as rows, rows by falling count."""
    counts = np.sort(weights.expected_counts())[::-1]
    # Some hundred points draw the same line as a million.
    places = np.unique(np.linspace(0, counts.size - 1, min(counts.size, 500)).astype(int))
    share = 100.0 * (places + 0.5) / counts.size
    axes.fill_between(share, counts[places], step="mid", alpha=0.3)
    axes.step(share, counts[places], where="mid")
    axes.axhline(1.0, color=_WEIGHT_COLOR, linestyle=":", label="without weights")
    axes.set(
        xlabel="rows from easiest to hardest, percent",
        ylabel="expected draws in an epoch",
        xlim=(0.0, 100.0),
        ylim=(0.0, None),
    )
    axes.legend(frameon=False)


def plot_groups(axes: Any, groups: Sequence[GroupSummary]) -> None:
    """Of each group, of many the largest, its share of rows, of draws and of tokens drawn."""
    shown = shown_groups(groups, _MOST_BARS)[::-1]
    shares: dict[str, tuple[list[float | None], str]] = {
        "of rows": ([group.share_of_rows for group in shown], "0.7"),
        "of draws, expected": ([group.share_of_draws for group in shown], "C0"),
        "of tokens drawn, expected": ([group.share_of_tokens for group in shown], "C1"),
    }
    shares = {name: share for name, share in shares.items() if None not in share[0]}
    height = 0.8 / len(shares)
    places = np.arange(len(shown))
    for number, (name, (values, color)) in enumerate(shares.items()):
        up = (0.5 * (len(shares) - 1) - number) * height
        percent = 100.0 * np.array(values, dtype=float)
        axes.barh(places + up, percent, height=0.9 * height, color=color, label=name)
    axes.set_yticks(places, [label_of(group.name) for group in shown])
    axes.set(xlabel="share, percent", ylim=(-0.6, len(shown) - 0.4))
    axes.figure.legend(frameon=False, loc="outside upper center", ncols=len(shares))


def plot_lengths(axes: Any, lengths: RowLengths) -> None:
    """Rows by length, and where the tokens that are drawn come from."""
    bars = lengths.bars
    places = np.arange(len(bars))
    rows = [100.0 * bar.share_of_rows for bar in bars]
    tokens = [100.0 * bar.expected_share_of_tokens for bar in bars]
    axes.bar(places - 0.2, rows, width=0.4, color="0.7", label="share of rows")
    axes.bar(places + 0.2, tokens, width=0.4, color="C0", label="of tokens drawn, expected")
    # Bars may be of different width, so each says where it begins.
    marked = places[:: max(len(bars) // 8, 1)]
    axes.set_xticks(marked - 0.5, [f"{bars[place].shortest:,}" for place in marked])
    axes.set(xlabel=lengths.of, ylabel="percent", xlim=(-0.6, len(bars) - 0.4))
    axes.legend(frameon=False)


def label_of(name: object) -> str:
    """A name as a figure can show it."""
    text = visible(" ".join(str(name).split()))
    text = text if len(text) <= _MOST_OF_NAME else f"{text[: _MOST_OF_NAME - 1]}…"
    # matplotlib takes a dollar sign for the begin of a formula, and leaves _names out of legends.
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def plot_comparison(axes: Any, first: NDArray[Any], second: NDArray[Any]) -> None:
    """Losses of the same rows in two tables, as a density."""
    valid = np.isfinite(first) & np.isfinite(second)
    axes.hexbin(first[valid], second[valid], gridsize=45, bins="log", mincnt=1, cmap="Blues")
    top = float(max(first[valid].max(), second[valid].max()))
    axes.plot([0.0, top], [0.0, top], color=_WEIGHT_COLOR, linestyle=":", linewidth=1)
    axes.set(xlabel="loss in this table", ylabel="loss in the other table")


def plot_kept_against_learned(
    axes: Any, runs: Mapping[str, Sequence[tuple[float, float]]], *, start: tuple[float, float]
) -> None:
    """A point a run: new task to the right, old task upwards, the mean of each method large.

    Args:
        axes: matplotlib Axes.
        runs: (new, old) accuracy of each run, by method.
        start: (new, old) accuracy of the pre-trained model.
    """
    for number, (method, points) in enumerate(runs.items()):
        color = f"C{number}"
        learned, kept = np.array(points, dtype=float).T
        axes.scatter(learned, kept, s=18, color=color, alpha=0.55, linewidths=0)
        axes.scatter(
            [learned.mean()], [kept.mean()], s=130, color=color, edgecolors="white", label=method
        )
    axes.scatter(*start, marker="*", s=220, color="black", label="pre-trained")
    axes.set(xlabel="accuracy on the new task: learned", ylabel="accuracy on the old task: kept")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
