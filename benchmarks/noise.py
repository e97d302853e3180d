#!/usr/bin/env python
"""Noise: the variance of a batch's gradient in each mode of FLOW, at the pre-trained model."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import TURNED, WRONG_CLOTHES, fetch, make_task
from measure import Machine, Table, Target, canvas, horizontal_bars
from methods import FLOW, HALF, MULTINOMIAL, NORMALIZED, STRATIFIED, by_task, outputs, seeds_of
from publishing import command_line, publish
from tasks import Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from flowdata import EpochPlan, FlowWeights, Strata

TASKS = (TURNED, WRONG_CLOTHES)
BATCH = 50
ALPHAS = {NORMALIZED: 0.0, "FLOW, alpha 0.25": 0.25, HALF: 0.5, "FLOW, alpha 0.75": 0.75, FLOW: 1.0}
"""w^alpha by drawing, the rest by weighting."""
CONFUSED = f"{STRATIFIED} by pairs"
GROUPINGS = {STRATIFIED: "labels", CONFUSED: "labels and predictions"}

HELP = """\
Compare the gradient of batches with that of all samples, for every way to make batches whose
expected gradient is that of FLOW.
"""

ABOUT = """\
The tasks of vision.md, batches of 50, no training: mean squared error of the gradient of a batch at
theta*, over the squared gradient of all samples. All modes have the same expected gradient.

- alpha: rows are drawn by w^alpha, and losses are weighted for the rest; 0 is reweighting alone, 1
  drawing alone.
- multinomial: independent draws.
- stratified: batches filled evenly by groups and five levels of weight (`flowdata.Strata`); groups
  are labels, or pairs of label and prediction.

The second table tells what strata can do: the share of the noise of independent draws that lies
between the means of groups; of all of them, and with those pooled of which a batch has less than
one draw. Whether a batch has such a group is chance, so its part of the noise stays.
"""


def main() -> None:
    """Measure all tasks and seeds, write."""
    options, machine = parser().parse_args(), Machine.here()
    fetch()
    jobs = [(task, seed, options.batches) for seed in seeds_of(options.seeds) for task in TASKS]
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        done = list(tqdm(pool.map(measured, jobs), desc="noise", total=len(jobs)))
    found = by_task(TASKS, jobs, done)
    noises, shares = (
        {task: means([run[number] for run in runs]) for task, runs in found.items()}
        for number in (0, 1)
    )
    publish(
        options.output,
        "noise",
        ABOUT,
        [
            Table(
                f"Noise of a batch (seeds: {options.seeds})",
                ["", *TASKS],
                rows_of(noises, "{:.3f}"),
            ),
            Table("Share of the noise between groups", ["", *TASKS], rows_of(shares, "{:.0%}")),
        ],
        {"noise": found},
        partial(draw, noises),
        machine=machine,
        goals=[
            Target(f"{task}: {mode} / FLOW", 0.85, noises[task][mode] / noises[task][FLOW])
            for task in TASKS
            for mode in (STRATIFIED, CONFUSED)
        ],
    )


def means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over runs of what they measured."""
    return {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}


def rows_of(found: Mapping[str, Mapping[str, float]], style: str) -> list[list[str]]:
    """Rows of a table with a column for each task."""
    return [
        [name, *(style.format(found[task][name]) for task in TASKS)] for name in found[TASKS[0]]
    ]


def measured(job: tuple[str, int, int]) -> tuple[dict[str, float], dict[str, float]]:
    """Of each mode, mean squared error of a batch's gradient at theta*, over the squared full one.

    And the share of the noise of independent draws that groups explain.
    """
    name, seed, batches = job
    task = make_task(name, seed)
    model, data, weights = task.start.eval(), task.samples.data, task.weights
    probabilities = torch.from_numpy(weights.values / weights.values.sum())
    full = gradient(model, data, torch.arange(len(data)), probabilities * len(data))
    groups, found = grouped(task), {}
    for mode in (*ALPHAS, MULTINOMIAL, *GROUPINGS):
        errors = [
            (gradient(model, data, rows, scale) - full).square().sum()
            for rows, scale in batches_of(mode, groups.get(mode), weights, seed, batches)
        ]
        found[mode] = float(torch.stack(errors).mean() / full.square().sum())
    return found, explained(task, groups, probabilities, full)


def explained(
    task: Task, groupings: Mapping[str, Tensor], probabilities: Tensor, full: Tensor
) -> dict[str, float]:
    """Variance of single gradients between groups, over all of it."""
    model, data = task.start, task.samples.data

    def squares(groups: Tensor) -> float:
        """Mean squared length of the gradients of groups; of samples, if each is one."""
        total = 0.0
        for group in groups.unique():
            members = (groups == group).nonzero()[:, 0]
            mass = probabilities[members].sum()
            scale = probabilities[members] / mass * len(members)
            total += float(mass * gradient(model, data, members, scale).square().sum())
        return total

    least = float(full.square().sum())
    variance = squares(torch.arange(len(data))) - least
    shares = {}
    for mode, groups in groupings.items():
        masses = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
        masses.index_add_(0, groups, probabilities)
        pooled = torch.where(masses[groups] * BATCH < 1, -1, groups)
        shares[GROUPINGS[mode]] = (squares(groups) - least) / variance
        shares[f"{GROUPINGS[mode]}, light groups pooled"] = (squares(pooled) - least) / variance
    return shares


def grouped(task: Task) -> dict[str, Tensor]:
    """The group of each sample in each stratified mode, shape (n,)."""
    inputs, labels = task.samples.data.tensors
    predictions = outputs(task.start, inputs).argmax(dim=1)
    return {STRATIFIED: labels, CONFUSED: labels * 10 + predictions}


def batches_of(
    mode: str, groups: Tensor | None, weights: FlowWeights, seed: int, batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, loss weights) of batches of a mode, whose mean gradient is that of FLOW."""
    scheme: Any = "multinomial" if mode == MULTINOMIAL else "systematic"
    alpha = ALPHAS.get(mode, 1.0)
    residual = torch.from_numpy(weights.residual(alpha))
    strata = None if groups is None else Strata(groups, BATCH)
    plan = EpochPlan(weights, seed=seed, scheme=scheme, alpha=alpha, strata=strata)
    while batches > 0:
        rows = torch.from_numpy(plan[:])
        for part in rows.split(BATCH)[: min(batches, len(rows) // BATCH)]:
            yield part, residual[part]
            batches -= 1
        plan = plan.at_epoch(plan.epoch + 1)


def gradient(model: nn.Module, data: TensorDataset, rows: Tensor, scale: Tensor) -> Tensor:
    """The gradient of the mean of weighted losses, as one vector."""
    model.zero_grad()
    inputs, targets = data.tensors
    for part, weight in zip(rows.split(250), scale.split(250), strict=True):
        losses = F.cross_entropy(model(inputs[part]), targets[part], reduction="none")
        ((losses * weight.float()).sum() / len(rows)).backward()
    parts = [
        parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None
    ]
    return torch.cat(parts).clone()


def draw(means: dict[str, dict[str, float]], path: Path) -> None:
    """The noise of each mode."""
    with canvas(path, rows=1, columns=len(means)) as (_, axes):
        for part, (task, noises) in zip(axes, means.items(), strict=True):
            horizontal_bars(part, task, "noise", list(noises), list(noises.values()))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--seeds", type=int, default=10, help="default 10")
    made.add_argument("--batches", type=int, default=300, help="of each mode; default 300")
    made.add_argument("--processes", type=int, default=2, help="default 2")
    return made


if __name__ == "__main__":
    main()
