"""Ranks of which one fails, while its process lives on and tries the next thing.

Arguments: rank, number of ranks, port of the store, folder, names of scenarios. Each rank writes
what came of each into ``<folder>/<rank>.jsonl``: scenario, error and its text, losses.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import flowdata
from flowdata.scoring.parts import folder as parts
from flowdata.scoring.passes import rank_watch, ranks

ROWS = 60


class Numbers:
    """Rows that tell their number; the data fails at a row, if it is told to."""

    def __init__(self, fails_at=None, rows=ROWS):
        self.fails_at = fails_at
        self.rows = rows

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        if row >= 2 and row == self.fails_at:
            raise RuntimeError("shelf 7 is empty\nand this is a second line")
        return torch.tensor([float(row)]), torch.tensor([0.0])


class Model(nn.Module):
    """Raises an error at a row, waits where it is told to."""

    def __init__(self, error=None, fails_at=0, pause=0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.error = error
        self.fails_at = fails_at
        self.pause = pause

    def forward(self, x):
        time.sleep(self.pause)
        if self.error is not None and x.max() >= self.fails_at:
            raise self.error
        return x * self.weight


def squared(model, batch):
    return model(batch[0]).square()[:, 0]


def out_of_memory():
    return MemoryError("no room for 3 GiB")


def scenario(name, rank):
    """Model, data, options and what is patched for the rank that fails: the last letter."""
    kind, _, failing = name.partition(" on ")
    here = str(rank) == failing
    options = {"rank_timeout": 120.0}
    model, data, broken = Model(), Numbers(), None
    match kind:
        case "at once" if here:
            model = Model(out_of_memory())
        case "in the middle" if here:
            model = Model(out_of_memory(), fails_at=30)
        case "at the last batch" if here:
            model = Model(out_of_memory(), fails_at=ROWS - 4)
        case "interrupted" if here:
            model = Model(KeyboardInterrupt(), fails_at=30)
        case "exiting" if here:
            model = Model(SystemExit(3), fails_at=30)
        case "data" if here:
            data = Numbers(fails_at=30 + rank)
        case "no data" if here:
            data = Numbers(rows=0)
        case "disk full" if here:
            broken = "write_part"
        case "getting stuck":
            options = {"rank_timeout": 3.0}
            model = Model(pause=6.0 if here else 0.02)
        case "not coming":
            options = {"rank_timeout": 3.0}
            if here:
                time.sleep(5)
        case "interrupted before an exchange":
            options = {"rank_timeout": 4.0}
            ranks.SILENCE = 4.0
            if here:
                broken = "exchange"
        case "killed":
            rank_watch.SILENCE = 4.0
            if here:
                model = Kills()
    return model, data, options, broken


class Kills(Model):
    """Ends its process without a word."""

    def forward(self, x):
        os.kill(os.getpid(), 9)


def no_space(*arguments):
    raise OSError(28, "No space left on device")


def interrupt(self):
    raise KeyboardInterrupt


def score(name, rank, output):
    model, data, options, broken = scenario(name, rank)
    kept = parts.write_part, ranks.Ranks._group  # noqa: SLF001
    if broken == "write_part":
        parts.write_part = no_space
    elif broken == "exchange":
        ranks.Ranks._group = interrupt  # noqa: SLF001
    try:
        return flowdata.score(
            model,
            data,
            squared,
            output=output,
            batch_size=4,
            save_every=0.0,
            progress=False,
            **options,
        )
    finally:
        parts.write_part, ranks.Ranks._group = kept  # noqa: SLF001


def main():
    rank, size, port = map(int, sys.argv[1:4])
    folder = Path(sys.argv[4])
    # A rank that holds the store, as under mpirun; or nobody does who can fail.
    store = dist.TCPStore("127.0.0.1", abs(port), size, port < 0 and rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    with (folder / f"{rank}.jsonl").open("a") as log:
        for number, name in enumerate(sys.argv[5:]):
            output = folder / f"{number}.parquet" if number % 2 else None
            if name.startswith("disk full"):
                output = folder / f"{number}.parquet"
            started, error, losses = time.monotonic(), None, None
            try:
                losses = score(name, rank, output).losses.tolist()
            except BaseException as found:
                error = found
            entry = [name, type(error).__name__, str(error), losses, time.monotonic() - started]
            print(json.dumps(entry), file=log, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
