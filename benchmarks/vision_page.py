"""The page of the vision benchmark: methods over seeds, the best first; FLOW against controls."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measure import Machine, Table, canvas, mean_and_deviation
from methods import (
    CLIPPED,
    CONTROLS,
    DISTINCT,
    FEWER_STEPS,
    FLOW,
    FLOW_WISE,
    SMALLER_RATE,
    STANDARD,
    WISE,
    WISE_CONTROLS,
)
from numpy.typing import NDArray
from publishing import publish
from sources import Hashes

TEMPERATURE = "x median"
"""How the name of FLOW at another temperature ends."""
SAME_RATE = f"{FLOW}, 1 {TEMPERATURE}"
"""FLOW as it is, at the rate of standard fine-tuning."""
STARTS = ("pre-trained", "linear probe")

Run = dict[str, dict[str, float]]
"""What each method came to on one task and seed, by the names of measures."""

WHOLE_CONTROLS = (STANDARD, *CONTROLS)
AS_GOOD = {
    STANDARD: "standard is",
    SMALLER_RATE: "a smaller rate is",
    FEWER_STEPS: "fewer steps are",
}
AVERAGED_CONTROLS = (WISE, *WISE_CONTROLS)


@dataclass(frozen=True)
class Measure:
    """Something that a model is measured by: more is better."""

    name: str
    title: str


KEPT, LEARNED, MEAN = Measure("old", "old, %"), Measure("new", "new, %"), Measure("mean", "mean, %")
HARDEST = Measure("hardest", "hardest, %")
MEASURES = (MEAN, KEPT, LEARNED, HARDEST, Measure("own", "own head, %"))


def publish_comparison(
    options: argparse.Namespace,
    about: str,
    rates: Mapping[str, Mapping[str, float]],
    results: Mapping[str, Sequence[Run]],
    more: Sequence[Table],
    *,
    machine: Machine,
    name: str,
    sources: Hashes,
) -> None:
    """Tables, JSON and a figure into ``options.output``."""
    tables = [summary(results)]
    tables += [by_method(task, runs, rates[task]) for task, runs in results.items()]
    tables += [with_averages(results), prices(results), *more]
    publish(
        options.output,
        "vision",
        about,
        tables,
        {"rates": rates, "results": results},
        partial(draw, results),
        machine=machine,
        name=name,
        sources=sources,
    )


def summary(results: Mapping[str, Sequence[Run]]) -> Table:
    """In which settings FLOW beats all controls, and in which less training does as well."""
    rows = []
    for task, runs in results.items():
        for method in (FLOW, SAME_RATE, CLIPPED, DISTINCT):
            best = max(WHOLE_CONTROLS, key=lambda each: mean_of(runs, each))
            ahead = values_of(runs, method, MEAN) - values_of(runs, best, MEAN)
            better, both = beaten(runs, method, WHOLE_CONTROLS)
            rows.append(
                [
                    f"{task}: {method}",
                    f"{better} of {len(runs)}",
                    f"{both} of {len(runs)}",
                    best,
                    mean_and_deviation(ahead, "+.1f"),
                    reading(better, len(runs), ahead, best),
                ]
            )
    header = ["", "better", "in both", "best control", "mean against it", ""]
    note = (
        '"Better": in so many seeds the mean of old and new was above that of standard fine-tuning '
        'and both controls; "in both": it kept more and learned as much as each of them.'
    )
    return Table("FLOW against all controls", header, rows, note)


def reading(better: int, seeds: int, ahead: NDArray[np.float64], best: str) -> str:
    """What a comparison says, in words."""
    if better >= 0.9 * seeds:
        return "better than less training"
    if ahead.mean() > 0:
        return "no clear difference"
    return f"{AS_GOOD[best]} as good"


def by_method(task: str, runs: Sequence[Run], rates: Mapping[str, float]) -> Table:
    """All methods on one task, the best first."""
    rows = []
    for method in sorted(runs[0], key=lambda each: -mean_of(runs, each)):
        controls = AVERAGED_CONTROLS if "WiSE" in method else WHOLE_CONTROLS
        rivals = [each for each in controls if each != method and each in runs[0]]
        better, both = beaten(runs, method, rivals)
        rows.append(
            [
                method,
                *(mean_and_deviation(values_of(runs, method, part), ".1f") for part in MEASURES),
                *([f"{better}", f"{both}"] if method not in STARTS else ["", ""]),
                f"{np.mean([run[method]['samples'] for run in runs]):,.0f}",
                f"{np.mean([run[method]['seconds'] for run in runs]):.1f}",
                f"{rates[method]:g}" if method in rates else "",
            ]
        )
    titles = [part.title for part in MEASURES]
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    header = ["", *titles, "better", "in both", "samples", "seconds", "lr"]
    return Table(f"{task} ({seeds})", header, rows)


def with_averages(results: Mapping[str, Sequence[Run]]) -> Table:
    """FLOW + WiSE-FT against WiSE-FT and its controls."""
    rows = []
    for task, runs in results.items():
        for rival in AVERAGED_CONTROLS:
            better, both = beaten(runs, FLOW_WISE, [rival])
            ahead = (
                mean_and_deviation(
                    values_of(runs, FLOW_WISE, part) - values_of(runs, rival, part), "+.1f"
                )
                for part in (MEAN, KEPT, LEARNED, HARDEST)
            )
            rows.append([f"{task}: against {rival}", *ahead, f"{better}", f"{both}"])
    header = ["", "mean", "old", "new", "hardest", "better", "in both"]
    return Table(f"{FLOW_WISE}, in points", header, rows)


def prices(results: Mapping[str, Sequence[Run]]) -> Table:
    """What each way gives up of the hardest tenth, against standard fine-tuning."""
    methods = (*CONTROLS, FLOW, SAME_RATE, CLIPPED, DISTINCT, WISE, FLOW_WISE)
    rows = [
        [
            method,
            *(
                mean_and_deviation(
                    values_of(runs, method, HARDEST) - values_of(runs, STANDARD, HARDEST), "+.1f"
                )
                for runs in results.values()
            ),
        ]
        for method in methods
    ]
    title = "The price: the hardest tenth of new, points more or less than standard fine-tuning"
    return Table(title, ["", *results], rows)


def beaten(runs: Sequence[Run], method: str, rivals: Sequence[str]) -> tuple[int, int]:
    """In how many seeds a method is above all rivals: by its mean, and in both parts."""

    def gains(part: Measure) -> NDArray[np.float64]:
        ours = values_of(runs, method, part)
        return np.array([ours - values_of(runs, rival, part) for rival in rivals])

    better = (gains(MEAN) > 0).all(axis=0)
    both = ((gains(KEPT) > 0) & (gains(LEARNED) >= 0)).all(axis=0)
    return int(better.sum()), int(both.sum())


def values_of(runs: Sequence[Run], method: str, part: Measure) -> NDArray[np.float64]:
    """What a method came to in each seed."""
    return np.array([run[method][part.name] for run in runs])


def mean_of(runs: Sequence[Run], method: str) -> float:
    """The mean of old and new, over all seeds."""
    return float(values_of(runs, method, MEAN).mean())


def draw(results: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Kept against learned, better to the right and up."""
    with canvas(path, rows=1, columns=len(results)) as (_, axes):
        for part, (task, runs) in zip(np.atleast_1d(axes), results.items(), strict=True):
            points = {
                method: tuple(
                    float(values_of(runs, method, measure).mean()) for measure in (LEARNED, KEPT)
                )
                for method in runs[0]
            }
            trail = {
                float(method.split()[-3]): point
                for method, point in points.items()
                if method.endswith(TEMPERATURE)
            }
            part.plot(*np.array([trail[factor] for factor in sorted(trail)]).T, "-", color="0.7")
            shown = [method for method in points if not method.endswith(TEMPERATURE)]
            for number, method in enumerate(shown):
                part.plot(*points[method], "os^Dv*PX"[number % 8], label=method)
            part.set(title=task, xlabel=f"learned: {LEARNED.title}", ylabel=f"kept: {KEPT.title}")
            part.grid(True)
        np.atleast_1d(axes)[-1].legend(fontsize=6)
