#!/usr/bin/env python
"""Noise: the variance of a batch's gradient in each mode of FLOW, at the pre-trained model."""

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import fashion_mnist, mnist_digits, mnist_network
from measure import Machine, Table, Target, canvas, horizontal_bars
from methods import FLOW, HALF, MULTINOMIAL, NORMALIZED, STRATIFIED, by_task, seeds_of
from publishing import command_line, publish
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm
from vision import TURNED, WRONG_CLOTHES, Task, make_task

from flowdata import EpochPlan, FlowWeights, Strata

TASKS = (TURNED, WRONG_CLOTHES)
BATCH = 50
ALPHAS = {NORMALIZED: 0.0, "FLOW, alpha 0.25": 0.25, HALF: 0.5, "FLOW, alpha 0.75": 0.75, FLOW: 1.0}
"""w^alpha by drawing, the rest by weighting."""

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
- stratified: batches filled evenly by label and five levels of weight (`flowdata.Strata`).
"""


def main() -> None:
    """Measure all tasks and seeds, write."""
    options, machine = parser().parse_args(), Machine.here()
    for fetched in (mnist_digits, fashion_mnist, mnist_network):
        fetched()
    jobs = [(task, seed, options.batches) for seed in seeds_of(options.seeds) for task in TASKS]
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        done = list(tqdm(pool.map(measured, jobs), desc="noise", total=len(jobs)))
    noises = by_task(TASKS, jobs, done)
    means = {
        task: {mode: float(np.mean([run[mode] for run in runs])) for mode in runs[0]}
        for task, runs in noises.items()
    }
    rows = [[mode, *(f"{means[task][mode]:.3f}" for task in TASKS)] for mode in means[TASKS[0]]]
    publish(
        options.output,
        "noise",
        ABOUT,
        [Table(f"{options.seeds} seeds", ["", *TASKS], rows)],
        {"noise": noises},
        partial(draw, means),
        machine=machine,
        goals=[
            Target(f"{task}: stratified / FLOW", 0.85, means[task][STRATIFIED] / means[task][FLOW])
            for task in TASKS
        ],
    )


def measured(job: tuple[str, int, int]) -> dict[str, float]:
    """Mean squared error of a batch's gradient at theta*, over the squared full gradient."""
    name, seed, batches = job
    task = make_task(name, seed)
    model, data, weights = task.start.eval(), task.data, task.weights
    probabilities = torch.from_numpy(weights.values / weights.values.sum())
    full = gradient(model, data, torch.arange(len(data)), probabilities * len(data))
    found = {}
    for mode in (*ALPHAS, MULTINOMIAL, STRATIFIED):
        errors = [
            (gradient(model, data, rows, scale) - full).square().sum()
            for rows, scale in batches_of(mode, task, weights, seed, batches)
        ]
        found[mode] = float(torch.stack(errors).mean() / full.square().sum())
    return found


def batches_of(
    mode: str, task: Task, weights: FlowWeights, seed: int, batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, loss weights) of batches of a mode, whose mean gradient is that of FLOW."""
    scheme: Any = "multinomial" if mode == MULTINOMIAL else "systematic"
    alpha = ALPHAS.get(mode, 1.0)
    residual = torch.from_numpy(weights.residual(alpha))
    strata = Strata(task.data.tensors[1], BATCH) if mode == STRATIFIED else None
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
    made.add_argument("--seeds", type=int, default=3, help="default 3")
    made.add_argument("--batches", type=int, default=300, help="of each mode; default 300")
    made.add_argument("--processes", type=int, default=2, help="default 2")
    return made


if __name__ == "__main__":
    main()
