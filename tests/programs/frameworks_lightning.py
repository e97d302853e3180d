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
from torch.utils.data import BatchSampler, DataLoader
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


class Batches:
    """A batch sampler that does not tell its batch size."""

    def __init__(self, sampler, size):
        self.sampler, self.size = sampler, size

    def __iter__(self):
        return iter(BatchSampler(self.sampler, self.size, drop_last=False))

    def __len__(self):
        return -(-len(self.sampler) // self.size)


class Module(lightning.LightningModule):
    def __init__(self, log, make_loader):
        super().__init__()
        self.model, self.make_loader = Regression(log), make_loader

    def train_dataloader(self):
        return self.make_loader()

    def training_step(self, batch, batch_idx):
        parts = [batch] if "row" in batch else [part for part in batch.values() if part]
        return sum(self.model(**part)["loss"] for part in parts)

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
    told=True,
    reload=0,
    second=None,
    bare=False,
    **options,
):
    """Errors and warnings of ours; the model logs what it was trained on.

    told: whether the callback is told of the data set.
    reload: epochs after which there are new loaders, data set and all.
    second: draws of a second loader, in batches of two, that is trained on at the same time.
    bare: a batch sampler that does not tell its batch size.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    given, data = {"seed": SEED, "epoch_size": draws}, source(rows)
    items = FlowDataset(data, WEIGHTS, **given) if door == "dataset" else data

    def make_loader(size=batch_size, given=given):
        kind = StatefulDataLoader if stateful else DataLoader
        if door == "dataset":
            drawn = FlowDataset(data, WEIGHTS, **given) if reload else items
            return kind(drawn, size, shuffle=True, **options)
        if door == "rank sampler" and ranks > 1:
            sampler = DistributedFlowSampler(WEIGHTS, **given)
        else:
            sampler = FlowSampler(WEIGHTS, **given)
        if bare:
            return kind(data, batch_sampler=Batches(sampler, size), **options)
        return kind(data, size, sampler=sampler, **options)

    def make_loaders():
        if second is None:
            return make_loader()
        return {"a": make_loader(), "b": make_loader(2, given | {"epoch_size": second})}

    if options.get("num_workers"):
        options["multiprocessing_context"] = worker_context()
    if save_steps == "epochs":
        saving = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    else:
        saving = {"every_n_train_steps": save_steps or 1000}
    tell = door == "dataset" and told and not reload
    ours = [FlowCallback(*([items] if tell else []))] if callback else []
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
            reload_dataloaders_every_n_epochs=reload,
        )
        try:
            trainer.fit(
                Module(log, make_loaders),
                ckpt_path=f"{folder}/step={resume}.ckpt" if resume else None,
            )
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
