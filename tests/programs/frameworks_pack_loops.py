"""Run by torchrun or imported: loops of accelerate, Lightning and one's own on packs.

usage: frameworks_pack_loops.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import json
import logging
import os
import warnings
from pathlib import Path

import lightning
import torch
import torch.distributed as dist
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from frameworks_common import SEED, WEIGHTS, run_all
from frameworks_language import LEARNING_RATE, make_model, make_tokenizer
from frameworks_lightning import Stop
from frameworks_packs import DRAWS, MOST, TOGETHER, lengths, log_rows, tokenized
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from flowdata import FlowDataWarning, FlowPacks, FlowPackSampler, PackCollator, pack_rows
from flowdata.frameworks.contamination import require_separate
from flowdata.frameworks.lightning import FlowCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

EPOCHS = 2
GIVEN = {"batch_size": TOGETHER, "seed": SEED, "epoch_size": DRAWS}
RANKS, RANK = (int(os.environ.get(name, "0")) for name in ("WORLD_SIZE", "RANK"))
RANKS = RANKS or 1


def packs():
    return FlowPacks(tokenized(), WEIGHTS, lengths(), MOST, **GIVEN)


def pack_sampler(**ranks):
    return FlowPackSampler(WEIGHTS, lengths(), MOST, **GIVEN, **ranks)


def loader_of(data, sampler=None):
    if sampler is not None:
        return DataLoader(data, batch_sampler=sampler, collate_fn=pack_rows)
    return DataLoader(data, TOGETHER // RANKS, collate_fn=PackCollator())


def train(model, batches, epoch, saved, stop):
    """Train; where the run is to stop, say after how many batches of the epoch, and end."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    done = saved.get("batches", 0) if saved.get("epoch") == epoch else 0
    for batch in batches:
        model(**batch, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        done += 1
        if stop is not None and [epoch, done] == list(stop[:2]):
            return done
    return 0


def plain(model, folder, stop, saved):
    """A loop of one's own, each rank of which has its sampler."""
    if RANKS > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    sampler = pack_sampler(num_replicas=RANKS, rank=RANK)
    if saved:
        sampler.load_state_dict(saved["sampler"])
    trained = torch.nn.parallel.DistributedDataParallel(model) if RANKS > 1 else model
    loader = loader_of(tokenized(), sampler)
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        if done := train(trained, loader, epoch, saved, stop):
            state = sampler.state_dict(position=done * RANKS)
            return {"epoch": epoch, "batches": done, "sampler": state}
    return {}


def accelerated(model, folder, stop, saved, *, by_sampler):
    """A loop over what accelerate has prepared."""
    config = DataLoaderConfiguration(non_blocking=False)
    accelerator = Accelerator(cpu=True, dataloader_config=config)
    sampler = pack_sampler() if by_sampler else None
    items = tokenized() if by_sampler else packs()
    trained, loader = accelerator.prepare(model, loader_of(items, sampler))
    if saved and by_sampler:
        sampler.load_state_dict(saved["sampler"])
    for epoch in range(saved.get("epoch", 0), EPOCHS):
        active = loader
        if saved.get("epoch") == epoch and not by_sampler:
            active = skip_first_batches(loader, saved["batches"])
        loader.set_epoch(epoch)
        active.set_epoch(epoch)
        if done := train(trained, active, epoch, saved, stop):
            state = sampler.state_dict(position=done * RANKS) if by_sampler else None
            return {"epoch": epoch, "batches": done, "sampler": state}
    return {}


class Module(lightning.LightningModule):
    def __init__(self, model, by_sampler):
        super().__init__()
        self.model, self.by_sampler = model, by_sampler

    def train_dataloader(self):
        if self.by_sampler:
            ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
            return loader_of(tokenized(), pack_sampler(**ranks))
        return loader_of(packs())

    def training_step(self, batch, _):
        return self.model(**batch, use_cache=False).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def lightened(model, folder, stop, saved, *, by_sampler):
    """Lightning's Trainer; where it stops is told in batches of all epochs."""
    steps = None if stop is None else stop[0] * stop[2] + stop[1]
    saving = [ModelCheckpoint(folder, "last", every_n_train_steps=steps)] if steps else []
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp" if RANKS > 1 else "auto",
        max_epochs=EPOCHS,
        use_distributed_sampler=not by_sampler,
        callbacks=[*saving, FlowCallback(), Stop(steps, None)],
        enable_checkpointing=bool(saving),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(Module(model, by_sampler), ckpt_path=f"{folder}/last.ckpt" if saved else None)
    return {"epoch": stop[0]} if stop else {}


LOOPS = {
    "plain": (plain, {}),
    "accelerate": (accelerated, {"by_sampler": False}),
    "accelerate, batch sampler": (accelerated, {"by_sampler": True}),
    "Lightning": (lightened, {"by_sampler": False}),
    "Lightning, batch sampler": (lightened, {"by_sampler": True}),
}


def run(loop, folder, log, stop=None, resume=False):
    """Errors and warnings of ours; the model logs what it was trained on.

    stop: (epoch, batches of it, batches of an epoch) where the run ends.
    """
    outcome, state = {"error": None, "warnings": []}, Path(folder) / f"state.{RANK}.json"
    Path(folder).mkdir(parents=True, exist_ok=True)
    saved = json.loads(state.read_text()) if resume else {}
    model = make_model(len(make_tokenizer()))
    log_rows(model, log)
    function, options = LOOPS[loop]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        try:
            looked = packs()
            looked.set_epoch(0)
            require_separate(model, looked[0], collate=PackCollator(), use_cache=False)
            model.train()
            state.write_text(json.dumps(function(model, folder, stop, saved, **options)))
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
