"""Run by torchrun: a DDP training over a DistributedFlowSampler that can stop and go on.

usage: ddp_training.py CONFIG.json, which holds {features, targets, sampler, lr, batch_size,
epochs, stop, saved, out}. With "stop" = [epoch, step] the run ends after that step. It starts
from the file "saved" where there is one and leaves its own state there; "out" gets the mean
loss of each global batch and the final parameters.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from leaving import leave_together
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from flowdata import DistributedFlowSampler


def make_model():
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    return torch.nn.Sequential(*layers).double()


def train(model, sampler, config):
    """The mean losses of the global batches trained on."""
    features, targets = (
        torch.tensor(config[name], dtype=torch.float64) for name in ("features", "targets")
    )
    data = TensorDataset(features, targets)
    loader = DataLoader(data, batch_size=config["batch_size"], sampler=sampler)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=config["lr"])
    losses = []
    for epoch in range(sampler.epoch, config["epochs"]):
        sampler.set_epoch(epoch)
        for step, (inputs, expected) in enumerate(loader, start=1):
            loss = torch.nn.functional.mse_loss(ddp(inputs), expected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            summed = loss.detach().clone()
            dist.all_reduce(summed)
            losses.append(summed.item() / dist.get_world_size())
            if [epoch, step] == config["stop"]:
                return losses
    return losses


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    sampler, model = DistributedFlowSampler(**config["sampler"]), make_model()
    saved = Path(config["saved"])
    if saved.exists():
        state = torch.load(saved)
        sampler.load_state_dict(state["sampler"])
        model.load_state_dict(state["model"])
    losses = train(model, sampler, config)
    if dist.get_rank() == 0:
        torch.save({"sampler": sampler.state_dict(), "model": model.state_dict()}, saved)
        parameters = [parameter.tolist() for parameter in model.parameters()]
        outcome = {"losses": losses, "parameters": parameters}
        Path(config["out"]).write_text(json.dumps(outcome))
    leave_together()


if __name__ == "__main__":
    main()
