"""score_probe on several ranks: writes what each rank has got.

The argument is the path of a JSON object: rows, output, out, fails (a rank whose rows raise), stops
(a rank, and the batches after which its model raises), log (a file that gets a character for each
row that the model has run over), slow (seconds that a row takes).
"""

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from leaving import leave_together
from torch import nn

import flowdata

CONFIG = json.loads(Path(sys.argv[1]).read_text())


class Rows:
    def __len__(self):
        return CONFIG["rows"]

    def __getitem__(self, row):
        if CONFIG.get("fails") == dist.get_rank() and row > CONFIG["rows"] // 2:
            raise ArithmeticError(f"row {row} is bad")
        time.sleep(CONFIG.get("slow", 0))
        generator = torch.Generator().manual_seed(row)
        return torch.randn(6, generator=generator) + row % 3, row % 3


def write_log(_, inputs):
    batches.append(len(inputs[0]))
    if CONFIG.get("stops") == [dist.get_rank(), len(batches) - 1]:
        raise ArithmeticError("it stops here")
    if "log" in CONFIG:
        with Path(CONFIG["log"]).open("a") as log:
            log.write("." * len(inputs[0]))


batches = []
dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
model[0].register_forward_pre_hook(write_log)
table = flowdata.score_probe(
    model,
    Rows(),
    head="2",
    weight_decay=1e-2,
    max_iter=20,
    output=CONFIG["output"],
    batch_size=4,
    save_every=0.0,
    rank_timeout=60,
    progress=False,
)
found = [None] * dist.get_world_size()
dist.all_gather_object(found, [table.losses.tolist(), model[2].weight.tolist()])
if dist.get_rank() == 0:
    Path(CONFIG["out"]).write_text(json.dumps(found))
leave_together()
