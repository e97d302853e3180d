"""Run by torchrun or imported: a Monitor under the transformers Trainer, and under Lightning.

usage: frameworks_monitor.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

from pathlib import Path

import lightning
import numpy as np
import torch
from frameworks_common import ROWS, SEED, WEIGHTS, Regression, Rows, run_all
from frameworks_trainer import Stop, WithSampler
from lightning_runs import DATA, Reading, make_trainer
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import flowdata
from flowdata.frameworks import lightning as for_lightning
from flowdata.frameworks.trainer import FlowCallback, MonitorCallback

LOSSES = -np.log(WEIGHTS)
GROUPS = [f"g{row % 3}" for row in range(ROWS)]


def run(folder, log, door="dataset", draws=24, stop=None, resume=False, monitored=True, **options):
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
        trainer.add_callback(MonitorCallback(monitor, trainer))
    checkpoint = bool(resume and any(Path(folder).glob("checkpoint-*")))
    trainer.train(resume_from_checkpoint=checkpoint)
    logged = [entry for entry in trainer.state.log_history if "flowdata/coverage" in entry]
    return {"figures": logged, "summary": monitor.summary() if monitored else ""}


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
    make_trainer(
        for_lightning.FlowCallback(),
        for_lightning.MonitorCallback(monitor),
        noting,
        devices=2,
        strategy="ddp",
        use_distributed_sampler=door != "rank sampler",
    ).fit(module)
    return {"rows": [rows[""] for _, rows in module.batches], "figures": noting.figures}


def run_either(framework="trainer", **options):
    """A run under one of the two."""
    return run_lightning(**options) if framework == "lightning" else run(**options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(run_either)
