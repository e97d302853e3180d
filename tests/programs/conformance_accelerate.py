"""Run by torchrun: what accelerate's test_distributed_data_loop.py does, with a FlowDataset.

usage: conformance_accelerate.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import pickle
import tempfile
import warnings

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from frameworks_common import run_all, worker_context
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    TensorDataset,
    default_collate,
)

from flowdata import FlowDataset, FlowDataWarning

ELEMENTS, BATCH = 22, 4


class Indexed(Dataset):
    """Takes lists of rows too, and tells the row of each item."""

    def __len__(self):
        return ELEMENTS

    def __getitem__(self, index):
        if isinstance(index, int):
            return {"index": index, "label": index % 2}
        return [self[row] for row in index]


def make(accelerator, rows, batch_size, weights=None):
    data = TensorDataset(torch.arange(rows))
    items = FlowDataset(data, np.ones(rows) if weights is None else weights(rows), seed=1)
    return accelerator.prepare(DataLoader(items, batch_size=batch_size))


def batch_sizes(even, rows, batch_size):
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(even_batches=even))
    loader = make(accelerator, rows, batch_size)
    loader.set_epoch(0)
    return [len(batch[0]) for batch in loader]


def pickled():
    accelerator = Accelerator()
    loader = accelerator.prepare(make(accelerator, 32, 4))
    loader.dataset.set_epoch(2)
    again = pickle.loads(pickle.dumps(accelerator))
    same_state = vars(again.state) == vars(accelerator.state)
    return same_state, pickle.loads(pickle.dumps(loader.dataset)).epoch


def iterated(kind):
    """The rows of one epoch over all ranks, with a loader of this kind."""
    accelerator = Accelerator()
    items = FlowDataset(Indexed(), np.ones(ELEMENTS), seed=1)
    options = {"num_workers": 2, "multiprocessing_context": worker_context()}
    batches = BatchSampler(RandomSampler(items), BATCH, drop_last=False)
    if kind == "batch_sampler":
        options |= {"batch_sampler": batches}
    elif kind == "sampler of batches":
        options |= {"sampler": batches, "batch_size": None, "collate_fn": default_collate}
    else:
        options |= {"batch_size": BATCH, "shuffle": kind == "shuffled"}
    torch.manual_seed(accelerator.process_index)
    loader = accelerator.prepare(DataLoader(items, **options))
    items.set_epoch(0)
    rows = []
    for batch in loader:
        index, _ = accelerator.gather_for_metrics((batch["index"], batch["label"]))
        rows.extend(index.tolist())
    return sorted(set(rows))


def resumed(by):
    """What was left in a pass when its state was taken, and what a loader draws from the state."""
    stateful = DataLoaderConfiguration(use_stateful_dataloader=True)
    accelerator = Accelerator(dataloader_config=stateful)
    loader = make(accelerator, 64, 4, weights=lambda rows: np.linspace(1, 3, rows))
    loader.set_epoch(0)
    left = []
    with tempfile.TemporaryDirectory() as folder:
        for step, (rows,) in enumerate(loader):
            if step == 2:
                if by == "loader":
                    state = loader.state_dict()
                else:
                    accelerator.save_state(folder)
            elif step > 2:
                left.append(rows.tolist())
        if by == "loader":
            loader.load_state_dict(state)
        else:
            accelerator.load_state(folder)
        loader.set_epoch(0)
        return left, [rows.tolist() for (rows,) in loader]


def run(what, **options):
    """The outcome of one of the functions above, and warnings of ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        found = globals()[what](**options)
    texts = [str(it.message) for it in caught if issubclass(it.category, FlowDataWarning)]
    return {"found": found, "warnings": texts}


if __name__ == "__main__":
    run_all(run)
