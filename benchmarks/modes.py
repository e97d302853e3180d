#!/usr/bin/env python
"""Modes: resampling against reweighting, at equal steps and at equal compute."""

import argparse
import copy
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from digits import SIZES, TURNED, WRONG_CLOTHES, fetch, make_task
from measure import Machine, Table, Target, canvas
from methods import (
    DISTINCT,
    FLOW,
    HALF,
    MULTINOMIAL,
    NORMALIZED,
    REWEIGHTED,
    STRATIFIED,
    Tuning,
    accuracy,
    by_task,
    loader_of,
    seeds_of,
)
from publishing import command_line, publish
from tasks import Task
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

TASKS = (TURNED, WRONG_CLOTHES)
MODES = (FLOW, MULTINOMIAL, STRATIFIED, NORMALIZED, HALF, DISTINCT, REWEIGHTED)
RATES = {"SGD": 0.01, "AdamW": 0.0005}
BATCH = 50
LOOKED_AT = 500
"""Samples of each task by which a model is measured while it is trained."""

HELP = """\
Fine-tune with one loop and seven loaders that draw by weight, weight the loss, or do half of each;
look at what is kept and learned after every epoch.
"""

ABOUT = """\
The tasks of vision.md. Every mode has the same learning rate (SGD 0.01 with momentum 0.9, AdamW
0.0005), batches of 50 and number of epochs; nothing was tuned. "kept" and "learned" are accuracies
in percent on the old and the new task.

- Of the same expected gradient at the same rate: FLOW (systematic draws), multinomial draws,
  batches stratified by label and weight, reweighting by weights of mean 1, and alpha 0.5 (half of
  each).
- Of the same expected step an epoch, in fewer samples: "distinct" epochs against reweighting by the
  weights as they are (times 1 / max w).
"""


def main() -> None:
    """Run everything, write."""
    options = parser().parse_args()
    machine = Machine.here()
    fetch()
    jobs = [(task, seed, options.epochs) for seed in seeds_of(options.seeds) for task in TASKS]
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        curves = list(tqdm(pool.map(run_all, jobs), desc="runs", total=len(jobs)))
    found = by_task(TASKS, jobs, curves)
    tables = []
    for task, runs in found.items():
        tables += [last_points(task, runs), equal_compute(task, runs)]
    publish(
        options.output,
        "modes",
        ABOUT,
        tables,
        {"curves": found},
        partial(draw, found),
        machine=machine,
        goals=[goal for task in TASKS for goal in targets(task, found[task])],
    )


# What is measured.

Curve = list[tuple[int, int, float, float, float]]
"""Before the first epoch and after each: steps, samples, kept, learned, seconds of training."""


def run_all(job: tuple[str, int, int]) -> dict[str, Curve]:
    """Curves of all modes and optimizers on one task and seed."""
    name, seed, epochs = job
    task = make_task(name, seed)
    return {
        f"{optimizer}: {mode}": curve(task, mode, optimizer, epochs, seed)
        for optimizer in RATES
        for mode in MODES
    }


def curve(task: Task, mode: str, optimizer: str, epochs: int, seed: int) -> Curve:
    """What one training keeps and learns, epoch by epoch."""
    torch.manual_seed(seed)
    model = copy.deepcopy(task.start)
    rate, parameters = RATES[optimizer], model.parameters()
    stepping: torch.optim.Optimizer = (
        torch.optim.SGD(parameters, lr=rate, momentum=0.9)
        if optimizer == "SGD"
        else torch.optim.AdamW(parameters, lr=rate)
    )
    loader = loader_of(mode, Tuning(task.samples.data, task.weights, epochs, BATCH), seed)
    steps, samples, seconds = 0, 0, 0.0
    points = [(steps, samples, *known(task, model, LOOKED_AT), seconds)]
    for epoch in range(1, epochs + 1):
        model.train()
        began = time.perf_counter()
        for inputs, targets in loader:
            stepping.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            stepping.step()
            steps, samples = steps + 1, samples + len(inputs)
        seconds += time.perf_counter() - began
        found = known(task, model, SIZES.new if epoch == epochs else LOOKED_AT)
        points.append((steps, samples, *found, seconds))
    return points


