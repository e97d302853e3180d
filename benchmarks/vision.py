#!/usr/bin/env python
"""Vision: what each way to fine-tune keeps of the old task and learns of the new one."""

import argparse
import copy
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from assets import fashion_mnist, mnist_digits, mnist_network
from comparing import TEMPERATURE, Comparison, Measure, Run, best_rates
from measure import Machine
from methods import (
    CONTROLS,
    FLOW,
    METHODS,
    STANDARD,
    Tuned,
    Tuning,
    accuracy,
    by_task,
    fine_tuned,
    outputs,
    seeds_of,
    sharing,
)
from publishing import command_line
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from tqdm import tqdm

from flowdata import FlowWeights, LossTable, score, score_probe

TURNED, CLOTHES, WRONG_CLOTHES = (
    "turned digits, harmful samples",
    "clothes",
    "clothes, wrong labels",
)
TASKS = (TURNED, CLOTHES, WRONG_CLOTHES)
PRE_TRAINED, PROBE = "pre-trained", "linear probe"
GRID = (0.001, 0.003, 0.01, 0.03)
TEMPERATURES = (0.25, 0.5, 2.0, 4.0)
FINE_TUNING, HELD_OUT, TEST = 1000, 500, 2000
WRONG, OFF_DOMAIN, ANGLE = 0.4, 0.1, 40.0
CHOOSING_SEEDS = (1001, 1002, 1003)

HELP = """\
Fine-tune a network that was trained on MNIST, once for each task, method and seed. Learning rates
are chosen by the accuracy on held-out samples of the fine-tuning data, for each task and method.
"""

ABOUT = f"""\
A convolutional network (0.42 M parameters) that was trained on MNIST is fine-tuned on
{FINE_TUNING:,} samples. "Old" is its accuracy on {TEST:,} digits, "new" on as many samples of the
new task, rightly labelled; "hardest" is the new accuracy on the tenth that the starting point finds
hardest. Percent, mean and standard deviation over the seeds.

- {TURNED}: digits turned by {ANGLE:.0f} degrees, {WRONG:.0%} with wrong
  labels, and {OFF_DOMAIN:.0%} pictures of clothes with arbitrary labels; the head stays.
- {CLOTHES}: Fashion-MNIST with right labels and a new head: linear probe, scores out of fold,
  fine-tuning of the whole network. For the old task the old head is put back.
- {WRONG_CLOTHES}: the same, {WRONG:.0%} of the labels wrong.

SGD with momentum 0.9, batches of 50. Learning rates from {GRID}, by {HELD_OUT}
held-out samples of the fine-tuning data, wrong labels included, on average of three other seeds.
The rates of the controls are those of standard fine-tuning (times the mean weight for the first).
"""

OLD, NEW = Measure("old", "old, %"), Measure("new", "new, %")
COMPARISON = Comparison(
    "vision",
    ABOUT,
    (OLD, NEW, Measure("mean", "mean, %"), Measure("hardest", "hardest, %")),
    kept=OLD,
    learned=NEW,
)


