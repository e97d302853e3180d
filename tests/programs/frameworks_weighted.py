"""Run by torchrun or imported: weighted losses, and streams of shards, in each framework.

usage: frameworks_weighted.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import logging
import os

import lightning
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from frameworks_common import (
    RATE,
    SEED,
    WEIGHTS,
    Regression,
    Rows,
    run_all,
    table,
    worker_context,
)
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import Trainer, TrainingArguments, default_data_collator

from flowdata import FlowShards
from flowdata.frameworks.lightning import FlowCallback
from flowdata.frameworks.trainer import FlowCallback as NamingCallback
from flowdata.reweight import reweight

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
SIZES, STREAM = (1, 9, 3), {"epoch_size": 16, "seed": SEED, "window": 5, "shards_open": 2}
STREAM["batch_size"] = 2


def item(sample):
    """The row that a sample stands for."""
    shard, place = map(int, sample["txt"].decode().split("/"))
    row, (features, targets) = sum(SIZES[:shard]) + place, table()
    found = {"row": row, "x": features[row], "labels": targets[row]}
    return found | {name: sample[name] for name in ("__weight__",) if name in sample}


def bare(samples):
    """Samples without the key, which WebDataset puts into what `item` returns."""
    for sample in samples:
        yield {name: part for name, part in sample.items() if name != "__key__"}


def run(
    framework,
    log,
    folder,
    shards=None,
    losses=None,
    weighted=False,
    alone=False,
    send=False,
    **lives,
):
    """Train on two epochs of batches of two, which the model logs.

    lives: for Lightning, the step to save and stop at, the one to resume from, workers.
    alone: every rank is to read the whole stream, and the framework to divide it.
    send: rank 0 is to read the stream, and to send batches to the others.
    """
    data, collate = Rows(), None
    if shards is not None:
        mode = {"mode": "reweight" if weighted else "resample"}
        place = {"num_replicas": 1, "rank": 0} if alone else {}
        data = FlowShards(shards, losses, **STREAM, **mode, **place).map(item).compose(bare)
    if weighted:
        weights = None if shards else WEIGHTS
        options = {} if shards else {"normalize": None}
        data, collate = reweight(data, weights, target="labels", **options)
    prepared = shards is None or alone
    if lives:
        return lit(Regression(log), data, collate, folder, prepared, send, **lives)
    train = {"accelerate": accelerated, "trainer": trained, "lightning": lit}[framework]
    return train(Regression(log), data, collate, folder, prepared, send)


def accelerated(model, data, collate, folder, prepared, send):
    config = DataLoaderConfiguration(dispatch_batches=send, non_blocking=False)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    loader = DataLoader(data, 2, collate_fn=collate)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model, optimizer = accelerator.prepare(model, optimizer)
    if prepared:
        loader = accelerator.prepare(loader)
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()


def trained(model, data, collate, folder, prepared, send):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    arguments = TrainingArguments(
        folder,
        use_cpu=True,
        num_train_epochs=2,
        per_device_train_batch_size=2,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        max_grad_norm=0.0,
        accelerator_config={"dispatch_batches": send},
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    Trainer(
        model,
        arguments,
        train_dataset=data,
        data_collator=collate or default_data_collator,
        optimizers=(optimizer, schedule),
        # The epochs of a stream are named, as those of a data set.
        callbacks=[NamingCallback()] if isinstance(data, FlowShards) else [],
    ).train()


class Module(lightning.LightningModule):
    def __init__(self, model, loader):
        super().__init__()
        self.model, self.loader = model, loader

    def train_dataloader(self):
        return self.loader

    def training_step(self, batch, _):
        return self.model(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Stop(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == self.step


def lit(
    model, data, collate, folder, prepared, send, save=None, resume=None, workers=0, saves="none"
):
    """saves: "loader" for a loader that has a state of its own."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    kind = StatefulDataLoader if saves == "loader" else DataLoader
    context = worker_context() if workers else None
    options = {"num_workers": workers, "multiprocessing_context": context}
    callbacks = [FlowCallback()] if save or resume else []
    if save:
        saving = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=save)
        callbacks += [saving, Stop(save + 1)]
    lightning.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=bool(save),
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(
        Module(model, kind(data, 2, collate_fn=collate, **options)),
        ckpt_path=f"{folder}/step={resume}.ckpt" if resume else None,
    )


if __name__ == "__main__":
    run_all(run)
