"""What the sampler benchmark shows: its tables and its figure."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import Results, Table, Target, canvas, horizontal_bars, log_log, number, quotient

SYSTEMATIC, MULTINOMIAL, RANDOM, WEIGHTED = "systematic", "multinomial", "random", "weighted"
LABELS = {
    SYSTEMATIC: "FlowSampler",
    MULTINOMIAL: "FlowSampler multinomial",
    RANDOM: "RandomSampler",
    WEIGHTED: "WeightedRandomSampler",
}
STYLES: dict[str, dict[str, Any]] = {
    SYSTEMATIC: {"color": "#0072B2", "marker": "o", "linewidth": 2.4},
    MULTINOMIAL: {"color": "#56B4E9", "marker": "o", "linewidth": 2.4},
    RANDOM: {"color": "0.5", "marker": "s", "linewidth": 1.6},
    WEIGHTED: {"color": "#D55E00", "marker": "s", "linewidth": 1.6, "linestyle": "--"},
}
OURS = (SYSTEMATIC, MULTINOMIAL)
THEIRS = (RANDOM, WEIGHTED)
DRAWING = (*OURS, WEIGHTED)
"""Those that draw by weight."""

COUNTED_EPOCHS = 50


def tables(results: Results, goals: Sequence[Target]) -> list[Table]:
    """Everything a reader wants to see, as text."""
    median = results.median
    compared = results.sizes("resume_s")
    (counted,), (fed,) = results.sizes("distinct"), results.sizes("loader_s")

    def by_size(title: str, name: str, cell: Callable[[float | None, int], str]) -> Table:
        rows = [
            [f"{n:,}", *(cell(median(method, n, name), n) for method in LABELS)]
            for n in results.sizes(name)
        ]
        return Table(title, ["n", *LABELS.values()], rows)

    def megabytes(value: float | None, n: int) -> str:
        return "-" if value is None else f"{number(value / 1e6)} ({number(value / n)})"

    return [
        Table(
            "Targets",
            ["FlowSampler", "at most", "measured", "verdict"],
            [[goal.name, f"{goal.limit:g}", number(goal.measured), goal.verdict] for goal in goals],
            "They are set for n = 10,000,000 and, for FlowSampler alone, n = 100,000,000; "
            "at other sizes a verdict says little.",
        ),
        by_size("Time to the first index, seconds", "first_s", number),
        by_size("Whole epoch, seconds", "epoch_s", number),
        by_size("Peak memory above the weights, MB (bytes a draw)", "peak_bytes", megabytes),
        Table(
            "FlowSampler as a share of the others",
            ["", *(f"n = {n:,}" for n in compared)],
            [
                [
                    f"{what}: {LABELS[a]} / {LABELS[b]}",
                    *(number(quotient(median(a, n, name), median(b, n, name))) for n in compared),
                ]
                for what, name in (
                    ("first index", "first_s"),
                    ("whole epoch", "epoch_s"),
                    ("peak memory", "peak_bytes"),
                )
                for a in OURS
                for b in THEIRS
            ],
        ),
        Table(
            "Resume at the middle of an epoch, seconds",
            ["sampler", "n", "start", "resume", "resume / start", "hashing the weights alone"],
            [
                [
                    LABELS[method],
                    f"{n:,}",
                    number(start := median(method, n, "first_s")),
                    number(resumed := median(method, n, "resume_s")),
                    number(quotient(resumed, start)),
                    number(median(method, n, "hash_s")),
                ]
                for method in OURS
                for n in compared
            ],
        ),
        Table(
            f"Draws of a row, n = {counted:,}, {COUNTED_EPOCHS} epochs",
            ["sampler", "variance, mean of rows", "in theory", "distinct rows an epoch", "of n"],
            [
                [
                    LABELS[method],
                    number(median(method, counted, "count_variance")),
                    number(median(method, counted, "theory_variance")),
                    f"{median(method, counted, 'distinct') or 0:,.0f}",
                    number(quotient(median(method, counted, "distinct"), counted)),
                ]
                for method in DRAWING
            ],
        ),
        Table(
            f"Epoch of a DataLoader, n = {fed:,}, seconds",
            ["sampler", "with it", "with shuffle=True", "median ratio"],
            [
                [
                    LABELS[method],
                    *(number(median(method, fed, f)) for f in ("loader_s", "shuffle_s")),
                    number(median(method, fed, "loader_ratio")),
                ]
                for method in DRAWING
            ],
        ),
    ]


def draw(results: Results, path: Path) -> None:
    """The figure: times and memory against n, and what an epoch looks like."""
    with canvas(path, rows=2, columns=3) as (figure, (curves, bars)):
        for axes, name, title, what, unit in (
            (curves[0], "first_s", "Time to the first index", "seconds", 1.0),
            (curves[1], "epoch_s", "Whole epoch", "seconds", 1.0),
            (curves[2], "peak_bytes", "Peak memory above the weights", "MB", 1e6),
        ):
            log_log(axes, title, "rows n = draws in an epoch", what)
            for method, label in LABELS.items():
                points = {
                    n: quotient(results.median(method, n, name), unit) for n in results.sizes(name)
                }
                known = {n: value for n, value in points.items() if value}
                axes.plot(*zip(*known.items(), strict=True), label=label, **STYLES[method])
        for axes, name, title, what in (
            (bars[0], "count_variance", "Variance of a row's draws", "mean of all rows"),
            (bars[1], "distinct", "Distinct rows in an epoch", "share of n"),
            (bars[2], "loader_ratio", "Epoch of a DataLoader", "time / time with shuffle=True"),
        ):
            (n,) = results.sizes(name)
            unit = n if name == "distinct" else 1
            values = [quotient(results.median(method, n, name), unit) or 0.0 for method in DRAWING]
            labels = [LABELS[method].replace(" ", "\n").replace("dR", "d\nR") for method in DRAWING]
            horizontal_bars(axes, title, f"{what} (n = {n:,})", labels, values)
            for bar, method in zip(axes.patches, DRAWING, strict=True):
                bar.set_color(STYLES[method]["color"])
        bars[2].axvline(1.0, color="0.3", linestyle="--", linewidth=1)
        figure.legend(
            *curves[0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=len(LABELS),
            frameon=False,
        )
