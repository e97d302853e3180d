"""What runs in workers of Ray: a model, data and losses that tell what is scored, and that die.

Workers import this by name: it needs no more than they do.
"""

import os
import signal
import time

import numpy as np
import torch
from torch import nn

import flowdata

ROWS = 300


class Numbers:
    """Samples that tell their number."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        sample = torch.from_numpy(np.random.default_rng(row).standard_normal(9)).float()
        sample[0] = row
        return sample


def make_linear():
    torch.manual_seed(0)
    return nn.Linear(8, 3)


def fails_to_load():
    raise RuntimeError("no such weights")


def another_each_time():
    torch.manual_seed(time.monotonic_ns() % (1 << 31))
    return nn.Linear(8, 3)


class LoggedLoss:
    """Logs the rows that it scores; the first time that it meets one of some rows it dies."""

    __name__ = "logged_loss"

    def __init__(self, folder, kills=()):
        self.folder, self.kills = folder, kills

    def __call__(self, model, batch):
        rows = batch[:, 0].int().tolist()
        for row in {*self.kills} & {*rows}:
            if not (self.folder / f"killed-{row}").exists():
                (self.folder / f"killed-{row}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        with (self.folder / "scored").open("a") as file:
            file.write("".join(f"{row}\n" for row in rows))
        return model(batch[:, 1:]).square().sum(1)


def invalid_at_77(model, batch):
    return torch.where(batch[:, 0] == 77, torch.nan, batch[:, 1] ** 2)


def of_no_shape(model, batch):
    return batch.sum()


def waits(model, batch):
    time.sleep(2)
    return batch[:, 1] ** 2


def dies(model, batch):
    os.kill(os.getpid(), signal.SIGKILL)


class Sums(nn.Module):
    """A causal model: sums of embeddings so far."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(97, 16)
        self.out = nn.Linear(16, 97)

    def forward(self, ids):
        return self.out(torch.tanh(self.embed(ids)).cumsum(dim=1))


class KilledOnce(flowdata.BatchScorer):
    """Dies of the first batch that has a row, after it was scored."""

    def __init__(self, folder, at, *given, **options):
        super().__init__(*given, **options)
        self.folder, self.at = folder, at

    def __call__(self, batch):
        scored = super().__call__(batch)
        if self.at in batch["id"] and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return scored


def open_model(name):
    """What a guide has a model opened by."""
    assert name == "model"
    return Sums()
