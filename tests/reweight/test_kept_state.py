"""A collate function that is called again for a check draws and counts on as if it had not been."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from flowdata import UnweightedLossError
from flowdata.reweight import reweight
from flowdata.reweight.kept_state import kept_state

ROWS = 64
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.random(ROWS)
DATA = [(torch.from_numpy(RANDOM.normal(size=3)), row % 5) for row in range(ROWS)]
HELD: dict[str, object] = {}


def batch_with(items, number):
    """A batch that shows a number; its targets are not those of its items."""
    inputs, targets = default_collate(items)
    return inputs + number, F.one_hot(targets, 5).float()


def fresh():
    HELD.update(torch=torch.Generator().manual_seed(0), numpy=np.random.default_rng(0))
    HELD.update(python=random.Random(0), legacy=np.random.RandomState(0), count=0, seen=[])


def from_libraries(items):
    drawn = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
    return batch_with(items, drawn)


def from_generators(items):
    drawn = torch.rand((), generator=HELD["torch"]) + HELD["legacy"].rand()
    return batch_with(items, drawn + sum([HELD["numpy"].random() for _ in items]))


def of_another_function():
    return HELD["python"].random()


def by_another_function(items):
    return batch_with(items, of_another_function())


def counted(items):
    HELD["count"] += 1
    HELD["seen"].append(len(items))
    return batch_with(items, HELD["count"] + len(HELD["seen"]))


def closure():
    count, generator = 0, np.random.default_rng(0)

    def collate(items):
        nonlocal count
        count += 1
        return batch_with(items, count + generator.random())

    return collate


class Stateful:
    def __init__(self):
        self.steps, self.generator = 0, torch.Generator().manual_seed(0)
        self.mean, self.last = torch.zeros(3), np.zeros(3)

    def step(self, inputs):
        self.steps += 1
        self.mean.mul_(0.9).add_(0.1 * inputs.mean(0))
        self.last += inputs.mean(0).numpy()
        return self.steps + torch.rand((), generator=self.generator) + self.mean + self.last.sum()

    def __call__(self, items):
        return batch_with(items, self.step(default_collate(items)[0]))

    def collate(self, items):
        return self(items)


class Iterating:
    def __init__(self):
        self.numbers = (number for number in range(1000))

    def __call__(self, items):
        return batch_with(items, next(self.numbers))


class Buffered:
    """Makes all batches in one place."""

    def __init__(self):
        self.targets = torch.zeros(8, 5)

    def __call__(self, items):
        inputs, targets = default_collate(items)
        self.targets.zero_()[torch.arange(len(items)), targets] = 1
        return inputs, self.targets[: len(items)]


MAKERS = {
    "libraries": lambda: from_libraries,
    "generators": lambda: from_generators,
    "another function": lambda: by_another_function,
    "counters": lambda: counted,
    "closure": closure,
    "object": Stateful,
    "method": lambda: Stateful().collate,
    "partial": lambda: partial(Stateful.__call__, Stateful()),
    "iterator": Iterating,
    "buffer": Buffered,
}


def passes(collate_fn, weights):
    fresh()
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    data, collate = reweight(DATA, weights, collate_fn=collate_fn)
    loader = DataLoader(data, 8, shuffle=True, collate_fn=collate)
    batches = [[part.tolist() for part in batch] for _ in range(9) for batch in loader]
    return batches, torch.rand(()).item()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_batches_are_those_that_a_collate_function_makes_without_a_check(make):
    assert passes(make(), WEIGHTS) == passes(make(), np.ones(ROWS))


def test_what_cannot_be_called_without_a_trace_is_told():
    told = {}
    for name, make in MAKERS.items():
        with kept_state(make()) as told[name]:
            pass
    assert {name for name, repeatable in told.items() if not repeatable} == {"iterator"}


def collated_items(collate_fn, rows=4096, batch=16):
    """Items that a collate function has made batches of, in one pass."""
    calls = []

    def counting(items):
        calls.append(len(items))
        return collate_fn(items)

    # What functions of torch hold is not put back.
    counting.__module__ = "torch"
    data = [(torch.zeros(1), row % 100) for row in range(rows)]
    weighted, collate = reweight(data, np.arange(1.0, rows + 1), collate_fn=counting)
    list(DataLoader(weighted, batch, shuffle=True, collate_fn=collate))
    return sum(calls)


def noisy(items):
    inputs, targets = default_collate(items)
    return inputs, torch.where(torch.rand(len(items)) < 0.3, 7, targets)


def renamed(items):
    return torch.zeros(len(items)), torch.tensor([[row, row + 0.5] for _, row in items])


def one_hot(items):
    inputs, targets = default_collate(items)
    return inputs, F.one_hot(targets, 100).float()


@pytest.mark.parametrize("collate_fn", [default_collate, noisy, renamed, one_hot])
def test_few_items_are_collated_again(collate_fn):
    assert collated_items(collate_fn) < 4096 * 1.1


def test_mixing_that_begins_late_is_found():
    def mixing_late(items):
        inputs, targets = batch_with(items, 0)
        HELD["count"] += 1
        return inputs, targets if HELD["count"] < 40 else 0.7 * targets + 0.3 * targets.roll(1, 0)

    with pytest.raises(UnweightedLossError, match="mixes rows"):
        passes(mixing_late, WEIGHTS)
    assert HELD["count"] == 40
