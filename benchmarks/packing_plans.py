"""What packing itself costs: time, memory and fill of an epoch, and packs of many epochs."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from measure import Figures, peak_memory, settle_memory

from flowdata import EpochPlan, FlowWeights, PackPlan
from flowdata.core.packing import pack

Lengths: TypeAlias = np.ndarray[Any, Any]

OURS, TRL, TRL_WHOLE, FLATTENED = "ours", "trl", "trl-whole", "flattened"
LABELS = {
    OURS: "PackPlan",
    TRL: "TRL's bfd, 1,000 rows at a time",
    TRL_WHOLE: "TRL's bfd, all rows at once",
    FLATTENED: "transformers' flattening, 16 rows",
}
TIME, MEMORY = "time", "memory"
FIRST, NEXT, BYTES, FILL = "first_s", "epoch_s", "bytes", "fill"
"""Figures: seconds a million draws, of the first epoch and of one more; bytes a draw; share."""
CAPACITY = 2048
EPOCHS = 200
_ROWS_FLATTENED = 16
_WARM = 2000
# malloc.h
_M_MMAP_THRESHOLD = -3
_AHEAD = 1 << 28


def measured(method: str, quantity: str, lengths: Lengths) -> Figures:
    """What a method takes to put draws of these lengths into packs, in this process.

    Args:
        method: its name.
        quantity: `TIME` or `MEMORY`.
        lengths: of the draws.
    """
    libc = ctypes.CDLL(None)
    if quantity == MEMORY and hasattr(libc, "mallopt"):
        # What is freed goes back to the system at once: that takes time, so time has its own
        # process.
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    # What is imported, or compiled, at first use is not counted.
    _METHODS[method](lengths[:_WARM])
    figures = _METHODS[method](lengths)
    return {name: figures[name] for name in figures if (name == BYTES) == (quantity == MEMORY)}


def _ours(lengths: Lengths) -> Figures:
    losses = np.random.default_rng(1).gamma(2.0, size=lengths.size)
    weights = FlowWeights.from_losses(losses)
    before = settle_memory(_AHEAD)
    first, plan = _timed(lambda: PackPlan(EpochPlan(weights), lengths, CAPACITY))
    rows, _ = _timed(lambda: plan[0])
    peak = peak_memory() - before
    next_plan = plan.at_epoch(1)
    # Of the first pack: with it, all rows of the epoch have their packs.
    again, _ = _timed(lambda: next_plan[0])
    drawn = next_plan.of(np.arange(len(plan)))
    tokens = np.array([lengths[rows].sum() for rows in drawn])
    return _figures(first + rows, peak, lengths.size, tokens, CAPACITY) | {
        NEXT: [again * 1e6 / lengths.size]
    }


def _trl(lengths: Lengths, **options: Any) -> Figures:
    import datasets
    import pyarrow as pa
    from trl.data_utils import pack_dataset

    datasets.disable_progress_bars()
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = pa.ListArray.from_arrays(ends, np.ones(ends[-1], dtype=np.int32))
    data = datasets.Dataset(pa.table({"input_ids": column, "labels": column}))
    before = settle_memory(_AHEAD)
    seconds, packs = _timed(lambda: pack_dataset(data, CAPACITY, "bfd", options))
    peak = peak_memory() - before
    tokens = np.array([sum(each) for each in packs["seq_lengths"]])
    return _figures(seconds, peak, lengths.size, tokens, CAPACITY)


def _flattened(lengths: Lengths) -> Figures:
    from transformers import DataCollatorWithFlattening

    rows = [{"input_ids": [1] * length, "labels": [1] * length} for length in lengths.tolist()]
    collate = DataCollatorWithFlattening()
    before = settle_memory(_AHEAD)
    seconds, tokens, batch = 0.0, [], None
    for start in range(0, len(rows), _ROWS_FLATTENED):
        part = rows[start : start + _ROWS_FLATTENED]
        taken, batch = _timed(lambda part=part: collate(part))
        seconds += taken
        tokens.append(batch["input_ids"].numel())
    # There is no capacity: what has to fit is the largest batch.
    peak = peak_memory() - before
    return _figures(seconds, peak, lengths.size, np.array(tokens), max(tokens))


_METHODS: dict[str, Callable[[Lengths], Figures]] = {
    OURS: _ours,
    TRL: _trl,
    TRL_WHOLE: lambda lengths: _trl(lengths, batch_size=None, keep_in_memory=True),
    FLATTENED: _flattened,
}


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor, as other programs may run, and what the work gives."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def _figures(seconds: float, peak: int, draws: int, tokens: Lengths, room: int) -> Figures:
    assert tokens.max() <= room
    return {
        FIRST: [seconds * 1e6 / draws],
        BYTES: [peak / draws],
        FILL: [float(tokens.sum() / (tokens.size * room))],
        "packs": [float(tokens.size)],
    }


@dataclass(frozen=True)
class Epochs:
    """Packs of many epochs.

    Attributes:
        planned: in each epoch, by the plan.
        each: by packing the draws of each epoch, in their random order, for themselves.
        fill: the least of the plan.
    """

    planned: list[int]
    each: list[int]
    fill: float


def packs_of_epochs(lengths: Lengths) -> Epochs:
    """How many packs the draws of rows need in each epoch."""
    weights = FlowWeights.from_losses(np.random.default_rng(1).gamma(2.0, size=lengths.size))
    plan, draws = PackPlan(EpochPlan(weights), lengths, CAPACITY), EpochPlan(weights)
    planned, each, fills = [], [], []
    for epoch in range(EPOCHS):
        packs = plan.at_epoch(epoch)[:]
        tokens = np.array([lengths[rows].sum() for rows in packs])
        assert 0 < tokens.min() <= tokens.max() <= CAPACITY
        planned.append(len(packs))
        fills.append(tokens.sum() / (tokens.size * CAPACITY))
        drawn = lengths[draws.at_epoch(epoch)[:]]
        each.append(int(pack(drawn, CAPACITY).max()) + 1)
    return Epochs(planned, each, float(min(fills)))
