"""Run by torchrun: Lightning's Fabric on each rank, going on from states that were loaded.

usage: frameworks_fabric.py CONFIG.json, which holds {out}: rank 0 writes there what each rank drew.
"""

import json
import sys
import warnings
from pathlib import Path

import lightning
import numpy as np
from frameworks_common import gathered
from leaving import leave_together
from torch.utils.data import DataLoader

from flowdata import DistributedFlowSampler, FlowDataWarning, FlowSampler

ROWS, BATCH, SEED, EPOCH, POSITION = 24, 4, 3, 2, 8
WEIGHTS = np.arange(1, ROWS + 1.0)


def rows(loader):
    return [int(row) for batch in loader for row in batch]


def main():
    """Passes of a rank sampler after a load, of a wrapped sampler, and what that refuses."""
    warnings.simplefilter("error", FlowDataWarning)
    fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()

    def loader_over(sampler):
        return fabric.setup_dataloaders(DataLoader(range(ROWS), BATCH, sampler=sampler))

    ranked = DistributedFlowSampler(WEIGHTS, seed=SEED)
    loader = loader_over(ranked)
    ranked.load_state_dict(ranked.state_dict(position=POSITION) | {"epoch": EPOCH})
    outcome = {"ranked": [rows(loader) for _ in range(2)]}
    whole = FlowSampler(WEIGHTS, seed=SEED)
    loader = loader_over(whole)
    whole.load_state_dict(whole.state_dict() | {"epoch": EPOCH})
    outcome["wrapped"] = [rows(loader) for _ in range(2)]
    whole.load_state_dict(whole.state_dict(position=POSITION))
    try:
        rows(loader)
    except RuntimeError as error:
        outcome["refused"] = str(error)
    outcomes = gathered(outcome)
    if fabric.global_rank == 0:
        Path(json.loads(Path(sys.argv[1]).read_text())["out"]).write_text(json.dumps(outcomes))
    leave_together()


if __name__ == "__main__":
    main()
