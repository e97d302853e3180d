"""``flowdata demo --new-head``: a network that reads five digits learns the other five."""

import copy
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from flowdata import demo_runs
from flowdata.core.weights import FlowWeights
from flowdata.demo_runs import (
    BATCH,
    EPOCHS,
    FLOW,
    LEARNING_RATE,
    OWN_ROWS,
    PRE_TRAINING_EPOCHS,
    Result,
    Run,
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


@dataclass(frozen=True)
class Task:
    """One split of the digits; images are float32 of shape (n, 1, 8, 8), classes 0 to 4.

    Attributes:
        pre_training: digits 0 to 4.
        fine_tuning: digits 5 to 9, some with wrong labels, and pieces of photographs.
        harmful: which rows of ``fine_tuning`` are wrong or off-domain.
        old: test digits 0 to 4.
        new: test digits 5 to 9.
    """

    pre_training: TensorDataset
    fine_tuning: TensorDataset
    harmful: NDArray[np.bool_]
    old: TensorDataset
    new: TensorDataset


def run(*, seeds: int, output: Path) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    digits, photos = demo_runs.read_digits(), demo_runs.read_photographs()
    runs = []
    with demo_runs.one_thread(), tqdm(total=seeds * 6, desc="demo", unit="trainings") as bar:
        for seed in range(seeds):
            runs.append(_run_once(make_task(seed, *digits, photos), seed, output, bar))
    demo_runs.draw(runs, output / "demo.png", start=_PROBE)
    return runs


def report(runs: list[Run]) -> str:
    """The setting, a table of all methods, and what came out in words."""
    trapped = np.mean([run.drawn(run.own_rows) for run in runs if run.own_rows is not None])
    setting = (
        "Old task: digits 0 to 4, by the old head. New task: digits 5 to 9, by a new head. "
        f"Accuracy in percent, mean ± standard deviation of {len(runs)} seeds.\n"
        "The new head is scored out of fold; scored on the rows that it was fitted on, as in "
        f'"{OWN_ROWS}",\n{trapped:.0%} of what is drawn would be harmful.'
    )
    return demo_runs.report(setting, runs)


def make_task(seed: int, images: Tensor, labels: Tensor, photos: list[Tensor]) -> Task:
    """Split the digits and make the fine-tuning set, as a function of the seed."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    is_old = labels[order] < _CLASSES
    first, old = order[is_old].tensor_split([_PRE_TRAINING])
    second, new = order[~is_old].tensor_split([_FINE_TUNING])
    fine_tuning, harmful = demo_runs.with_harmful_samples(
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
    network = demo_runs.network(_CLASSES)
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
    hardest = demo_runs.hardest_rows(network, task.new)
    results = {_PROBE: _result(network, old_head, task, hardest)}
    for method, loader, learning_rate in _methods(task.fine_tuning, weights, own_rows, seed):
        model = copy.deepcopy(network)
        torch.manual_seed(seed)
        started = time.perf_counter()
        train(model, loader, learning_rate=learning_rate, epochs=EPOCHS)
        seconds = time.perf_counter() - started
        samples = EPOCHS * len(loader.sampler)  # type: ignore[arg-type]
        results[method] = _result(model, old_head, task, hardest, samples, seconds)
        bar.update()
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


def _result(
    model: nn.Module,
    old_head: nn.Module,
    task: Task,
    hardest: NDArray[np.int64],
    samples: int = 0,
    seconds: float = 0.0,
) -> Result:
    """What a model knows: of the new task by its own head, of the old task by the old one."""
    new = demo_runs.scores_in_percent(model, task.new)
    before = copy.deepcopy(model)
    before.set_submodule(_HEAD, old_head)
    old = demo_runs.accuracy(before, task.old)
    return Result(old, new.mean().item(), new[hardest].mean().item(), samples, seconds)
