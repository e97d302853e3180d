"""The figure of the language benchmark: kept against learned, and quality over compute."""

from pathlib import Path
from typing import Any

import numpy as np
from measure import canvas
from methods import DISTINCT, FLOW, STANDARD
from packed import DISTINCT_PADDED, PADDED
from results import PRE_TRAINED, Results, scores_of

CURVES = (PADDED, STANDARD, FLOW, DISTINCT_PADDED, DISTINCT)


def draw(results: Results, path: Path) -> None:
    """Kept against learned of every task, and what is learned over places, where that is known."""
    curved = [task for task in results.tasks if PADDED in results.runs[task]]
    columns = max(len(results.tasks), 1)
    with canvas(path, rows=2 if curved else 1, columns=columns) as (_, axes):
        grid = np.atleast_2d(np.array(axes))
        if grid.shape[1] != columns:
            grid = grid.T
        for part, task in zip(grid[0], results.tasks, strict=False):
            _scatter(part, results, task)
        for part in grid[1:].ravel():
            part.set_visible(False)
        for part, task in zip(grid[-1], curved, strict=False):
            part.set_visible(True)
            _curves(part, results, task)


def _scatter(axes: Any, results: Results, task: str) -> None:
    for number, (method, score) in enumerate(scores_of(results.runs[task]).items()):
        point = score.learned.mean(), score.kept.mean()
        axes.plot(*point, "os^Dv*PXph<>"[number % 12], label=method)
    axes.set(title=task, xlabel="learned, nats", ylabel="kept, nats")
    axes.grid(True)
    axes.legend(fontsize=4)


def _curves(axes: Any, results: Results, task: str) -> None:
    runs = results.runs[task]
    before = np.mean([each["new"] + each["other"] for each in runs[PRE_TRAINED]]) / 2
    for method in CURVES:
        if method not in runs:
            continue
        points = [
            [(look["places"], look["new"], look["other"]) for look in (*run["curve"], run)]
            for run in runs[method]
        ]
        shortest = min(map(len, points))
        mean = np.mean([each[:shortest] for each in points], axis=0)
        quality = before - (mean[:, 1] + mean[:, 2]) / 2
        label = method if "padded" in method else f"{method}, packs"
        axes.plot([0, *mean[:, 0]], [0, *quality], "o-", markersize=3, label=label)
    axes.set(title=f"{task}: compute", xlabel="tokens and padding", ylabel="mean of both, nats")
    axes.grid(True)
    axes.legend(fontsize=6)
