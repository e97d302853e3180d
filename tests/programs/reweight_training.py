"""Run by torchrun: a DDP training over a reweighting loader.

usage: reweight_training.py CONFIG.json, which holds {features, targets, weights, lr, batch_size,
epochs, out}; the outcome has the final parameters.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from leaving import leave_together
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from flowdata.reweight import reweight


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    features = torch.tensor(config["features"], dtype=torch.float64)
    data = TensorDataset(features, torch.tensor(config["targets"]))
    weighed, collate = reweight(data, config["weights"], normalize=None)
    sampler = DistributedSampler(weighed, shuffle=False)
    loader = DataLoader(
        weighed, batch_size=config["batch_size"], sampler=sampler, collate_fn=collate
    )
    torch.manual_seed(0)
    model = DistributedDataParallel(torch.nn.Linear(features.shape[1], 3).double())
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    for _ in range(config["epochs"]):
        for inputs, targets in loader:
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if dist.get_rank() == 0:
        parameters = [parameter.tolist() for parameter in model.parameters()]
        Path(config["out"]).write_text(json.dumps(parameters))
    leave_together()


if __name__ == "__main__":
    main()
