"""Methods side by side over seeds: which rates, a table, FLOW against its rivals, a figure."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from measure import Machine, Table, canvas
from methods import CONTROLS, FLOW, STANDARD
from publishing import publish

TEMPERATURE = "x median"
"""How the name of FLOW at another temperature ends."""

Run = dict[str, dict[str, float]]
"""What each method came to on one task and seed, by the names of measures."""


@dataclass(frozen=True)
class Measure:
    """Something that a model is measured by."""

    name: str
    title: str
    lower_is_better: bool = False

    def gain(self, ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
        """By how much ours is better."""
        difference = ours[self.name] - theirs[self.name]
        return -difference if self.lower_is_better else difference


@dataclass(frozen=True)
class Comparison:
    """A benchmark of methods.

    Args:
        script: its name, without ".py".
        about: what its table says, in Markdown.
        measures: the columns.
        kept, learned: what is asked of FLOW and its rivals.
    """

    script: str
    about: str
    measures: tuple[Measure, ...]
    kept: Measure
    learned: Measure

    def publish(
        self,
        options: argparse.Namespace,
        rates: Mapping[str, Mapping[str, float]],
        results: Mapping[str, Sequence[Run]],
        *,
        machine: Machine,
        name: str | None = None,
    ) -> None:
        """Tables, JSON and a figure into ``options.output``, under that name or the script's."""
        tables: list[Table | str] = []
        for task, runs in results.items():
            tables += [self.table(task, runs, rates[task]), self.verdict(runs) + "\n"]
        publish(
            options.output,
            self.script,
            self.about,
            tables,
            {"rates": rates, "results": results},
            partial(self.draw, results),
            machine=machine,
            name=name,
        )

    def table(self, task: str, runs: Sequence[Run], rates: Mapping[str, float]) -> Table:
        """All methods on one task."""
        rows = [
            [
                method,
                *(spread([run[method][part.name] for run in runs]) for part in self.measures),
                f"{np.mean([run[method]['samples'] for run in runs]):,.0f}",
                f"{np.mean([run[method]['seconds'] for run in runs]):.1f}",
                f"{rates[method]:g}" if method in rates else "",
            ]
            for method in runs[0]
        ]
        titles = [part.title for part in self.measures]
        seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
        return Table(f"{task} ({seeds})", ["", *titles, "samples", "seconds", "lr"], rows)

    def verdict(self, runs: Sequence[Run]) -> str:
        """FLOW against standard fine-tuning and the controls, seed by seed."""
        lines = []
        for rival in (STANDARD, *CONTROLS):
            pairs = [(run[FLOW], run[rival]) for run in runs if rival in run]
            if not pairs:
                continue
            kept = [self.kept.gain(*pair) for pair in pairs]
            learned = [self.learned.gain(*pair) for pair in pairs]
            both = sum(more > 0 and new >= 0 for more, new in zip(kept, learned, strict=True))
            lines.append(
                f"- FLOW against {rival}: better by {np.mean(kept):+.1f} in {self.kept.title}, "
                f"{np.mean(learned):+.1f} in {self.learned.title}; kept more in "
                f"{sum(more > 0 for more in kept)} of {len(pairs)} seeds, kept more and learned "
                f"as much in {both}."
            )
        return "\n".join(lines)

    def draw(self, results: Mapping[str, Sequence[Run]], path: Path) -> None:
        """Kept against learned, better to the right and up."""
        with canvas(path, rows=1, columns=len(results)) as (_, axes):
            for part, (task, runs) in zip(np.atleast_1d(axes), results.items(), strict=True):
                points = {
                    method: np.mean(
                        [
                            (run[method][self.learned.name], run[method][self.kept.name])
                            for run in runs
                        ],
                        axis=0,
                    )
                    for method in runs[0]
                }
                trail = {
                    float(method.split()[-3]): point
                    for method, point in points.items()
                    if method.endswith(TEMPERATURE)
                }
                if trail:
                    by_temperature = sorted((trail | {1.0: points[FLOW]}).items())
                    part.plot(*np.array([point for _, point in by_temperature]).T, "-", color="0.7")
                shown = [method for method in points if not method.endswith(TEMPERATURE)]
                for number, method in enumerate(shown):
                    part.plot(*points[method], "os^Dv*PX"[number % 8], label=method)
                part.set(
                    title=task,
                    xlabel=f"learned: {self.learned.title}",
                    ylabel=f"kept: {self.kept.title}",
                )
                if self.learned.lower_is_better:
                    part.invert_xaxis()
                if self.kept.lower_is_better:
                    part.invert_yaxis()
                part.grid(True)
            np.atleast_1d(axes)[-1].legend(fontsize=6)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    mean = f"{np.mean(values):.1f}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def best_rates(
    tried: Sequence[Mapping[str, Sequence[float]]], grid: Sequence[float]
) -> dict[str, float]:
    """The rate of each method that is best (highest) on average.

    Args:
        tried: for each seed, what each method came to at each rate of the grid.
        grid: the rates.
    """
    return {
        method: grid[int(np.argmax(np.mean([found[method] for found in tried], axis=0)))]
        for method in tried[0]
    }
