"""The time of a training step in each framework, with flowdata and with shuffling."""

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import (
    Figures,
    Machine,
    Reading,
    Results,
    Table,
    Target,
    Task,
    canvas,
    horizontal_bars,
    in_fresh_process,
    number,
)
from publishing import command_line, publish
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from flowdata import FlowDataset, FlowSampler, FlowWeights

LABELS = {
    "torch": "DataLoader",
    "stateful": "StatefulDataLoader",
    "accelerate": "accelerate",
    "trainer": "transformers Trainer",
    "lightning": "Lightning Trainer",
}
DOORS = {
    "torch": "sampler=FlowSampler",
    "stateful": "sampler=FlowSampler",
    "accelerate": "sampler=FlowSampler",
    "trainer": "FlowDataset, sequential",
    "lightning": "sampler=FlowSampler, FlowCallback",
}
BATCH, WIDTH, EPOCHS, LIMIT = 32, 64, 3, 1.02

HELP = """\
Train a small network for epochs of many steps in each framework, once with shuffle=True and once
with flowdata in its place, in turns in one process, and compare the time of a step.
"""

ABOUT = f"""\
- A step is a batch of {BATCH} rows of a map-style data set that returns dicts of tensors, through
  a network of three layers of 256, and SGD. One process, one thread, no loader workers.
- The time of a step is that of an epoch, from before its first draw to its end, over its steps; the
  first epoch of each run is left out.
- The ratio is taken within a process, of runs that follow each other.
"""


def main() -> None:
    """Measure one thing in this process, or everything in others."""
    options = parser().parse_args()
    if options.measure is not None:
        method, steps, rounds = options.measure
        print(json.dumps(measured(method, int(steps), int(rounds))))
        return
    machine = Machine.here()
    tasks = [Task(method, options.steps, str(options.rounds)) for method in options.only]
    rounds = [(round_, task) for round_ in range(options.repeats) for task in tasks]
    results = Results(
        Reading(task, round_, in_fresh_process(Path(__file__), task.arguments))
        for round_, task in tqdm(rounds, unit="process")
    )
    goals = [
        Target(f"{LABELS[method]}, ratio", LIMIT, results.median(method, options.steps, "ratio"))
        for method in options.only
    ]
    publish(
        options.output,
        "frameworks",
        ABOUT,
        [table(results, options)],
        {"medians": results.medians()},
        partial(draw, results, options),
        machine=machine,
        goals=goals,
    )


# What a process measures.


