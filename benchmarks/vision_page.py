"""The page of the vision benchmark: methods over seeds, the best first; FLOW against controls."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Machine, Table, canvas, mean_and_deviation
from methods import (
    CLIPPED,
    CONTROLS,
    DISTINCT,
    FEWER_STEPS,
    FLOW,
    FLOW_WISE,
    HALF,
    L2,
    MULTINOMIAL,
    NORMALIZED,
    REWEIGHTED,
    SMALLER_RATE,
    STANDARD,
    WISE,
    WISE_CONTROLS,
)
from numpy.typing import NDArray
from publishing import publish
from scores import Score, Wins, beaten
from sources import Hashes
from tasks import OWN_ROWS

TEMPERATURE = "x median"
"""How the name of FLOW at another temperature ends."""
SAME_RATE = f"{FLOW}, 1 {TEMPERATURE}"
"""FLOW as it is, at the rate of standard fine-tuning."""
STARTS = ("pre-trained", "linear probe")

Run = dict[str, dict[str, float]]
"""What each method came to on one task and seed, by the names of measures."""

WHOLE_CONTROLS = (STANDARD, *CONTROLS)
AS_CONTROL = {
    STANDARD: "shuffling is",
    SMALLER_RATE: "a smaller rate is",
    FEWER_STEPS: "fewer steps are",
}
AVERAGED_CONTROLS = (WISE, *WISE_CONTROLS)
COLUMNS = {"old": "old, %", "new": "new, %", "hardest": "hardest, %", "own": "own head, %"}
"""Of a run, and of a table."""
STYLES = {
    **dict(zip((STANDARD, *CONTROLS, L2), "os^D", strict=True)),
    **dict(zip(AVERAGED_CONTROLS, "os^", strict=True)),
    **dict(zip((FLOW, MULTINOMIAL, DISTINCT, CLIPPED, FLOW_WISE), "osDXP", strict=True)),
    **dict(zip((REWEIGHTED, NORMALIZED, HALF, OWN_ROWS), "v<>*", strict=True)),
}
"""The mark of each method in the figure; its color tells of what kind it is."""


@dataclass(frozen=True)
class Found:
    """What was measured, by task.

    Args:
        results: of each seed, what each method came to.
        drawn: of each seed, what the weights are like by each table of losses.
        tried: of each seed that rates are chosen by, what each method came to at each rate.
        rates: of each method.
        sweep: the methods that are FLOW at several temperatures.
    """

    results: Mapping[str, Sequence[Run]]
    drawn: Mapping[str, Sequence[Any]]
    tried: Mapping[str, Sequence[Mapping[str, Sequence[float]]]]
    rates: Mapping[str, Mapping[str, float]]
    sweep: Sequence[str]


def publish_comparison(
    options: argparse.Namespace,
    about: str,
    found: Found,
    *,
    machine: Machine,
    name: str,
    sources: Hashes,
) -> None:
    """Tables, JSON and a figure into ``options.output``."""
    results = found.results
    tables = [summary(results)]
    tables += [by_method(task, runs, found.rates[task]) for task, runs in results.items()]
    tables += [with_averages(results), prices(results), temperatures(results, found.sweep)]
    tables += [*scored_on_own_rows(results, found.drawn), held_out(found)]
    publish(
        options.output,
        "vision",
        about,
        tables,
        {"rates": found.rates, "held_out": found.tried, "results": results},
        partial(draw, results),
        machine=machine,
        name=name,
        sources=sources,
    )


def score_of(runs: Sequence[Run], method: str, head: str = "new") -> Score:
    """Of a method, in percent; by the head that was fitted once more, or its own."""
    kept, learned, hardest = (
        np.array([run[method][part] for run in runs]) for part in ("old", head, "hardest")
    )
    return Score(kept, learned, hardest)


def mean_of(runs: Sequence[Run], method: str) -> float:
    """The mean of old and new, over all seeds."""
    return float(score_of(runs, method).mean.mean())


def start_of(runs: Sequence[Run]) -> str:
    """What the starting point of a task is called."""
    return next(start for start in STARTS if start in runs[0])


def summary(results: Mapping[str, Sequence[Run]]) -> Table:
    """In which settings FLOW beats all controls, and in which less training does as well."""
    rows = []
    for task, runs in results.items():
        for method in (FLOW, SAME_RATE, CLIPPED, DISTINCT):
            best = max(WHOLE_CONTROLS, key=lambda each: mean_of(runs, each))
            ours, rivals, own_head = (
                score_of(runs, method),
                [score_of(runs, each) for each in WHOLE_CONTROLS],
                beaten(
                    score_of(runs, method, "own"),
                    [score_of(runs, each, "own") for each in WHOLE_CONTROLS],
                ),
            )
            wins, ahead = beaten(ours, rivals), ours.mean - score_of(runs, best).mean
            over_start = ours.mean - score_of(runs, start_of(runs)).mean
            rows.append(
                [
                    f"{task}: {method}",
                    *wins.cells,
                    reading(wins, ahead, best),
                    best,
                    mean_and_deviation(ahead, "+.1f"),
                    own_head.cells[0],
                    mean_and_deviation(over_start, "+.1f"),
                ]
            )
    header = [
        *("", "better", "in both", "so", "best control", "mean against it"),
        *("better, own head", "mean against no training"),
    ]
    note = (
        '"Better": in so many seeds the mean of old and new was above that of standard fine-tuning '
        'and both controls; "in both": it kept more and learned as much as each of them. FLOW is '
        "called better, or a control, if it is so in nine tenths of the seeds. No training: the "
        "starting point, a linear probe where the head is new."
    )
    return Table("FLOW against all controls", header, rows, note)


def reading(wins: Wins, ahead: NDArray[np.float64], best: str) -> str:
    """What a comparison says, in words."""
    if wins.clear:
        return "FLOW is better"
    better = (ahead < 0).sum() >= 0.9 * ahead.size
    return f"{AS_CONTROL[best]} {'better' if better else 'as good'}"


def by_method(task: str, runs: Sequence[Run], rates: Mapping[str, float]) -> Table:
    """All methods on one task, the best first."""
    rows = []
    for method in sorted(runs[0], key=lambda each: -mean_of(runs, each)):
        controls = AVERAGED_CONTROLS if "WiSE" in method else WHOLE_CONTROLS
        rivals = [score_of(runs, each) for each in controls if each != method]
        score = score_of(runs, method)
        rows.append(
            [
                method,
                mean_and_deviation(score.mean, ".1f"),
                *(
                    mean_and_deviation([run[method][part] for run in runs], ".1f")
                    for part in COLUMNS
                ),
                mean_and_deviation(score_of(runs, method, "own").mean, ".1f"),
                *(beaten(score, rivals).cells if method not in STARTS else ("", "")),
                f"{np.mean([run[method]['samples'] for run in runs]):,.0f}",
                f"{rates[method]:g}" if method in rates else "",
            ]
        )
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    header = ["", "mean, %", *COLUMNS.values(), "mean, own head, %"]
    header += ["better", "in both", "samples", "lr"]
    note = (
        '"Better" than all of standard fine-tuning and its controls; of WiSE-FT, than those of it.'
    )
    return Table(f"{task} ({seeds})", header, rows, note)


def with_averages(results: Mapping[str, Sequence[Run]]) -> Table:
    """FLOW + WiSE-FT against WiSE-FT and its controls."""
    rows = []
    for task, runs in results.items():
        ours = score_of(runs, FLOW_WISE)
        for rival in AVERAGED_CONTROLS:
            theirs = score_of(runs, rival)
            ahead = (
                mean_and_deviation(getattr(ours, part) - getattr(theirs, part), "+.1f")
                for part in ("mean", "kept", "learned", "hardest")
            )
            rows.append([f"{task}: against {rival}", *ahead, *beaten(ours, [theirs]).cells])
    header = ["", "mean", "old", "new", "hardest", "better", "in both"]
    return Table(f"{FLOW_WISE}, in points", header, rows)


def prices(results: Mapping[str, Sequence[Run]]) -> Table:
    """What each way gives up of the hardest tenth, against standard fine-tuning."""
    everywhere = [
        method
        for method in {method: None for runs in results.values() for method in runs[0]}
        if method not in (STANDARD, *STARTS) and all(method in runs[0] for runs in results.values())
    ]
    rows = [
        [
            method,
            *(
                mean_and_deviation(
                    score_of(runs, method).hardest - score_of(runs, STANDARD).hardest, "+.1f"
                )
                for runs in results.values()
            ),
        ]
        for method in sorted(
            everywhere,
            key=lambda each: -np.mean([mean_of(runs, each) for runs in results.values()]),
        )
    ]
    title = "The price: the hardest tenth of new, points more or less than standard fine-tuning"
    note = "Sorted by the mean of old and new over all tasks."
    return Table(title, ["", *results], rows, note)


def temperatures(results: Mapping[str, Sequence[Run]], sweep: Sequence[str]) -> Table:
    """FLOW over temperatures, all at the rate of standard fine-tuning."""
    rows = [[factor_of(name), *(triple(runs, name) for runs in results.values())] for name in sweep]
    return Table(
        "Temperature, at the rate of standard fine-tuning: old / new / hardest, %",
        ["x median", *results],
        [*rows, [STANDARD, *(triple(runs, STANDARD) for runs in results.values())]],
    )


def triple(runs: Sequence[Run], method: str) -> str:
    """What it kept, learned, and learned of the hardest."""
    parts = ("old", "new", "hardest")
    return " / ".join(f"{np.mean([run[method][part] for run in runs]):.1f}" for part in parts)


def scored_on_own_rows(
    results: Mapping[str, Sequence[Run]], drawn: Mapping[str, Sequence[Any]]
) -> list[Table]:
    """New heads: scores of a probe out of fold, against those of the rows that it was fitted on."""
    tables = []
    same_rate = {"on its own rows": OWN_ROWS, "out of fold": SAME_RATE}
    for task, runs in results.items():
        if OWN_ROWS not in runs[0]:
            continue
        rows = []
        for name, method in same_rate.items():
            known = [weights[name] for weights in drawn[task]]

            def mean(part: str, known: Sequence[Any] = known) -> float:
                return float(np.mean([weights[part] for weights in known]))

            rows.append(
                [
                    name,
                    f"{mean('temperature'):.2g}",
                    f"{mean('mean'):.2f}",
                    f"{100 * mean('ess'):.0f}",
                    f"{100 * mean('harmful'):.1f}",
                    f"{100 * mean('drawn'):.1f}",
                    *(
                        mean_and_deviation([run[method][part] for run in runs], ".1f")
                        for part in ("old", "new", "hardest")
                    ),
                ]
            )
        header = ["probe scored", "tau", "mean w", "ESS, %", "wrong, %", "of draws, %"]
        header += ["old, %", "new, %", "hardest, %"]
        tables.append(Table(f"{task}: the new head's scores, FLOW at one rate", header, rows))
    return tables


def held_out(found: Found) -> Table:
    """What rates were chosen by."""
    methods = next(iter(found.tried.values()))[0]
    rows = [
        [
            method,
            *(
                " / ".join(f"{mean:.1f}" for mean in np.mean([run[method] for run in runs], axis=0))
                for runs in found.tried.values()
            ),
        ]
        for method in methods
    ]
    title = "What rates were chosen by: accuracy on held-out samples at each rate, %"
    return Table(title, ["", *found.tried], rows)


def factor_of(method: str) -> str:
    """The temperature in the name of a method, in medians."""
    return method.removesuffix(f" {TEMPERATURE}").rpartition(" ")[2]


def draw(results: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Kept against learned, better to the right and up."""
    # The last part is for what the marks mean.
    with canvas(path, rows=len(results) // 2 + 1, columns=2) as (_, grid):
        axes = grid.ravel()
        marks: dict[str, Any] = {}
        for part, (task, runs) in zip(axes, results.items(), strict=False):
            points = {
                method: (score_of(runs, method).learned.mean(), score_of(runs, method).kept.mean())
                for method in runs[0]
            }
            swept = [method for method in points if method.endswith(TEMPERATURE)]
            trail = np.array([points[method] for method in swept])
            label = f"{FLOW}, {factor_of(swept[0])} (white) to {factor_of(swept[-1])} {TEMPERATURE}"
            (marks[label],) = part.plot(*trail.T, ".-", color="tan", zorder=1)
            part.plot(*trail[0], "o", color="tan", markerfacecolor="white", zorder=1)
            for method, point in points.items():
                if method not in swept:
                    label = " or ".join(STARTS) if method in STARTS else method
                    (marks[label],) = part.plot(
                        *point, STYLES.get(method, "*"), color=color_of(method), markersize=7
                    )
            part.set(
                title=task, xlabel=f"learned: {COLUMNS['new']}", ylabel=f"kept: {COLUMNS['old']}"
            )
            part.grid(True)
        for part in axes[len(results) :]:
            part.axis("off")
        axes[-1].legend(marks.values(), marks.keys(), loc="center left", fontsize=9, frameon=False)


def color_of(method: str) -> str:
    """That of its kind."""
    if method in STARTS:
        return "black"
    if method in AVERAGED_CONTROLS:
        return "tab:blue"
    return "tab:orange" if method.startswith(FLOW) else "tab:gray"
