"""Run by torchrun or imported: Lightning's Trainer over the samplers and the data set.

usage: frameworks_lightning.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import logging
import os
import warnings

import lightning
import torch
from frameworks_common import (
    RATE,
    SEED,
    WEIGHTS,
    Regression,
    kill_this_process,
    run_all,
    source,
    worker_context,
)
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import DistributedFlowSampler, FlowDataset, FlowDataWarning, FlowSampler
from flowdata.frameworks.lightning import FlowCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Stop(Callback):
    """Ends the run after a step, or kills the process before one."""

    def __init__(self, stop, kill):
        self.stop, self.kill = stop, kill

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.kill:
            kill_this_process()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.should_stop |= trainer.global_step == self.stop


class Module(lightning.LightningModule):
    def __init__(self, log, make_loader):
        super().__init__()
        self.model, self.make_loader = Regression(log), make_loader

    def train_dataloader(self):
        return self.make_loader()

    def training_step(self, batch, batch_idx):
        return self.model(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def run(
    folder,
    log,
    door="rank sampler",
    draws=24,
    rows="plain",
    callback=True,
    stop=None,
    kill=None,
    save_steps=None,
    resume=None,
    split=True,
    stateful=False,
    batch_size=4,
    **options,
):
    """Errors and warnings of ours; the model logs what it was trained on."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    given, data = {"seed": SEED, "epoch_size": draws}, source(rows)
    items = FlowDataset(data, WEIGHTS, **given) if door == "dataset" else data

    def make_loader():
        kind = StatefulDataLoader if stateful else DataLoader
        if door == "dataset":
            return kind(items, batch_size, shuffle=True, **options)
        if door == "rank sampler" and ranks > 1:
            sampler = DistributedFlowSampler(WEIGHTS, **given)
        else:
            sampler = FlowSampler(WEIGHTS, **given)
        return kind(data, batch_size, sampler=sampler, **options)

    if options.get("num_workers"):
        options["multiprocessing_context"] = worker_context()
    if save_steps == "epochs":
        saving = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    else:
        saving = {"every_n_train_steps": save_steps or 1000}
    ours = [FlowCallback(*([items] if door == "dataset" else []))] if callback else []
    outcome = {"error": None, "warnings": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=ranks,
            strategy="ddp" if ranks > 1 else "auto",
            max_epochs=3,
            use_distributed_sampler=split,
            callbacks=[
                ModelCheckpoint(folder, "{step}", save_top_k=-1, **saving),
                *ours,
                Stop(stop, kill),
            ],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(
                Module(log, make_loader),
                ckpt_path=f"{folder}/step={resume}.ckpt" if resume else None,
            )
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