class Rows(Dataset[dict[str, torch.Tensor]]):
    """Features and labels, as most data sets for these frameworks return them."""

    def __init__(self, rows: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.features = torch.rand(rows, WIDTH, generator=generator)
        self.labels = torch.randint(10, (rows,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"features": self.features[row], "labels": self.labels[row]}


class Network(torch.nn.Module):
    """Returns its loss, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [WIDTH, 256, 256, 256]
        layers = [
            layer
            for i, o in itertools.pairwise(sizes)
            for layer in (torch.nn.Linear(i, o), torch.nn.ReLU())
        ]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))

    def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss of a batch."""
        return {"loss": F.cross_entropy(self.layers(features), labels)}


def measured(method: str, steps: int, rounds: int) -> Figures:
    """Seconds of a step with and without flowdata, in turns, and the ratios of neighbours."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = Rows(steps * BATCH)
    losses = np.random.default_rng(0).gamma(2.0, size=len(rows))
    weights = FlowWeights.from_losses(losses)
    train = partial(METHODS[method], rows)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    ratios = []
    for round_ in range(rounds):
        order = (False, True) if round_ % 2 == 0 else (True, False)
        for ours in order:
            epochs = train(weights if ours else None)
            seconds[ours].append(statistics.median(epochs[1:]) / steps)
        ratios.append(seconds[True][-1] / seconds[False][-1])
    return {"with_s": seconds[True], "without_s": seconds[False], "ratio": ratios}


def loop(
    loader: Iterable[dict[str, torch.Tensor]],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[float]:
    """Seconds of each epoch of a loop of one's own."""
    seconds = []
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for batch in loader:
            loss = model(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return seconds


def make_loader(kind: Any, rows: Rows, weights: FlowWeights | None) -> Any:
    """A loader of that kind that shuffles, or draws by weight."""
    if weights is None:
        return kind(rows, BATCH, shuffle=True)
    return kind(rows, BATCH, sampler=FlowSampler(weights))


def in_torch(rows: Rows, weights: FlowWeights | None) -> list[float]:
    """Seconds of each epoch through torch's DataLoader."""
    model = Network()
    return loop(make_loader(DataLoader, rows, weights), model, sgd(model))


def in_torchdata(rows: Rows, weights: FlowWeights | None) -> list[float]:
    """Seconds of each epoch through torchdata's StatefulDataLoader."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    model = Network()
    return loop(make_loader(StatefulDataLoader, rows, weights), model, sgd(model))


def in_accelerate(rows: Rows, weights: FlowWeights | None) -> list[float]:
    """Seconds of each epoch through a loader that accelerate prepared."""
    from accelerate import Accelerator

    model = Network()
    loader = make_loader(DataLoader, rows, weights)
    prepared = Accelerator(cpu=True).prepare(loader, model, sgd(model))
    return loop(*prepared)


def in_trainer(rows: Rows, weights: FlowWeights | None) -> list[float]:
    """Seconds of each epoch of the Trainer of transformers."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    model = Network()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            use_cpu=True,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH,
            train_sampling_strategy="sequential" if weights else "random",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        data = FlowDataset(rows, weights) if weights else rows
        trainer = Trainer(
            model,
            args,
            train_dataset=data,
            callbacks=[Clock()],
            optimizers=(optimizer, schedule),
        )
        out, sys.stdout = sys.stdout, sys.stderr
        try:
            trainer.train()
        finally:
            sys.stdout = out
    return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]


def in_lightning(rows: Rows, weights: FlowWeights | None) -> list[float]:
    """Seconds of each epoch of Lightning's Trainer."""
    import lightning

    from flowdata.frameworks.lightning import FlowCallback

    marks: list[float] = []

    class Clock(lightning.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            marks.append(time.perf_counter())

        def on_train_epoch_end(self, *_: Any) -> None:
            marks.append(time.perf_counter())

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = Network()

        def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.network(**batch)["loss"]
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self)

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[Clock(), *([FlowCallback()] if weights else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), make_loader(DataLoader, rows, weights))
    return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all methods."""
    return torch.optim.SGD(model.parameters(), lr=0.01)


METHODS: dict[str, Callable[[Rows, FlowWeights | None], list[float]]] = {
    "torch": in_torch,
    "stateful": in_torchdata,
    "accelerate": in_accelerate,
    "trainer": in_trainer,
    "lightning": in_lightning,
}


# What the readings amount to.


def table(results: Results, options: argparse.Namespace) -> Table:
    """Everything a reader wants to see."""
    lines = []
    for method in options.only:
        figures = [results.median(method, options.steps, f) for f in ("without_s", "with_s")]
        milliseconds = [number(None if value is None else 1e3 * value) for value in figures]
        ratio = results.median(method, options.steps, "ratio")
        lines.append([LABELS[method], DOORS[method], *milliseconds, f"{ratio:.3f}"])
    header = ["", "with", "shuffle=True, ms", "flowdata, ms", "ratio"]
    return Table(f"Epochs of {options.steps:,} steps", header, lines)


def draw(results: Results, options: argparse.Namespace, path: Path) -> None:
    """The ratio in each framework."""
    with canvas(path, rows=1, columns=1) as (_, axes):
        values = [results.median(m, options.steps, "ratio") or 0.0 for m in options.only]
        names = [LABELS[method] for method in options.only]
        title = "time of a step / time with shuffle=True"
        horizontal_bars(axes, title, "ratio", names, values)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = command_line(HELP)
    options.add_argument("--steps", type=int, default=1000, help="steps of an epoch")
    options.add_argument("--rounds", type=int, default=4, help="runs of each kind in a process")
    options.add_argument("--repeats", type=int, default=3, help="processes of each framework")
    options.add_argument(
        "--only", nargs="+", choices=LABELS, default=list(LABELS), help="frameworks to measure"
    )
    options.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    return options


if __name__ == "__main__":
    main()
