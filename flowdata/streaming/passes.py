"""A pass over a stream: its items, and the draws that are counted for each."""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from flowdata.errors import warn
from flowdata.guards.packs import PacksGuard
from flowdata.streaming.pack_stage import PackStage
from flowdata.streaming.progress import Progress
from flowdata.streaming.sample_reader import SampleReader
from flowdata.streaming.stages import apply_stages
from flowdata.streaming.worker_epoch import WorkerEpoch

# Bytes, somewhat less than those of the largest block that glibc learns from
# (DEFAULT_MMAP_THRESHOLD_MAX in its malloc.c).
_LARGEST_BLOCK = 31 << 20


def items_of_pass(
    progress: Progress,
    reader: SampleReader,
    stages: Sequence[Any],
    packing: PackStage | None,
    batched: tuple[int, int, bool] | None,
) -> Iterator[Any]:
    """The items of the part that this process, a worker or none, has of the next epoch.

    Raises:
        ValueError: for a stage that makes several items of a batch, and for a loader that cannot
            make batches of packs, or would take each for one sample.

    Args:
        progress: which is told of each item that is given out.
        reader: of the samples.
        stages: of the samples, or of packs.
        packing: how packs are made, if they are.
        batched: the place of the stage that makes batches, and its arguments, if there is one.
    """
    run = _begin(progress, is_batched=batched is not None)
    guard = PacksGuard() if packing is not None and not stages else None
    stages_before, size, incomplete = batched or (len(stages), 1, True)
    # Of each sample that has come so far and is in no item yet, how many draws had been read.
    # A queue, as a batch may be made only when one sample more has come: a state saved then
    # must count the draws of that batch, but not those of the sample more.
    draws_read: deque[int] = deque()
    read = reader.samples(run, partial(apply_stages, stages[:stages_before]), packing)
    for item in apply_stages(stages[stages_before:], _noted(read, run, draws_read)):
        if not draws_read:
            raise ValueError("a stage after .batched() makes several items of a batch")
        if guard is not None:
            guard.on_items()
        in_item = min(size, len(draws_read))
        progress.count_given(run, [draws_read.popleft() for _ in range(in_item)])
        yield item
    if dropped := len(draws_read) if incomplete else len(draws_read) // size * size:
        warn(
            f"{dropped:,} draws of epoch {run.epoch} were in batches that a stage after "
            ".batched() dropped: the epoch was shorter than len() says. Drop samples before"
        )
    progress.finish(run)


def _begin(progress: Progress, *, is_batched: bool) -> WorkerEpoch:
    info = get_worker_info()
    if info is not None:
        _keep_freed_memory()
    worker, workers = (info.id, info.num_workers) if info else (0, 0)
    # Of one worker, or of none, the draws come in one order whatever the batches.
    items = (1 if is_batched else progress.batch_size) if workers > 1 else None
    return progress.begin(worker, workers, items=items)


def _keep_freed_memory() -> None:
    """Let the C library keep what a batch of decoded samples leaves, for the next one.

    It gives back to the system what is free beyond twice the largest block that was ever freed. A
    worker whose batches are copied into shared memory may have freed no large one: then the memory
    of each sample comes from the system anew, page by page, in a tenth of the time that JPEG takes.
    """
    np.empty(_LARGEST_BLOCK, np.uint8)


def _noted(samples: Iterator[Any], run: WorkerEpoch, draws_read: deque[int]) -> Iterator[Any]:
    """The samples; of each the draws read till then are put into a queue."""
    for sample in samples:
        draws_read.append(run.read)
        yield sample
