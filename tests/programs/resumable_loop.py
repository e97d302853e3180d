"""Trains on three epochs of draws, resumes what it saved before, and may kill itself.

usage: resumable_loop.py FILE WORKERS never|STEP:before_saving|STEP:while_saving|STEP:after_saving

FILE holds the batches trained on and the sampler's state, replaced as one after each step.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from flowdata import FlowSampler

EPOCHS, BATCH_SIZE = 3, 4


def main():
    path, workers, death = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    steps = 0

    def die_if(moment):
        if f"{steps}:{moment}" == death:
            os.kill(os.getpid(), signal.SIGKILL)

    sampler = FlowSampler(np.random.default_rng(1).random(13), epoch_size=50, seed=11)
    trained = []
    if path.exists():
        saved = json.loads(path.read_text())
        trained = saved["trained"]
        sampler.load_state_dict(saved["state"])
    loader = DataLoader(range(13), BATCH_SIZE, sampler=sampler, num_workers=workers)
    for epoch in range(sampler.epoch, EPOCHS):
        sampler.set_epoch(epoch)
        position = sampler.state_dict()["position"]
        for batch in loader:
            steps += 1
            trained.append(batch.tolist())
            position += len(batch)
            die_if("before_saving")
            state = sampler.state_dict(position=position)
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps({"trained": trained, "state": state}))
            die_if("while_saving")
            unfinished.replace(path)
            die_if("after_saving")


if __name__ == "__main__":
    main()
