"""Run by torchrun: a DDP training over FlowShards.

usage: shard_training.py CONFIG.json, which holds {urls, table, stream, batch_size, workers, epochs,
out} and may hold the digits of dropped samples, the last ones of their names; the outcome has for
each epoch a list over ranks of the names each drew.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import webdataset as wds
from leaving import leave_together
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from flowdata import FlowShards


def name_and_number(sample, dropped):
    name = sample["txt"].decode()
    if name[-1] in dropped:
        raise ValueError(name)
    return name, torch.tensor([float(len(sample["bin"]))])


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-12)
    stream = FlowShards(config["urls"], config["table"], **config["stream"]).map(
        partial(name_and_number, dropped=config.get("dropped", "")), handler=wds.ignore_and_continue
    )
    loader = DataLoader(
        stream,
        batch_size=config["batch_size"],
        num_workers=config["workers"],
        persistent_workers=config["workers"] > 0,
    )
    drawn = []
    for _ in range(config["epochs"]):
        names = []
        for batch_names, numbers in loader:
            # Every step waits for all ranks.
            loss = model(numbers).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            names += batch_names
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, names)
        drawn.append(gathered)
    if dist.get_rank() == 0:
        Path(config["out"]).write_text(json.dumps(drawn))
    leave_together()


if __name__ == "__main__":
    main()
