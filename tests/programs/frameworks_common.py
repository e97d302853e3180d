"""What the framework programs share: rows that tell their number, and a model that logs them."""

import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.distributed as dist
from leaving import leave_together
from torch.utils.data import Dataset

ROWS, SEED, RATE = 13, 5, 0.05
WEIGHTS = np.random.default_rng(8).random(ROWS)


def table():
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(ROWS, 3, generator=generator, dtype=torch.float64)
    return features, features.sin().sum(dim=1, keepdim=True)


class Rows(Dataset):
    """A plain map-style data set."""

    def __init__(self):
        self.features, self.targets = table()

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return {"row": row, "x": self.features[row], "labels": self.targets[row]}


def source(kind):
    if kind == "plain":
        return Rows()
    features, targets = table()
    columns = {"row": range(ROWS), "x": features.numpy(), "labels": targets.numpy()}
    rows = datasets.Dataset.from_dict(columns)
    return rows.with_format("torch", columns=["row", "x", "labels"], dtype=torch.float64)


class Regression(torch.nn.Module):
    """Logs the rows and the loss of each batch it is trained on, to memory and to a file."""

    def __init__(self, log=None):
        super().__init__()
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        self.layers = torch.nn.Sequential(*layers).double()
        self.log, self.batches, self.losses = log, [], []

    def forward(self, row, x, labels):
        loss = torch.nn.functional.mse_loss(self.layers(x), labels)
        if self.training:
            self.batches.append([int(number) for number in row])
            self.losses.append(loss.item())
            if self.log is not None:
                entry = json.dumps({"rows": self.batches[-1], "loss": self.losses[-1]})
                path = f"{self.log}.{os.environ.get('RANK', 0)}"
                handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(handle, f"{entry}\n".encode())
                os.close(handle)
        return {"loss": loss}


def logged(log, ranks):
    """Per rank what models with this log were trained on: rows and losses by batch."""
    paths = [Path(f"{log}.{rank}") for rank in range(ranks)]
    entries = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    return [
        {"rows": [e["rows"] for e in of_rank], "losses": [e["loss"] for e in of_rank]}
        for of_rank in entries
    ]


def plain_loop(steps):
    """Losses of a loop without framework; a step has the rows of each rank."""
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    features, targets = table()
    losses = []
    for by_rank in steps:
        parts = [
            model(rows, features[rows], targets[rows])["loss"]
            for rows in (torch.tensor(rows) for rows in by_rank)
        ]
        optimizer.zero_grad()
        sum(parts).div(len(parts)).backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
    return losses


def worker_context():
    """How loaders start workers: a rank has threads, of gloo, that a plain fork may deadlock on."""
    return "forkserver" if "RANK" in os.environ else None


def kill_this_process():
    """With its loader workers, which would outlive it: they watch the process they came from."""
    assert os.getpgrp() == os.getpid(), "torchrun gives each rank a process group"
    os.killpg(os.getpgrp(), signal.SIGKILL)


def gathered(mine):
    """The outcome of each rank, on every rank."""
    if not dist.is_initialized():
        return [mine]
    outcomes = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine)
    return outcomes


def run_all(run):
    """Do each of the runs that CONFIG.json names; rank 0 writes what each rank brought back."""
    # What loader workers are forked from imports once what they need.
    multiprocessing.set_forkserver_preload([Path(sys.argv[0]).stem])
    # A run that hangs says where, before it is killed.
    faulthandler.dump_traceback_later(60)
    config = json.loads(Path(sys.argv[1]).read_text())
    outcomes = {}
    for name, options in config["runs"].items():
        print(name, flush=True)
        outcomes[name] = gathered(run(**options))
        # Loader workers that are left end here, not when the process does.
        gc.collect()
    if int(os.environ.get("RANK", "0")) == 0:
        Path(config["out"]).write_text(json.dumps(outcomes))
    leave_together()
