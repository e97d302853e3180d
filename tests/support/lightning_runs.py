"""Small trainings under Lightning in this process, and the rows that each epoch was trained on."""

import logging

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from flowdata import EpochPlan, FlowSampler
from flowdata.frameworks.lightning import FlowCallback

for library in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(library).setLevel(logging.ERROR)

ROWS, BATCH = 22, 4
BATCHES = -(-ROWS // BATCH)
WEIGHTS = np.arange(1, ROWS + 1.0)
DATA = TensorDataset(torch.arange(ROWS))


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=5).at_epoch(epoch)[:].tolist()


def sampler(seed=5):
    return FlowSampler(WEIGHTS, seed=seed)


def plain_loader(batch_size=BATCH, **options):
    return DataLoader(DATA, batch_size=batch_size, sampler=sampler(), **options)


class Reading(lightning.LightningModule):
    """Notes the rows of each batch; of several loaders those of each."""

    def __init__(self, make_loader=plain_loader):
        super().__init__()
        self.layer, self.lr, self.batch_size = torch.nn.Linear(1, 1), 0.1, BATCH
        self.make_loader, self.batches = make_loader, []

    def train_dataloader(self):
        return self.make_loader()

    def training_step(self, batch, batch_idx):
        parts = batch if isinstance(batch, dict) else {"": batch}
        rows = {name: part[0].tolist() for name, part in parts.items() if part is not None}
        self.batches.append((self.trainer.current_epoch, rows))
        return self.layer(torch.ones(1)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def epochs(self, name=""):
        """Rows of each epoch."""
        drawn = {}
        for epoch, rows in self.batches:
            drawn.setdefault(epoch, []).extend(rows.get(name, []))
        return drawn


def make_trainer(*callbacks, max_epochs=2, **options):
    settings = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=list(callbacks),
        **settings | options,
    )


def fit(*callbacks, module=None, ckpt_path=None, loader=None, **options):
    """The module that was trained."""
    module = Reading() if module is None else module
    callbacks = callbacks or (FlowCallback(),)
    make_trainer(*callbacks, **options).fit(module, loader, ckpt_path=ckpt_path, weights_only=False)
    return module
