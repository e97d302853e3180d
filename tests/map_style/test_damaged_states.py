"""States of samplers and data sets of which a part is something else."""

import copy
import json
from itertools import islice

import numpy as np
import pytest

from flowdata import FlowDataset, FlowSampler, Strata

WEIGHTS = np.linspace(0.2, 1.0, 30)
STRATA = Strata(np.arange(30) % 2, batch_size=4)
WRONG = [
    None, True, -1, 2**63, 2**70, 10**5000, 0.5, float("nan"), "", "1", "x" * 100_000, b"1", [],
    [1], {}, {"a": 1}, np.arange(3), object(),
]  # fmt: skip


def sampler():
    made = FlowSampler(WEIGHTS, seed=3, strata=STRATA)
    list(islice(made, 7))
    return made


def dataset():
    made = FlowDataset(range(30), WEIGHTS, seed=3, strata=STRATA)
    made.set_epoch(2)
    return made


def places(state):
    for name, value in state.items():
        yield (name,)
        if isinstance(value, dict):
            yield from ((name, *path) for path in places(value))


def changed(state, path, value):
    state = copy.deepcopy(state)
    part = state
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return state


@pytest.mark.parametrize("make", [sampler, dataset])
def test_no_part_of_a_state_may_be_something_else(make):
    state = json.loads(json.dumps(make().state_dict()))
    for path in places(state):
        for number, value in enumerate(WRONG):
            after = make()
            before = after.state_dict()
            damaged = changed(state, path, value)
            if not isinstance(value, np.ndarray) and damaged == state:
                continue
            try:
                after.load_state_dict(damaged)
            except ValueError:
                assert after.state_dict() == before
            else:
                # A number that is as good as any other: its draws can be made.
                assert path[0] in ("seed", "epoch", "position"), (path, number)
                assert len(list(after)) <= 30
