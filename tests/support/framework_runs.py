"""Starting the framework programs, and what they should have drawn."""

from collections import Counter
from itertools import chain

import launching
import torch
from frameworks_common import RATE, SEED, WEIGHTS, Regression, table

from flowdata import EpochPlan


def torchrun(program, runs, folder, *, fails=False):
    """The outcome of each run of a program on two processes, by rank; see `launching`."""
    return launching.torchrun(program, {"runs": runs}, folder, fails=fails)


def planned(epoch, draws, weights=WEIGHTS, seed=SEED, **options):
    plan = EpochPlan(weights, seed=seed, epoch=epoch, epoch_size=draws, **options)
    return plan[:].tolist()


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


def by_hand(steps, weights):
    """Losses of a loop without framework; a step has the rows of each rank."""
    model, (features, targets) = Regression(), table()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for by_rank in steps:
        parts = [
            (weights[rows, None] * (model.layers(features[rows]) - targets[rows]).square()).mean()
            for rows in by_rank
        ]
        optimizer.zero_grad()
        sum(parts).div(len(parts)).backward()
        optimizer.step()
        losses.append([part.item() for part in parts])
    return losses
