"""Run by torchrun or imported: epochs through a loader that accelerate prepared.

usage: frameworks_accelerate.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import warnings

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from frameworks_common import RATE, SEED, WEIGHTS, Regression, run_all, source, worker_context
from torch.utils.data import DataLoader

from flowdata import DistributedFlowSampler, FlowDataset, FlowDataWarning, FlowSampler


def make_loader(door, draws, batch_size, rows, **options):
    """The loader to be prepared, and what of it has a set_epoch."""
    given = {"seed": SEED, "epoch_size": draws}
    data = source(rows)
    if door == "dataset":
        items = FlowDataset(data, WEIGHTS, **given)
        return DataLoader(items, batch_size, **options), items
    kind = DistributedFlowSampler if door == "rank sampler" else FlowSampler
    sampler = kind(WEIGHTS, **given)
    return DataLoader(data, batch_size, sampler=sampler, **options), sampler


def run(
    door="sampler",
    draws=24,
    batch_size=4,
    epochs=(0, 1),
    rows="plain",
    name_epochs=True,
    config=None,
    skip=0,
    resume=None,
    stop=None,
    leave=None,
    only=None,
    **options,
):
    """Rows and losses by batch, epoch by epoch, with errors and warnings of ours.

    skip: batches of the first epoch that skip_first_batches leaves out.
    stop: batches of the last epoch after which the run ends and the loader's state is returned.
    leave: batches of each epoch after which the loop leaves it.
    only: "warn" for no training, which would hang where ranks have other numbers of batches.
    resume: a state of the sampler, or with "loader" one of the loader, to start from.
    """
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(
            **{"non_blocking": False} | (config or {}),
        ),
    )
    if options.get("num_workers"):
        options["multiprocessing_context"] = worker_context()
    outcome = {"epochs": [], "losses": [], "error": None, "warnings": [], "state": None}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        loader, told = make_loader(door, draws, batch_size, rows, **options)
        model = Regression()
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        if resume is not None:
            if "loader" in resume:
                loader.load_state_dict(resume["loader"][accelerator.process_index])
            else:
                told.load_state_dict(told.state_dict() | resume)
        try:
            for epoch in epochs:
                active = loader
                if skip and epoch == epochs[0]:
                    active = skip_first_batches(loader, skip)
                if name_epochs:
                    loader.set_epoch(epoch)
                    active.set_epoch(epoch)
                model.batches, model.losses = [], []
                for batch in active:
                    if only == "warn":
                        continue
                    loss = trained(**batch)["loss"]
                    optimizer.zero_grad()
                    accelerator.backward(loss)
                    optimizer.step()
                    if epoch == epochs[-1] and len(model.batches) == stop:
                        outcome["state"] = loader.state_dict()
                        break
                    if len(model.batches) == leave:
                        break
                outcome["epochs"].append(model.batches)
                outcome["losses"] += model.losses
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
