"""Run by torchrun: DDP over torchdata's StatefulDataLoader, which saves and loads all of the state.

usage: frameworks_stateful.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from frameworks_common import (
    RATE,
    SEED,
    WEIGHTS,
    Regression,
    kill_this_process,
    run_all,
    source,
    worker_context,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import DistributedFlowSampler, FlowDataset
from flowdata.reweight import reweight


def run(log, saved, door="rank sampler", draws=24, epochs=3, kill=None, workers=0, alpha=1.0):
    """The model logs what it was trained on; model and loader are saved after each step.

    alpha: draw by weights to this power, and have the losses make up for the rest.
    """
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    given, data = {"seed": SEED, "epoch_size": draws, "alpha": alpha}, source("plain")
    options = {"num_workers": workers}
    if alpha < 1:
        data, options["collate_fn"] = reweight(data, WEIGHTS, target="labels", alpha=alpha)
    if door == "dataset":
        data = FlowDataset(data, WEIGHTS, **given)
        sampler = DistributedSampler(data)
    else:
        sampler = DistributedFlowSampler(WEIGHTS, **given)
    options["multiprocessing_context"] = worker_context() if workers else None
    loader = StatefulDataLoader(data, 4, sampler=sampler, **options)
    model = Regression(log)
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=RATE)
    first, step, path = 0, 0, Path(f"{saved}.{dist.get_rank()}")
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        loader.load_state_dict(state["loader"])
        first, step = state["epoch"], state["step"]
    for epoch in range(first, epochs):
        for told in {sampler, data} if door == "dataset" else {sampler}:
            told.set_epoch(epoch)
        for batch in loader:
            loss = ddp(**batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            # After the last batch of an epoch, the state is of that epoch with nothing left.
            if step == kill:
                state = {"model": model.state_dict(), "loader": loader.state_dict()}
                torch.save(state | {"epoch": epoch, "step": step}, path)
                dist.barrier()
                kill_this_process()
    return {}


if __name__ == "__main__":
    run_all(run)
