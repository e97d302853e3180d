"""Results of the language benchmark: its records by task and method, and scores on one scale."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from records import Records
from scores import Score

PRE_TRAINED = "pre-trained"
Run: TypeAlias = dict[str, Any]
Runs: TypeAlias = dict[str, list[Run]]
"""By method, what it came to in each seed, in their order."""


class Results:
    """What was measured, of the seeds that all methods of a task have.

    Args:
        records: of runs.
        planned: by task, the methods that are measured.

    Attributes:
        runs: by task.
        seeds: by task.
    """

    def __init__(self, records: Records, planned: Mapping[str, Sequence[str]]) -> None:
        found: dict[str, dict[str, dict[int, Run]]] = {}
        for each in records.of("run"):
            found.setdefault(each["task"], {}).setdefault(each["method"], {})[each["seed"]] = each
        self.runs: dict[str, Runs] = {}
        self.seeds: dict[str, list[int]] = {}
        for task, methods in found.items():
            needed = (PRE_TRAINED, *planned.get(task, ()))
            seeds = sorted(set.intersection(*(set(methods.get(method, ())) for method in needed)))
            if seeds:
                self.seeds[task] = seeds
                self.runs[task] = {
                    method: [runs[seed] for seed in seeds]
                    for method, runs in methods.items()
                    if method in needed
                }

    @property
    def tasks(self) -> list[str]:
        """Those that have results."""
        return list(self.runs)


def scores_of(runs: Mapping[str, Sequence[Run]]) -> dict[str, Score]:
    """By how much each method made losses fall, in nats of a token; of several sources the mean."""
    before = runs[PRE_TRAINED]
    return {
        method: Score(
            kept=_fallen(before, found, "other"),
            learned=_fallen(before, found, "new"),
            hardest=_fallen(before, found, "hardest"),
        )
        for method, found in runs.items()
    }


def parts_named(run: Run, part: str) -> list[str]:
    """The names of a measure in a run: one for each source, where there are several."""
    return [name for name in run if name == part or name.startswith(f"{part}, ")]


def _fallen(before: Sequence[Run], after: Sequence[Run], part: str) -> NDArray[np.float64]:
    names = parts_named(before[0], part)
    return np.array(
        [
            np.mean([old[name] - new[name] for name in names])
            for old, new in zip(before, after, strict=True)
        ]
    )
