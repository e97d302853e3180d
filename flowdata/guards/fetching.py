"""Which pass of a DataLoader reads an item, and what stands between the two.

Read off the call stack and, in a worker process, off what torch says about it. Where torch has
renamed what is looked for, a pass is not told from another: see `UNSEEN`.
"""

import contextlib
import multiprocessing
import sys
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Fetch:
    """A batch that a pass of a DataLoader reads.

    Attributes:
        reader: the fetcher, which a pass has one of in each of its processes.
        index: what the sampler gave for the batch: a list of items, as a rule.
    """

    reader: Any
    index: Any

    @property
    def items(self) -> int:
        """Items of the loader's data set in the batch."""
        return len(self.index) if hasattr(self.index, "__len__") else 1

    def batches_of(self, items: int) -> int | None:
        """Batches of this size in a pass over so many items; None if the data set has others."""
        with contextlib.suppress(Exception):
            if len(self.reader.dataset) == items and self.items:
                whole = items // self.items
                return max(whole if self.reader.drop_last else -(-items // self.items), 1)
        return None


def find_fetch() -> Fetch | object | None:
    """The batch that is being read; None if nobody but a person looks; or `UNSEEN`.

    This is no advice, so it does not depend on the switch.
    """
    # Where a loader fetches, its frame is among the innermost; the outer ones are not walked.
    seen = False
    for module, function, frame in frames():
        seen = True
        if module == _FETCHERS and function in _FETCHES:
            with contextlib.suppress(KeyError):
                return Fetch(frame.f_locals["self"], frame.f_locals["possibly_batched_index"])
            return UNSEEN
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


@dataclass(frozen=True)
class SamplerCall:
    """What a sampler of torch asks while it gives the indices of a pass.

    Attributes:
        sampler: the innermost one.
        place: a number that grows during a pass.
        in_step: whether its loader reads what it gives at once, as one without workers does.
    """

    sampler: Any
    place: int
    in_step: bool


def find_sampler() -> SamplerCall | None:
    """The call of a sampler that asks, directly or not; None without."""
    sampler, place, in_step = None, 0, False
    for module, function, frame in frames():
        if not module.startswith(("torch.utils.data.", "torchdata.")):
            continue
        if sampler is None and function.endswith("Sampler.__iter__"):
            sampler, place = frame.f_locals.get("self"), frame.f_lasti
        # torch 2.13, dataloader.py; torchdata 0.11, stateful_dataloader.py.
        in_step |= "SingleProcessDataLoaderIter." in function
    return None if sampler is None else SamplerCall(sampler, place, in_step)


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
