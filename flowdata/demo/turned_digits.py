"""``flowdata demo``: real digits, a harmful fine-tuning set, one training loop, five loaders."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from flowdata.core.weights import FlowWeights
from flowdata.demo import comparison
from flowdata.demo.comparison import (
    BATCH,
    FLOW,
    LEARNING_RATE,
    PRE_TRAINING_EPOCHS,
    Result,
    Run,
    Task,
    batches,
    loaders,
    read_digits,
    read_photographs,
    train,
)
from flowdata.map_style.sampler import FlowSampler
from flowdata.scoring import score
from flowdata.table.loss_table import LossTable

_PRE_TRAINING, _FINE_TUNING = 800, 500
_ANGLE = 30.0

_PRE_TRAINED = "pre-trained"
_DISTINCT = 'FlowSampler, "distinct"'


def run(*, seeds: int, output: Path) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    return comparison.run_seeds(
        make_task, _run_once, seeds=seeds, output=output, start=_PRE_TRAINED
    )


def report(runs: list[Run]) -> str:
    """The setting, a table of all methods, and what came out in words."""
    return comparison.report(
        f"Old task: upright digits. New task: digits turned by {_ANGLE:.0f} degrees. Accuracy in "
        f"percent, mean ± standard deviation of {len(runs)} seeds.",
        runs,
    )


def make_task(seed: int, images: Tensor, labels: Tensor, photos: list[Tensor]) -> Task:
    """Split the digits and make the fine-tuning set, as a function of the seed."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    first, second, test = order.tensor_split([_PRE_TRAINING, _PRE_TRAINING + _FINE_TUNING])
    fine_tuning, harmful = comparison.with_harmful_samples(
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
    network = comparison.network(classes=10)
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

    hardest = comparison.hardest_rows(network, task.new)
    knows = partial(_accuracies, task=task, hardest=hardest)
    results = {_PRE_TRAINED: Result(*knows(network))}
    methods = _methods(task.fine_tuning, weights, seed)
    results |= comparison.fine_tuned(network, methods, knows, seed, bar)
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
    old, new = (comparison.scores_in_percent(model, data) for data in (task.old, task.new))
    return old.mean().item(), new.mean().item(), new[hardest].mean().item()
