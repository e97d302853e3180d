"""``flowdata demo``: real digits, a harmful fine-tuning set, one training loop, five loaders."""

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from flowdata import demo_runs
from flowdata.core.weights import FlowWeights
from flowdata.demo_runs import (
    BATCH,
    EPOCHS,
    FLOW,
    LEARNING_RATE,
    PRE_TRAINING_EPOCHS,
    Result,
    Run,
    accuracy,
    batches,
    loaders,
    read_digits,
    read_photographs,
    train,
)
from flowdata.map_style.sampler import FlowSampler
from flowdata.scoring import score
from flowdata.table.loss_table import LossTable

__all__ = [
    "Task",
    "accuracy",
    "load_task",
    "make_task",
    "pre_trained",
    "read_digits",
    "read_photographs",
    "report",
    "run",
    "train",
    "turn",
]

_PRE_TRAINING, _FINE_TUNING = 800, 500
_ANGLE = 30.0

_PRE_TRAINED = "pre-trained"
_DISTINCT = 'FlowSampler, "distinct"'


@dataclass(frozen=True)
class Task:
    """One split of the digits; images are float32 of shape (n, 1, 8, 8).

    Attributes:
        pre_training: upright digits.
        fine_tuning: turned digits, some with wrong labels, and pieces of photographs.
        harmful: which rows of ``fine_tuning`` are wrong or off-domain.
        old: upright test digits.
        new: the same test digits, turned.
    """

    pre_training: TensorDataset
    fine_tuning: TensorDataset
    harmful: NDArray[np.bool_]
    old: TensorDataset
    new: TensorDataset


def run(*, seeds: int, output: Path) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    digits, photos = read_digits(), read_photographs()
    runs = []
    with demo_runs.one_thread(), tqdm(total=seeds * 6, desc="demo", unit="trainings") as bar:
        for seed in range(seeds):
            runs.append(_run_once(make_task(seed, *digits, photos), seed, output, bar))
    demo_runs.draw(runs, output / "demo.png", start=_PRE_TRAINED)
    return runs


def report(runs: list[Run]) -> str:
    """The setting, a table of all methods, and what came out in words."""
    return demo_runs.report(
        f"Old task: upright digits. New task: digits turned by {_ANGLE:.0f} degrees. Accuracy in "
        f"percent, mean ± standard deviation of {len(runs)} seeds.",
        runs,
    )


def make_task(seed: int, images: Tensor, labels: Tensor, photos: list[Tensor]) -> Task:
    """Split the digits and make the fine-tuning set, as a function of the seed."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    first, second, test = order.tensor_split([_PRE_TRAINING, _PRE_TRAINING + _FINE_TUNING])
    fine_tuning, harmful = demo_runs.with_harmful_samples(
        turn(images[second]), labels[second], photos, 10, random
    )
    return Task(
        pre_training=TensorDataset(images[first], labels[first]),
        fine_tuning=fine_tuning,
        harmful=harmful,
        old=TensorDataset(images[test], labels[test]),
        new=TensorDataset(turn(images[test]), labels[test]),
    )


def load_task(seed: int) -> Task:
    """The task of one seed, from the digits and photographs that come with scikit-learn."""
    return make_task(seed, *read_digits(), read_photographs())


def pre_trained(task: Task, seed: int) -> nn.Module:
    """A small convolutional network that has learned to read the upright digits of a task."""
    torch.manual_seed(seed)
    network = demo_runs.network(classes=10)
    upright = DataLoader(task.pre_training, batch_size=BATCH, shuffle=True)
    train(network, upright, learning_rate=LEARNING_RATE, epochs=PRE_TRAINING_EPOCHS)
    return network


def _run_once(task: Task, seed: int, output: Path, bar: "tqdm[Any]") -> Run:
    network = pre_trained(task, seed)
    bar.update()

    path = output / f"losses-{seed}.parquet"
    score(network, task.fine_tuning, progress=False).save(path)
    losses = LossTable.load(path, dataset=task.fine_tuning, model=network)
    weights = losses.weights()

    hardest = demo_runs.hardest_rows(network, task.new)
    results = {_PRE_TRAINED: Result(*_accuracies(network, task, hardest))}
    for method, loader, learning_rate in _methods(task.fine_tuning, weights, seed):
        model = copy.deepcopy(network)
        # The same random numbers for each method: only the loader makes a difference.
        torch.manual_seed(seed)
        started = time.perf_counter()
        train(model, loader, learning_rate=learning_rate, epochs=EPOCHS)
        seconds = time.perf_counter() - started
        samples = EPOCHS * len(loader.sampler)  # type: ignore[arg-type]
        results[method] = Result(*_accuracies(model, task, hardest), samples, seconds)
        bar.update()
    return Run(task.harmful, losses.losses, weights, results)


def _methods(
    data: TensorDataset, weights: FlowWeights, seed: int
) -> Iterator[tuple[str, DataLoader[Any], float]]:
    """(name, loader, learning rate); only the loader differs, but for one control."""
    for method, loader, learning_rate in loaders(data, weights, seed, LEARNING_RATE):
        yield method, loader, learning_rate
        if method == FLOW:
            distinct = FlowSampler(weights, seed=seed, epoch_size="distinct")
            yield _DISTINCT, batches(data, distinct), learning_rate


def turn(images: Tensor) -> Tensor:
    """The images turned by `_ANGLE` degrees, with black where there was nothing."""
    angle = np.deg2rad(_ANGLE)
    rotation = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]],
        dtype=images.dtype,
    )
    grid = F.affine_grid(
        rotation.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, align_corners=False)


def _accuracies(
    model: nn.Module, task: Task, hardest: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Old, new, and hardest new, in percent."""
    old, new = (demo_runs.scores_in_percent(model, data) for data in (task.old, task.new))
    return old.mean().item(), new.mean().item(), new[hardest].mean().item()
