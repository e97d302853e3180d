"""FlowDataset: states, and data that has no rows by number."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import EpochPlan, FlowDataset, FlowDataWarning, MismatchError

ROWS, DRAWS, SEED = 11, 18, 2
WEIGHTS = np.random.default_rng(5).random(ROWS)


def make(kind=FlowDataset, weights=WEIGHTS, **options):
    given = {"seed": SEED, "epoch_size": DRAWS} | options
    return kind(range(ROWS), weights, **given) if kind is FlowDataset else kind(weights, **given)


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=SEED, epoch=epoch, epoch_size=DRAWS)[:].tolist()


def one_epoch(loader):
    return torch.cat(list(loader)).tolist()


@pytest.mark.parametrize("stream", ["datasets", "torch"])
def test_a_stream_without_rows_by_number_is_refused(stream):
    if stream == "datasets":
        rows = datasets.Dataset.from_dict({"row": range(ROWS)}).to_iterable_dataset()
    else:
        rows = type(
            "Stream", (torch.utils.data.IterableDataset,), {"__iter__": iter, "__len__": len}
        )()
    with pytest.raises(TypeError, match=r"no rows by number.*from_generator"):
        FlowDataset(rows, WEIGHTS)


def test_the_rows_of_a_stream_are_drawn_from_once_they_are_stored(tmp_path):
    stream = datasets.Dataset.from_dict({"row": range(ROWS)}).to_iterable_dataset()
    stored = datasets.Dataset.from_generator(lambda: iter(stream), cache_dir=str(tmp_path))
    items = FlowDataset(stored, WEIGHTS, seed=SEED, epoch_size=DRAWS)
    for epoch in (0, 1):
        batches = list(DataLoader(items, 4, shuffle=True))
        drawn = [row for batch in batches for row in batch["row"].tolist()]
        assert Counter(drawn) == Counter(planned(epoch))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stateful_loader_carries_the_epoch_that_was_named(workers):
    items = make()
    items.set_epoch(3)
    torch.manual_seed(0)
    loader = StatefulDataLoader(items, 4, shuffle=True, num_workers=workers)
    batches = iter(loader)
    done = [row for _ in range(2) for row in next(batches).tolist()]
    state = json.loads(json.dumps(items.state_dict()))
    after = make()
    resumed = StatefulDataLoader(after, 4, shuffle=True, num_workers=workers)
    resumed.load_state_dict(loader.state_dict())
    assert Counter(done + one_epoch(resumed)) == Counter(planned(3))
    assert after.epoch == state["epoch"] == 3


def test_an_epoch_that_was_named_already_holds_when_a_state_is_loaded():
    before, after = make(), make()
    before.set_epoch(3)
    after.set_epoch(4)
    after.load_state_dict(before.state_dict())
    assert after.epoch == 4


def test_a_state_of_an_epoch_that_nobody_named_is_refused():
    items = make()
    one_epoch(DataLoader(items, 4))
    with pytest.raises(RuntimeError, match="give the DataLoader a FlowSampler"):
        make().load_state_dict(items.state_dict())


@pytest.mark.parametrize("other", [{"weights": WEIGHTS[::-1].copy()}, {"alpha": 0.5}])
def test_a_state_of_other_draws_is_refused(other):
    items = make(**other)
    items.set_epoch(1)
    with pytest.raises(MismatchError, match=next(iter(other))):
        make().load_state_dict(items.state_dict())


def test_a_state_brings_its_seed_to_worker_processes_too():
    before, after = make(seed=9), make()
    before.set_epoch(1)
    after.load_state_dict(OmegaConf.create(before.state_dict()))
    assert after.plan.seed == 9
    drawn = EpochPlan(WEIGHTS, seed=9, epoch=1, epoch_size=DRAWS)[:].tolist()
    assert one_epoch(DataLoader(after, 4)) == drawn
    after.set_epoch(1)
    assert one_epoch(DataLoader(after, 4, num_workers=1, multiprocessing_context="fork")) == drawn


@pytest.mark.guard
def test_a_loaded_epoch_that_is_drawn_again_and_again_is_warned_of():
    before, after = make(), make()
    before.set_epoch(1)
    after.load_state_dict(before.state_dict())
    loader = DataLoader(after, 4)
    one_epoch(loader)
    with pytest.warns(FlowDataWarning, match="draws epoch 1, whose state was loaded"):
        one_epoch(loader)


def test_a_state_of_the_layout_before_goes_on():
    items = make(seed=9)
    items.set_epoch(1)
    plan = items.plan.identity() | {"seed": 9}
    after = make()
    after.load_state_dict({"epoch": 1, "named": True, "plan": plan})
    assert after[0] == items[0]
    assert after.state_dict() == items.state_dict()


def test_what_is_no_state_is_refused():
    for state in ({}, None, {"epoch": 1}):
        with pytest.raises(MismatchError, match="not a FlowDataset state"):
            make().load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"epoch": 1 << 63}, {"seed": 1 << 63}])
def test_a_state_that_shared_memory_cannot_hold_changes_nothing(wrong):
    items = make()
    items.set_epoch(1)
    after = make()
    with pytest.raises(MismatchError, match="must be an int in"):
        after.load_state_dict(items.state_dict() | {"seed": 5} | wrong)
    assert (after.epoch, after.plan.seed) == (0, SEED)


SAVED = make(seed=9)
SAVED.set_epoch(3)
PLACES = [
    *((name,) for name in SAVED.state_dict()),
    *(("plan", it) for it in SAVED.plan.identity()),
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=2)
    | st.just(SAVED.plan.weights.fingerprint)
    | st.sampled_from([0, 1, 2, 3, 2.0, True, np.float64(2), torch.tensor(2)]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=4,
)


def refusal_of(items, state):
    try:
        items.load_state_dict(state)
    except (MismatchError, ValueError, RuntimeError) as refused:
        return str(refused)
    return ""


@given(st.lists(st.tuples(st.sampled_from(PLACES), st.just("removed") | VALUES), min_size=1))
@examples(100)
def test_a_damaged_state_is_refused_and_changes_nothing_or_means_what_it_says(damages):
    state = SAVED.state_dict()
    for place, value in damages:
        within = state
        for name in place[:-1]:
            within = within.get(name) if isinstance(within, dict) else None
        if not isinstance(within, dict):
            continue
        if isinstance(value, str) and value == "removed":
            within.pop(place[-1], None)
        else:
            within[place[-1]] = value
    items = make()
    if refused := refusal_of(items, state):
        assert len(refused) > 20
        assert (items.epoch, items.plan.seed, items.state_dict()["named"]) == (0, SEED, False)
    else:
        found = items.state_dict()
        assert (found["seed"], found["epoch"]) == (int(state["seed"]), int(state["epoch"]))
        assert (state["named"], state["version"]) == (True, 2)


@pytest.mark.parametrize("named", [1, "yes", None, [], "false", 0])
def test_whether_the_epoch_was_named_is_true_or_false(named):
    with pytest.raises(MismatchError, match="named must be true or false"):
        make().load_state_dict(SAVED.state_dict() | {"named": named})
