"""Which draws of an epoch were in a step of training: a log that need not be written."""

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.cursor import Cursor
from flowdata.core.lengths import at_least_one


def draws_of_step(
    plan: Any, step: int, batch_size: int, ranks: int, rank: int | None, *, drop_last: bool
) -> NDArray[np.int64]:
    """The numbers of the draws, or packs, of a step, int64; see `EpochPlan.rows_of_step`.

    Raises:
        IndexError: for a step that the epoch has not.
        ValueError: for a rank outside [0, ranks), and sizes below 1.
    """
    size, count = at_least_one(batch_size, "batch_size"), at_least_one(ranks, "ranks")
    if rank is not None and not 0 <= operator.index(rank) < count:
        raise ValueError(f"rank must be in [0, ranks), got rank={rank}, ranks={ranks}")
    cursor = Cursor(plan, rank=rank or 0, replicas=count, drop_last=drop_last)
    steps = -(-len(cursor) // size)
    if not 0 <= operator.index(step) < steps:
        raise IndexError(
            f"epoch {plan.epoch} has steps 0 to {steps - 1:,}, of {size:,} x {count:,} of its "
            f"{len(plan):,} draws each: there is no step {step:,}{_elsewhere(step, steps)}"
        )
    first, last = step * size, min((step + 1) * size, len(cursor))
    if rank is not None:
        return cursor.numbers(first, last)
    # What all ranks draw in turns is one run of the epoch.
    return Cursor(plan).numbers(first * count, last * count)


def _elsewhere(step: int, steps: int) -> str:
    if step < 0 or not steps:
        return ""
    return (
        f"; if steps count from the begin of a run, it is step {step % steps:,} of epoch "
        f"{step // steps:,}"
    )
