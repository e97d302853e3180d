"""Which pass of a DataLoader reads an item, and what stands between the two.

Read off the call stack and, in a worker process, off what torch says about it. Where torch has
renamed what is looked for, a pass is not told from another: see `UNSEEN`.
"""

import contextlib
import multiprocessing
import sys
from dataclasses import dataclass

from torch.utils.data import get_worker_info

from flowdata.guards.stack import frames

# torch 2.13, torch/utils/data/_utils/fetch.py: the method `fetch` of a fetcher reads a batch, in
# the process of the loop or in a worker. Every pass of a loader has a fetcher of its own in each
# of these processes, with persistent workers too (`_worker_loop`, `_ResumeIteration`).
_FETCHERS = "torch.utils.data._utils.fetch"
_NAMES = ("_MapDatasetFetcher", "_IterableDatasetFetcher")
_FETCHES = frozenset(f"{name}.fetch" for name in _NAMES)
# torch 2.13, torch/utils/data/dataset.py.
_DATASETS = "torch.utils.data.dataset"

UNSEEN = object()
"""In place of a reader that cannot be looked for."""


def find_reader() -> object | None:
    """The fetcher by which a pass of a DataLoader reads; None if nobody but a person looks.

    This is no advice, so it does not depend on the switch.
    """
    # Where a loader fetches, its frame is among the innermost; the outer ones are not walked.
    seen = False
    for module, function, frame in frames():
        seen = True
        if module == _FETCHERS and function in _FETCHES:
            reader: object = frame.f_locals.get("self", UNSEEN)
            return reader
    return None if seen and _can_look() else UNSEEN


def part_of_draws() -> int | None:
    """How many draws a Subset (also one of `random_split`) that reads them has; None without."""
    part: int | None = None
    for module, function, frame in frames():
        if module == _DATASETS and function.startswith("Subset.__getitem"):
            with contextlib.suppress(Exception):
                size = len(frame.f_locals["self"].indices)
                part = size if part is None else min(part, size)
    return part


def sampler_place() -> int | None:
    """A number that grows while a sampler of torch gives the indices of one pass."""
    for module, function, frame in frames():
        if module.startswith("torch.utils.data.") and function.endswith("Sampler.__iter__"):
            return frame.f_lasti
    return None


@dataclass(frozen=True)
class WorkerPool:
    """The workers of one DataLoader, which make one pass after the other.

    Attributes:
        seed: that of the loader's workers; equal where somebody seeds torch before every pass.
        process: number of the first of these processes, among all that their parent started. It
            may come out a few higher, if other processes were started in between.
        workers: how many there are.
    """

    seed: int
    process: int
    workers: int


def worker_pool() -> WorkerPool | None:
    """The pool of this worker process; None in the process of the loop."""
    info = get_worker_info()
    if info is None:
        return None
    # "ForkProcess-12", or "SpawnProcess-3:12" for a child of a child.
    number = multiprocessing.current_process().name.rpartition("-")[2].rpartition(":")[2]
    process = int(number) - info.id if number.isdigit() else 0
    return WorkerPool(info.seed - info.id, process, info.num_workers)


def _can_look() -> bool:
    with contextlib.suppress(Exception):
        return all(hasattr(sys.modules[_FETCHERS], name) for name in _NAMES)
    return False