class Network(nn.Module):
    """The network of ccexam; ``classifier[2]`` is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, 10), of images of shape (n, 1, 28, 28)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


@dataclass(frozen=True)
class Task:
    """One task and seed, ready to be fine-tuned on."""

    start: nn.Module
    old_head: dict[str, Tensor] | None
    data: TensorDataset
    held_out: TensorDataset
    old: TensorDataset
    new: TensorDataset
    hardest: Tensor
    table: LossTable

    @property
    def weights(self) -> FlowWeights:
        """Weights at the median loss."""
        return self.table.weights()


# The tasks.


def make_task(name: str, seed: int) -> Task:
    """Data, starting point and weights, as a function of the seed."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    digits, clothes = (as_tensors(*data) for data in (mnist_digits(), fashion_mnist()))
    order = torch.from_numpy(random.permutation(len(digits[0])))
    old = TensorDataset(*(part[order[-TEST:]] for part in digits))
    model = Network()
    model.load_state_dict(mnist_network())
    if name == TURNED:
        images, labels = turned(digits[0][order]), digits[1][order]
    else:
        shuffled = torch.from_numpy(random.permutation(len(clothes[0])))
        images, labels = (part[shuffled] for part in clothes)
    sizes = [FINE_TUNING, HELD_OUT, TEST]
    given = labels[: sum(sizes)].clone()
    given[: FINE_TUNING + HELD_OUT] = damaged(
        given[: FINE_TUNING + HELD_OUT], 0.0 if name == CLOTHES else WRONG, random
    )
    pieces = images[: sum(sizes)].clone()
    if name == TURNED:
        foreign = torch.from_numpy(random.random(FINE_TUNING + HELD_OUT) < OFF_DOMAIN).nonzero()[
            :, 0
        ]
        pieces[foreign] = clothes[0][: len(foreign)]
        given[foreign] = torch.from_numpy(random.integers(0, 10, len(foreign)))
    parts = zip(pieces.split(sizes), given.split(sizes), strict=True)
    data, held_out, new = (TensorDataset(*part) for part in parts)
    old_head = None
    if name != TURNED:
        head = model.classifier[2]
        old_head = copy.deepcopy(head.state_dict())
        head.reset_parameters()
        table = score_probe(model, data, head="classifier.2", seed=seed, progress=False)
    else:
        table = score(model, data, progress=False)
    losses = F.cross_entropy(outputs(model, new.tensors[0]), new.tensors[1], reduction="none")
    hardest = losses.argsort(descending=True)[: TEST // 10]
    return Task(model, old_head, data, held_out, old, new, hardest, table)


def as_tensors(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Images as the network was trained on them."""
    pixels = (torch.from_numpy(images.copy()).unsqueeze(1) - 0.1307) / 0.3081
    return pixels, torch.from_numpy(labels.copy())


def turned(images: Tensor) -> Tensor:
    """Images turned by `ANGLE`."""
    angle = np.deg2rad(ANGLE)
    rotation = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]],
        dtype=images.dtype,
    )
    size = list(images.shape)
    grid = F.affine_grid(rotation.expand(len(images), 2, 3), size, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def damaged(labels: Tensor, share: float, random: np.random.Generator) -> Tensor:
    """Labels of which a share is wrong."""
    wrong = torch.from_numpy(random.random(len(labels)) < share)
    shifts = torch.from_numpy(random.integers(1, 10, len(labels)))
    return torch.where(wrong, (labels + shifts) % 10, labels)


def scored(task: Task, tuned: Tuned) -> dict[str, float]:
    """Accuracies of a model, in percent, and what it took; on the old task with the old head."""
    hits = accuracy(tuned.model, task.new)
    new = hits.mean().item()
    model = copy.deepcopy(tuned.model)
    if task.old_head is not None:
        model.classifier[2].load_state_dict(task.old_head)  # type: ignore[index,union-attr]
    old = accuracy(model, task.old).mean().item()
    return {
        "old": old,
        "new": new,
        "mean": (old + new) / 2,
        "hardest": hits[task.hardest].mean().item(),
        "samples": tuned.samples,
        "seconds": tuned.seconds,
    }


# The runs.


def main() -> None:
    """Choose the rates, run everything, write."""
    options, machine = parser().parse_args(), Machine.here()
    for fetched in (mnist_digits, fashion_mnist, mnist_network):
        fetched()
    pool = ProcessPoolExecutor(options.processes, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        asked = [(task, seed, options.epochs) for task in options.tasks for seed in CHOOSING_SEEDS]
        tried = list(tqdm(pool.map(try_rates, asked), desc="rates", total=len(asked)))
        rates = {
            task: best_rates(found, GRID)
            for task, found in by_task(options.tasks, asked, tried).items()
        }
        for found in rates.values():
            found |= dict.fromkeys(CONTROLS, found[STANDARD])
        jobs = [
            (task, seed, options.epochs, rates[task])
            for seed in seeds_of(options.seeds)
            for task in options.tasks
        ]
        done = list(tqdm(pool.map(run_all, jobs), desc="runs", total=len(jobs)))
    COMPARISON.publish(options, rates, by_task(options.tasks, jobs, done), machine=machine)


def try_rates(job: tuple[str, int, int]) -> dict[str, list[float]]:
    """Held-out accuracy of each method at each rate of the grid."""
    name, seed, epochs = job
    task = make_task(name, seed)
    tuned = trainings(task, Tuning(task.data, task.weights, epochs), seed)
    return {
        method: [accuracy(tuned(method, rate).model, task.held_out).mean().item() for rate in GRID]
        for method in METHODS
        if method not in CONTROLS
    }


def run_all(job: tuple[str, int, int, dict[str, float]]) -> Run:
    """All methods on one task and seed, and FLOW over temperatures."""
    name, seed, epochs, rates = job
    task = make_task(name, seed)
    untrained = Tuned(task.start, 0, 0.0)
    first = PRE_TRAINED if task.old_head is None else PROBE
    results = {first: scored(task, untrained)}
    tuned = trainings(task, Tuning(task.data, task.weights, epochs), seed)
    for method in METHODS:
        results[method] = scored(task, tuned(method, rates[method]))
    for factor in TEMPERATURES:
        weights = task.table.weights(factor * float(task.weights.temperature or 1.0))
        tuned = trainings(task, Tuning(task.data, weights, epochs), seed)
        results[f"{FLOW}, {factor:g} {TEMPERATURE}"] = scored(task, tuned(FLOW, rates[FLOW]))
    return results


def trainings(task: Task, tuning: Tuning, seed: int) -> Callable[[str, float], Tuned]:
    """(method, learning rate) -> model."""

    def train(method: str, rate: float) -> Tuned:
        return fine_tuned(method, task.start, tuning, rate, seed)

    return sharing(train, task.start)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--seeds", type=int, default=10, help="default 10")
    made.add_argument("--epochs", type=int, default=5, help="default 5")
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="default all")
    made.add_argument("--processes", type=int, default=2, help="default 2")
    return made


if __name__ == "__main__":
    main()
