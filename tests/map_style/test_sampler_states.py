"""States of a sampler: which belong to it, and which are refused by what differs."""

import copy
import json
import pickle
import types
from itertools import islice

import numpy as np
import pytest
from omegaconf import OmegaConf

from flowdata import EpochPlan, FlowSampler, MismatchError, Strata

ROWS, DRAWS, SEED = 11, 30, 5
WEIGHTS = np.random.default_rng(3).random(ROWS)
STRATA = Strata(np.arange(ROWS) % 2, batch_size=4)


def planned(epoch, seed=SEED):
    return EpochPlan(WEIGHTS, seed=seed, epoch=epoch, epoch_size=DRAWS)[:].tolist()


def make(seed=SEED, draws=DRAWS, weights=WEIGHTS, **options):
    return FlowSampler(weights, seed=seed, epoch_size=draws, **options)


def resumed(state):
    """A sampler of another seed that loaded a state which was stored as JSON."""
    sampler = make(seed=99)
    sampler.load_state_dict(json.loads(json.dumps(state)))
    return sampler


OTHER_RUNS = {
    "weights": {"weights": np.where(np.arange(ROWS) == 4, WEIGHTS * 0.999, WEIGHTS)},
    "weights (fewer rows)": {"weights": WEIGHTS[:-1]},
    "weights (reordered)": {"weights": WEIGHTS[::-1].copy()},
    "epoch_size": {"draws": DRAWS + 1},
    "scheme": {"scheme": "multinomial"},
    "alpha": {"alpha": 0.5},
    "strata": {"strata": STRATA},
    "strata (other groups)": {"strata": Strata(np.arange(ROWS) % 3, batch_size=4)},
}


@pytest.mark.parametrize("difference", OTHER_RUNS)
def test_a_state_of_another_run_is_refused_by_the_name_of_the_difference(difference):
    state = make(**OTHER_RUNS[difference]).state_dict()
    with pytest.raises(MismatchError, match=difference.split()[0]):
        make().load_state_dict(state)


@pytest.mark.parametrize("key", sorted(make().state_dict()))
def test_a_state_without_one_of_its_keys_is_refused_by_that_name(key):
    state = make().state_dict()
    del state[key]
    with pytest.raises(MismatchError, match=key):
        make().load_state_dict(state)


@pytest.mark.parametrize("key", sorted(make().plan.identity()))
def test_a_state_that_does_not_say_what_was_drawn_is_refused_by_what_is_missing(key):
    state = make().state_dict()
    del state["plan"][key]
    with pytest.raises(MismatchError, match=f"{key}='nothing'"):
        make().load_state_dict(state)


def in_version_1(state):
    plan = state.pop("plan")
    return state | plan | {"version": 1}


def test_a_state_of_the_first_layout_goes_on():
    state = in_version_1(make(seed=4).state_dict(position=5))
    assert list(resumed(state)) == planned(0, seed=4)[5:]
    with pytest.raises(MismatchError, match="alpha"):
        make(alpha=0.5).load_state_dict(state)


def test_a_state_that_is_older_than_strata_is_one_without():
    state = in_version_1(make().state_dict(position=5))
    del state["strata"]
    assert list(resumed(state)) == planned(0)[5:]
    with pytest.raises(MismatchError, match="strata"):
        make(strata=STRATA).load_state_dict(state)


def test_a_state_of_a_later_version_is_refused():
    with pytest.raises(MismatchError, match="version=3"):
        make().load_state_dict(make().state_dict() | {"version": 3})


def test_a_state_may_be_any_mapping():
    state = make(seed=4).state_dict(position=5)
    for mapping in (OmegaConf.create(state), types.MappingProxyType(state)):
        sampler = make()
        sampler.load_state_dict(mapping)
        assert list(sampler) == planned(0, seed=4)[5:]


@pytest.mark.parametrize("garbage", [{}, {"yielded": 3}, None, [], "state", 7], ids=repr)
def test_what_is_not_a_state_is_refused(garbage):
    with pytest.raises(MismatchError, match="not a FlowSampler state"):
        make().load_state_dict(garbage)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position", -1),
        ("position", 1.5),
        ("position", "3"),
        ("position", None),
        ("epoch", -1),
        ("epoch", "x"),
        ("epoch", 1.5),
        ("seed", -1),
        ("seed", None),
        ("seed", "x"),
    ],
)
def test_a_state_with_a_value_no_run_can_have_is_refused_by_that_name(key, value):
    with pytest.raises(ValueError, match=key):
        make().load_state_dict(make().state_dict() | {key: value})


@pytest.mark.parametrize("position", [-1, 2.5, "3"])
def test_a_stated_position_that_is_no_count_is_refused(position):
    with pytest.raises(ValueError, match="position"):
        make().state_dict(position=position)


def test_a_refused_state_leaves_the_sampler_where_it_was():
    sampler = make()
    list(islice(iter(sampler), 6))
    before = sampler.state_dict()
    other = before["plan"] | {"weights": "0"}
    for wrong in ({"plan": other}, {"version": 9}, {"epoch": -1}, {"seed": -1}):
        named = "weights" if "plan" in wrong else next(iter(wrong))
        with pytest.raises(ValueError, match=named):
            sampler.load_state_dict(before | wrong)
    assert sampler.state_dict() == before
    assert list(sampler) == planned(1)


def test_a_refused_state_leaves_a_pass_that_loads_it_where_it_was():
    sampler = make()
    running = iter(sampler)
    head = list(islice(running, 6))
    state = running.state_dict()
    state["plan"]["weights"] = "0"
    with pytest.raises(MismatchError, match="weights"):
        running.load_state_dict(state)
    assert head + list(running) == planned(0)


def test_what_a_copy_draws_is_no_progress_of_the_original():
    sampler = make()
    head = list(islice(iter(sampler), 4))
    copied = copy.copy(sampler)
    assert copied.state_dict() == sampler.state_dict()
    for epoch in (1, 2):
        assert list(copied) == planned(epoch)
    copied.set_epoch(9)
    assert sampler.state_dict()["position"] == len(head)
    assert [list(sampler), list(sampler)] == [planned(1), planned(2)]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_pass_is_not_copied(copied):
    with pytest.raises(TypeError, match="save its state_dict"):
        copied(iter(make()))


@pytest.mark.parametrize("version", [True, 1.0, 2.0])
def test_a_version_is_a_whole_number(version):
    with pytest.raises(MismatchError, match="version="):
        make().load_state_dict(make().state_dict() | {"version": version})


def test_a_pass_that_has_drawn_loads_no_state():
    running = iter(make())
    next(running)
    with pytest.raises(RuntimeError, match="drawn already: load the state into a fresh one"):
        running.load_state_dict(make().state_dict())
