"""Run by torchrun: rank 0 writes to a file what each rank drew, epoch by epoch.

usage: distributed_draws.py CONFIG.json, which holds {epochs, out, runs: {name: options of the
sampler}}; the outcome has for each run a list over ranks.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from leaving import leave_together
from torch.utils.data import DataLoader

from flowdata import DistributedFlowSampler


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    outcomes = {}
    for name, options in config["runs"].items():
        sampler = DistributedFlowSampler(**options)
        loader = DataLoader(range(len(options["weights"])), batch_size=4, sampler=sampler)
        epochs = []
        for epoch in range(config["epochs"]):
            sampler.set_epoch(epoch)
            epochs.append(torch.cat(list(loader)).tolist())
        mine = {
            "rank": sampler.rank,
            "num_replicas": sampler.num_replicas,
            "total_size": sampler.total_size,
            "len": len(sampler),
            "epochs": epochs,
        }
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
        outcomes[name] = gathered
    if dist.get_rank() == 0:
        Path(config["out"]).write_text(json.dumps(outcomes))
    leave_together()


if __name__ == "__main__":
    main()
