"""Run by torchrun or imported: a Monitor under the transformers Trainer, and under Lightning.

usage: frameworks_monitor.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import os
from pathlib import Path

import lightning
import numpy as np
import torch
from frameworks_common import ROWS, SEED, WEIGHTS, Regression, Rows, run_all
from frameworks_trainer import Stop, WithSampler
from lightning_runs import DATA, Reading, make_trainer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import flowdata
from flowdata.frameworks import lightning as for_lightning
from flowdata.frameworks.trainer import FlowCallback, MonitorCallback

LOSSES = -np.log(WEIGHTS)
GROUPS = [f"g{row % 3}" for row in range(ROWS)]


def run(
    folder,
    log,
    door="dataset",
    draws=24,
    stop=None,
    resume=False,
    monitored=True,
    alone=False,
    **options,
):
    """The figures that the Trainer logged at each step; the model logs what it was trained on."""
    args = TrainingArguments(
        folder,
        use_cpu=True,
        **{
            "num_train_epochs": 3,
            "per_device_train_batch_size": 2,
            "save_strategy": "steps",
            "logging_strategy": "steps",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
        }
        | options,
    )
    weights = flowdata.FlowWeights.from_losses(LOSSES)
    given, data = {"seed": SEED, "epoch_size": draws}, Rows()
    if door == "dataset":
        data = flowdata.FlowDataset(data, weights, **given)
    model = Regression(log)
    trainer = (WithSampler if door == "sampler" else Trainer)(
        model, args, train_dataset=data, callbacks=[Stop(stop, None, None), FlowCallback()]
    )
    if door == "sampler":
        trainer.sampler = flowdata.FlowSampler(weights, **given)
    if monitored:
        monitor = flowdata.Monitor(weights, groups=GROUPS)
        trainer.add_callback(Losing(monitor, LOSSES, trainer if alone else None))
        trainer.add_callback(MonitorCallback(monitor, trainer))
    checkpoint = bool(resume and any(Path(folder).glob("checkpoint-*")))
    trainer.train(resume_from_checkpoint=checkpoint)
    logged = [entry for entry in trainer.state.log_history if "flowdata/coverage" in entry]
    return {"figures": logged, "summary": monitor.summary() if monitored else ""}


class Losing(TrainerCallback):
    """Hands over a row's loss at each step, which has risen by 1 on rank 0, and 3 on rank 1."""

    def __init__(self, monitor, scored, trainer=None):
        self.monitor, self.scored, self.trainer, self.step = monitor, scored, trainer, 0

    def on_step_end(self, *_, **__):
        row, rank = self.step % len(self.scored), int(os.environ.get("RANK", 0))
        self.monitor.log_losses([row], [self.scored[row] + 1 + 2 * rank])
        self.step += 1

    def on_step_begin(self, *_, **__):
        if self.trainer is not None and os.environ.get("RANK", "0") == "0":
            self.trainer.log({"loss": 0.0})


class LosingBatches(lightning.Callback):
    """The same under Lightning."""

    def __init__(self, *given):
        self.losing = Losing(*given)

    def on_train_batch_end(self, *_):
        self.losing.on_step_end()


class Noting(lightning.Callback):
    """Notes the figures after each step."""

    def __init__(self, monitor):
        self.monitor, self.figures = monitor, []

    def on_train_batch_end(self, *_):
        self.figures.append(self.monitor.figures())


def run_lightning(door):
    """The rows of each batch of this rank, and the figures after it."""
    weights = flowdata.FlowWeights.from_losses(np.arange(len(DATA)) / 10)

    def make_loader():
        kinds = {"rank sampler": flowdata.DistributedFlowSampler, "sampler": flowdata.FlowSampler}
        if door in kinds:
            return DataLoader(DATA, 4, sampler=kinds[door](weights, seed=SEED))
        dataset = flowdata.FlowDataset(DATA, weights, seed=SEED)
        return DataLoader(dataset, 4, shuffle=door == "shuffled")

    module, monitor = Reading(make_loader), flowdata.Monitor(weights)
    noting = Noting(monitor)
    trainer = make_trainer(
        for_lightning.FlowCallback(),
        LosingBatches(monitor, weights.made.losses),
        for_lightning.MonitorCallback(monitor),
        noting,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=door != "rank sampler",
        log_every_n_steps=1,
    )
    trainer.fit(module)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    batches = [rows[""] for _, rows in module.batches]
    gathered = monitor.figures(gather=True)
    return {"rows": batches, "figures": noting.figures, "logged": logged, "gathered": gathered}


def run_either(framework="trainer", **options):
    """A run under one of the two."""
    return run_lightning(**options) if framework == "lightning" else run(**options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(run_either)