def known(task: Task, model: nn.Module, samples: int) -> tuple[float, float]:
    """What a model kept, with the old head, and what it learned, by so many samples of each."""
    old, new = (
        TensorDataset(*(part[:samples] for part in d.tensors)) for d in (task.old, task.samples.new)
    )
    learned = accuracy(model, new).mean().item()
    before = model if task.before is None else task.before.put_back(model)
    return accuracy(before, old).mean().item(), learned


# What becomes of it.


def last_points(task: str, runs: Sequence[dict[str, Curve]]) -> Table:
    """The last points of all modes."""
    rows = []
    for name in runs[0]:
        last = np.array([run[name][-1] for run in runs])
        steps, samples, kept, learned, seconds = last.mean(axis=0)
        _, _, kept_spread, learned_spread, _ = last.std(axis=0, ddof=min(1, len(runs) - 1))
        rows.append(
            [
                name,
                f"{steps:,.0f}",
                f"{samples:,.0f}",
                f"{kept:.1f} ± {kept_spread:.1f}",
                f"{learned:.1f} ± {learned_spread:.1f}",
                f"{1e6 * seconds / samples:.0f}",
            ]
        )
    header = ["", "steps", "samples", "kept", "learned", "us a sample"]
    return Table(f"{task} ({len(runs)} seeds)", header, rows)


def equal_compute(task: str, runs: Sequence[dict[str, Curve]]) -> Table:
    """What modes came to when each had processed as many samples as the distinct epochs did."""
    rows = []
    for name in runs[0]:
        found = []
        for run in runs:
            most = run[f"{name.partition(':')[0]}: {DISTINCT}"][-1][1]
            curve = np.array(run[name])
            found.append([np.interp(most, curve[:, 1], curve[:, place]) for place in (2, 3)])
        kept, learned = np.mean(found, axis=0)
        rows.append([name, f"{kept:.1f}", f"{learned:.1f}"])
    note = (
        "As many samples, forward and backward passes, as the distinct epochs took in all; between "
        "two epochs, kept and learned are interpolated."
    )
    return Table(f"{task}: at equal compute", ["", "kept", "learned"], rows, note)


def targets(task: str, runs: Sequence[dict[str, Curve]]) -> list[Target]:
    """Where modes shall agree, in points of accuracy."""

    def apart(first: str, second: str, place: int) -> float:
        """Mean paired difference of the last points."""
        return abs(float(np.mean([run[first][-1][place] - run[second][-1][place] for run in runs])))

    made = []
    for place, what in ((2, "kept"), (3, "learned")):
        pair = f"SGD: {FLOW}", f"SGD: {NORMALIZED}"
        made.append(
            Target(f"{task}: FLOW, reweighted to mean 1: {what}, apart", 2.0, apart(*pair, place))
        )
        pair = f"SGD: {DISTINCT}", f"SGD: {REWEIGHTED}"
        made.append(
            Target(f"{task}: distinct, reweighted: {what}, apart", 2.0, apart(*pair, place))
        )
    steps = [run[f"SGD: {DISTINCT}"][-1][0] / run[f"SGD: {REWEIGHTED}"][-1][0] for run in runs]
    made.append(Target(f"{task}: steps, distinct / reweighted", 0.6, float(np.mean(steps))))
    return made


def draw(curves: dict[str, list[dict[str, Curve]]], path: Path) -> None:
    """Kept and learned over the samples that were processed."""
    with canvas(path, rows=2, columns=len(curves)) as (_, axes):
        for column, (task, runs) in enumerate(curves.items()):
            for row, (place, what) in enumerate(((2, "kept"), (3, "learned"))):
                part = axes[row][column]
                for mode in MODES:
                    points = np.mean([run[f"SGD: {mode}"] for run in runs], axis=0)
                    part.plot(points[:, 1], points[:, place], ".-", label=mode)
                part.set(title=f"{task}: {what}", xlabel="samples processed (SGD)", ylabel="%")
                part.grid(True)
        axes[0][0].legend(fontsize=7)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--seeds", type=int, default=10, help="default 10")
    made.add_argument("--epochs", type=int, default=5, help="default 5")
    made.add_argument("--processes", type=int, default=2, help="default 2")
    return made


if __name__ == "__main__":
    main()
