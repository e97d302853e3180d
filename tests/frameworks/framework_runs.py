"""Starting the framework programs, and what they should have drawn."""

from collections import Counter
from itertools import chain

import launching
from frameworks_common import SEED, WEIGHTS

from flowdata import EpochPlan


def torchrun(program, runs, folder, *, fails=False):
    """The outcome of each run of a program on two processes, by rank; see `launching`."""
    return launching.torchrun(program, {"runs": runs}, folder, fails=fails)


def planned(epoch, draws, weights=WEIGHTS, seed=SEED):
    return EpochPlan(weights, seed=seed, epoch=epoch, epoch_size=draws)[:].tolist()


def flat(batches):
    return list(chain.from_iterable(batches))


def same_rows(drawn, expected):
    return Counter(drawn) == Counter(expected)


def dealt(rows, batch_size, ranks):
    """Batches dealt to ranks in turn, as accelerate does: by rank, by step."""
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [batches[rank::ranks] for rank in range(ranks)]


def by_step(by_rank):
    """Batches of each rank, turned into steps that have the batch of each rank."""
    return [list(step) for step in zip(*by_rank, strict=True)]
