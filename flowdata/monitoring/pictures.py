"""The figures of a Monitor as a text and as a picture."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.monitoring.deciles import DECILES, name_of

Shares: TypeAlias = dict[str, tuple[float, float]]
"""Of each group by its name: of the rows, and of the draws."""
MOST_GROUPS = 50
"""Groups that have figures of their own: those with the most rows."""


def shares(names: Sequence[Any], sizes: NDArray[Any], draws: NDArray[Any], total: int) -> Shares:
    """The share of the rows, and of the draws, of each group that has rows.

    Args:
        names, sizes, draws: of each group: its name, rows and draws.
        total: draws that shares are of; of 0 draws they are NaN.
    """
    of_rows = sizes / sizes.sum()
    of_draws = draws / total if total else np.full(draws.size, np.nan)
    largest = sorted(np.flatnonzero(sizes).tolist(), key=lambda number: -int(sizes[number]))
    shown = sorted(largest[:MOST_GROUPS])
    found = {
        str(names[number]): (float(of_rows[number]), float(of_draws[number])) for number in shown
    }
    if rest := largest[MOST_GROUPS:]:
        found["others"] = float(of_rows[rest].sum()), float(of_draws[rest].sum())
    return found


def deciles_text(
    by_decile: Shares, scored: NDArray[np.float64], now: NDArray[np.float64]
) -> list[str]:
    """Lines of a table: shares of each decile, and its mean loss as scored and now."""
    is_known = not np.isnan(now).all()
    head = [
        "decile of loss",
        "of rows",
        "of draws",
        *["loss as scored", "now", "change"] * is_known,
    ]
    rows = []
    for decile in range(DECILES):
        if name_of(decile) not in by_decile:
            continue
        then, current = float(scored[decile]), float(now[decile])
        losses = [_number(then), _number(current), _number(current - then, "+")]
        shown = map(_percent, by_decile[name_of(decile)])
        rows.append([str(decile + 1), *shown, *losses * is_known])
    return _lines(head, rows)


def groups_text(by_group: Shares) -> list[str]:
    """Lines of a table: shares of each group."""
    rows = [[name, *map(_percent, both)] for name, both in by_group.items()]
    return _lines(["group", "of rows", "of draws"], rows)


def plot_deciles(
    axes: Any, by_decile: Shares, scored: NDArray[np.float64], now: NDArray[np.float64]
) -> None:
    """The share of draws of each decile as bars, and its loss as scored and now as lines.

    Args:
        axes: matplotlib Axes.
        by_decile: shares.
        scored, now: mean losses of the same samples; NaN where none were handed over.
    """
    deciles = np.arange(1, DECILES + 1)
    of_draws = [by_decile.get(name_of(decile), (0.0, 0.0))[1] for decile in range(DECILES)]
    axes.bar(deciles, 100.0 * np.array(of_draws), color="C0", alpha=0.4, label="draws")
    axes.axhline(100.0 / DECILES, color="C0", linestyle=":", label="without weights")
    axes.set(
        xlabel="decile of the pre-trained loss, from easy to hard",
        ylabel="of the draws, percent",
        xticks=deciles,
    )
    handles, labels = axes.get_legend_handles_labels()
    if not np.isnan(now).all():
        right = axes.twinx()
        right.plot(deciles, scored, "o--", color="C7", label="loss as scored")
        right.plot(deciles, now, "o-", color="C3", label="loss now")
        right.set(ylabel="loss", ylim=(0.0, None))
        more = right.get_legend_handles_labels()
        handles, labels = handles + more[0], labels + more[1]
    axes.legend(handles, labels, frameon=False)


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    ]


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{share:.1%}"


def _number(value: float, sign: str = "") -> str:
    return "" if np.isnan(value) else f"{value:{sign}.4g}"
