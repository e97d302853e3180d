"""Scores rows that tell their number, and logs each row whose loss is computed.

The argument is a JSON object: kind ("function" or "language"), rows, output (or null), log,
result, pause (seconds a row), seed of the model, ddp, silent (a row without response tokens),
on_invalid, known (tables of known rows, of each rank), shard.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from leaving import leave_together
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flowdata

CONFIG = json.loads(sys.argv[1])
VOCABULARY = 1000


def log(rows):
    handle = os.open(CONFIG["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, "".join(f"{int(row)}\n" for row in rows).encode())
    os.close(handle)
    time.sleep(CONFIG.get("pause", 0.0) * len(rows))


class Numbers:
    def __len__(self):
        return CONFIG["rows"]

    def __getitem__(self, row):
        sample = torch.zeros(CONFIG.get("width", 2))
        sample[0], sample[1] = row, row * 37 % 101 / 10
        return sample


class Sentences:
    """The first token is the row number."""

    def __len__(self):
        return CONFIG["rows"]

    def __getitem__(self, row):
        ids = np.random.default_rng(row).integers(0, VOCABULARY, size=2 + row % 9)
        ids[0] = row
        prompt = ids.size if row == CONFIG.get("silent") else 1
        return {"input_ids": ids, "labels": np.where(np.arange(ids.size) < prompt, -100, ids)}


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.out = nn.Linear(8, VOCABULARY)
        self.calls = 0

    def forward(self, ids):
        self.calls += 1
        # Whether it is causal, and always alike, is tried first, by calls that score nothing.
        if self.calls > 2 + 3:
            log(ids[:, 0].tolist())
        return self.out(self.embed(ids).cumsum(dim=1))


def squared(model, batch):
    log(batch[:, 0].tolist())
    return model(batch[:, 1:2]).square()[:, 0]


def main():
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(CONFIG.get("seed", 0))
    language = CONFIG["kind"] == "language"
    model = Language() if language else nn.Linear(1, 1)
    if CONFIG.get("ddp"):
        model = DistributedDataParallel(model)
    options = flowdata.CausalLM(token_losses=True, max_tokens=40) if language else squared
    table = flowdata.score(
        model,
        Sentences() if language else Numbers(),
        options,
        output=CONFIG["output"],
        shard=CONFIG.get("shard"),
        known=CONFIG.get("known", {}).get(os.environ.get("RANK", "0")),
        batch_size=CONFIG.get("batch_size", 4),
        save_every=CONFIG.get("save_every", 0.05),
        on_invalid=CONFIG.get("on_invalid", "raise"),
        progress=False,
    )
    rank = int(os.environ.get("RANK", "0"))
    tokens = None if table.token_losses is None else table.token_losses.tolist()
    lengths = None if table.lengths is None else table.lengths.tolist()
    result = [table.losses.tolist(), tokens, lengths]
    Path(f"{CONFIG['result']}.{rank}").write_text(json.dumps(result))
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"peak {peak.split()[1]}")
    leave_together()


if __name__ == "__main__":
    main()
