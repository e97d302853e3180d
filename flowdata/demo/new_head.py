"""``flowdata demo --new-head``: a network that reads five digits learns the other five."""

import copy
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from flowdata.core.weights import FlowWeights
from flowdata.demo import comparison
from flowdata.demo.comparison import (
    BATCH,
    FLOW,
    LEARNING_RATE,
    OWN_ROWS,
    PRE_TRAINING_EPOCHS,
    Result,
    Run,
    Task,
    batches,
    loaders,
    train,
)
from flowdata.errors import FlowDataWarning
from flowdata.map_style.sampler import FlowSampler
from flowdata.scoring import score, score_probe

_CLASSES = 5
_HEAD = "8"
_PRE_TRAINING, _FINE_TUNING = 600, 500
_LEARNING_RATE = 0.001
_PROBE = "linear probe"


def run(*, seeds: int, output: Path) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    return comparison.run_seeds(make_task, _run_once, seeds=seeds, output=output, start=_PROBE)


def report(runs: list[Run]) -> str:
    """The setting, a table of all methods, and what came out in words."""
    trapped = np.mean([run.drawn(run.own_rows) for run in runs if run.own_rows is not None])
    setting = (
        "Old task: digits 0 to 4, by the old head. New task: digits 5 to 9, by a new head. "
        f"Accuracy in percent, mean ± standard deviation of {len(runs)} seeds.\n"
        "The new head is scored out of fold; scored on the rows that it was fitted on, as in "
        f'"{OWN_ROWS}",\n{trapped:.0%} of what is drawn would be harmful.'
    )
    return comparison.report(setting, runs)


def make_task(seed: int, images: Tensor, labels: Tensor, photos: list[Tensor]) -> Task:
    """Split the digits and make the fine-tuning set, as a function of the seed."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    is_old = labels[order] < _CLASSES
    first, old = order[is_old].tensor_split([_PRE_TRAINING])
    second, new = order[~is_old].tensor_split([_FINE_TUNING])
    fine_tuning, harmful = comparison.with_harmful_samples(
        images[second], labels[second] - _CLASSES, photos, _CLASSES, random
    )
    return Task(
        pre_training=TensorDataset(images[first], labels[first]),
        fine_tuning=fine_tuning,
        harmful=harmful,
        old=TensorDataset(images[old], labels[old]),
        new=TensorDataset(images[new], labels[new] - _CLASSES),
    )


def _run_once(task: Task, seed: int, output: Path, bar: "tqdm[Any]") -> Run:
    torch.manual_seed(seed)
    network = comparison.network(_CLASSES)
    known = DataLoader(task.pre_training, batch_size=BATCH, shuffle=True)
    train(network, known, learning_rate=LEARNING_RATE, epochs=PRE_TRAINING_EPOCHS)
    bar.update()

    # The new head begins where the old one ended: both have five classes, of other digits.
    old_head = copy.deepcopy(network.get_submodule(_HEAD))
    path = output / f"losses-{seed}.parquet"
    table = score_probe(
        network, task.fine_tuning, head=_HEAD, seed=seed, output=path, progress=False
    )
    weights, own_rows = table.weights(), _scored_on_its_own_rows(network, task.fine_tuning)
    hardest = comparison.hardest_rows(network, task.new)
    knows = partial(_accuracies, old_head=old_head, task=task, hardest=hardest)
    results = {_PROBE: Result(*knows(network))}
    methods = _methods(task.fine_tuning, weights, own_rows, seed)
    results |= comparison.fine_tuned(network, methods, knows, seed, bar)
    return Run(task.harmful, table.losses, weights, results, own_rows)


def _methods(
    data: TensorDataset, weights: FlowWeights, own_rows: FlowWeights, seed: int
) -> Iterator[tuple[str, DataLoader[Any], float]]:
    """(name, loader, learning rate); one of them draws by the losses of a head's own rows."""
    for method, loader, learning_rate in loaders(data, weights, seed, _LEARNING_RATE):
        yield method, loader, learning_rate
        if method == FLOW:
            yield OWN_ROWS, batches(data, FlowSampler(own_rows, seed=seed)), learning_rate


def _scored_on_its_own_rows(probed: nn.Module, data: TensorDataset) -> FlowWeights:
    """Weights by a head that has learned the labels of these rows, wrong ones too."""
    with warnings.catch_warnings():
        # That it has is what shall be seen.
        warnings.simplefilter("ignore", FlowDataWarning)
        return score(probed, data, progress=False).weights()


def _accuracies(
    model: nn.Module, old_head: nn.Module, task: Task, hardest: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Old, by the old head, new, and hardest new, in percent."""
    new = comparison.scores_in_percent(model, task.new)
    before = copy.deepcopy(model)
    before.set_submodule(_HEAD, old_head)
    old = comparison.accuracy(before, task.old)
    return old, new.mean().item(), new[hardest].mean().item()
