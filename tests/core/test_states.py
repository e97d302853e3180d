"""Saved states: their layout, what is refused, and those of older versions."""

import json
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from flowdata import EpochPlan, MismatchError, Strata
from flowdata.core.states import read_state, require_same, save_state

PLAN = EpochPlan([1.0, 2.0, 3.0], seed=5, epoch=1)
WEIGHTS = "ecef15c36633c414f8108cf9f9d6c177"
IDENTITY = {
    "epoch_size": 3,
    "scheme": "systematic",
    "alpha": 1.0,
    "weights": WEIGHTS,
    "strata": "",
}


def read(state, *, plan=PLAN, needed=(), **more):
    return read_state(state, {"plan": plan.identity(), **more}, owner="FlowSampler", needed=needed)


def test_the_layout_is_the_same_in_every_release():
    assert save_state(PLAN, position=2, done=[1, 3]) == {
        "version": 2,
        "plan": IDENTITY,
        "seed": 5,
        "epoch": 1,
        "position": 2,
        "done": [1, 3],
    }


def test_the_identity_of_a_plan_names_its_strata():
    strata = Strata([0, 1, 1], batch_size=2)
    plan = EpochPlan([1.0, 2.0, 3.0], strata=strata, epoch_size=7, alpha=0.5)
    assert plan.identity() == IDENTITY | {
        "epoch_size": 7,
        "alpha": 0.5,
        "weights": plan.weights.fingerprint,
        "strata": strata.fingerprint,
    }


def test_a_state_is_read_as_it_was_saved():
    state = json.loads(json.dumps(save_state(PLAN, position=2)))
    assert read(state, needed=("position",)) == save_state(PLAN, position=2)


def test_a_seed_of_its_own_does_not_hinder():
    other = EpochPlan([1.0, 2.0, 3.0], seed=9)
    assert read(save_state(PLAN), plan=other)["seed"] == 5


class Configuration(Mapping):
    """A mapping as those of configuration libraries, with tuples in place of lists."""

    def __init__(self, content):
        self._content = content

    def __getitem__(self, name):
        value = self._content[name]
        if isinstance(value, dict):
            return Configuration(value)
        return tuple(value) if isinstance(value, list) else value

    def __iter__(self):
        return iter(self._content)

    def __len__(self):
        return len(self._content)


@pytest.mark.parametrize("kind", [Configuration, MappingProxyType])
def test_any_mapping_is_read_as_plain_dicts_and_lists(kind):
    saved = save_state(PLAN, done=[1, 2], more={"name": "text"})
    found = read(kind(saved))
    assert found == saved
    assert type(found) is dict
    assert type(found["plan"]) is dict
    assert type(found["done"]) is list


@pytest.mark.parametrize("state", [None, 3, "text", [("seed", 1)]])
def test_what_is_no_mapping_is_no_state(state):
    with pytest.raises(MismatchError) as error:
        read(state)
    assert str(error.value) == f"not a FlowSampler state: {state!r}"


def test_what_is_missing_is_named():
    state = save_state(PLAN)
    for name in ("version", "plan", "seed", "epoch"):
        with pytest.raises(MismatchError) as error:
            read({key: value for key, value in state.items() if key != name})
        assert str(error.value) == f"not a FlowSampler state: ['{name}'] missing"
    with pytest.raises(MismatchError, match=r"\['done', 'position', 'stream'\] missing"):
        read(state, needed=("position", "done"), stream={})


@pytest.mark.parametrize("version", [3, 0, "2", None])
def test_a_state_of_another_version_is_refused(version):
    with pytest.raises(MismatchError) as error:
        read(save_state(PLAN) | {"version": version})
    assert str(error.value) == (
        f"the saved state has version={version!r}, this flowdata reads up to 2: "
        "load it with the version of flowdata that saved it"
    )


@pytest.mark.parametrize("name", ["seed", "epoch"])
@pytest.mark.parametrize("value", [-1, 0.5, True, None])
def test_a_seed_or_an_epoch_that_is_no_count_is_refused(name, value):
    with pytest.raises(
        MismatchError, match=f"is damaged: {name} must be an int >= 0, got {value!r}"
    ):
        read(save_state(PLAN) | {name: value})


DAMAGED = [
    [],
    {},
    {"a": {"b": 1}},
    np.arange(3),
    float("nan"),
    -(10**5000),
    b"",
    "x" * 10**6,
    object(),
]


@pytest.mark.parametrize("name", ["version", "plan", "seed", "epoch", *IDENTITY])
@pytest.mark.parametrize("value", DAMAGED, ids=lambda value: type(value).__name__)
def test_whatever_stands_in_a_place_it_is_refused_in_a_few_words(name, value):
    state = save_state(PLAN)
    (state["plan"] if name in IDENTITY else state)[name] = value
    with pytest.raises(MismatchError) as error:
        read(state)
    assert len(str(error.value)) < 1500


def test_a_state_that_is_nested_without_end_is_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for state in (save_state(PLAN) | {"seed": deep}, save_state(PLAN) | {"other": deep}):
        with pytest.raises(MismatchError, match="nested too deeply"):
            read(state)


def test_a_state_of_other_draws_is_refused_with_every_difference():
    other = EpochPlan([1.0, 2.0, 4.0], epoch_size=5)
    with pytest.raises(MismatchError) as error:
        read(save_state(other))
    assert str(error.value) == (
        "the saved FlowSampler state does not belong here: "
        "it has epoch_size=5, here it is 3; "
        f"it has weights='{other.weights.fingerprint}', here it is '{WEIGHTS}'. "
        "Its positions mean other rows here: build this from the same loss table and with the "
        "same options as the run that was saved"
    )


def test_every_part_of_an_identity_counts():
    state = save_state(PLAN, stream={"window": 4, "shards": "a"})
    assert read(state, stream={"window": 4, "shards": "a"})["stream"]["window"] == 4
    with pytest.raises(MismatchError, match="it has window=4, here it is 8"):
        read(state, stream={"window": 8, "shards": "a"})


def test_what_only_one_side_has_is_a_difference():
    def refused(identity, found):
        with pytest.raises(MismatchError) as error:
            require_same(identity, found, what="It", advice="Look.")
        return str(error.value)

    assert refused({"a": 1}, {}) == (
        "It does not belong here: it has a='nothing', here it is 1. Look."
    )
    assert refused({}, {"a": 1}) == (
        "It does not belong here: it has a=1, here it is 'nothing'. Look."
    )
    assert refused({"a": {"b": 1}}, {"a": 2}) == (
        "It does not belong here: it has a=2, here it is {'b': 1}. Look."
    )
    assert refused({"a": {"b": 1, "c": 2}}, {"a": {"b": 2, "c": 3}}) == (
        "It does not belong here: it has b=2, here it is 1; it has c=3, here it is 2. Look."
    )
    require_same({"a": {"b": 1}}, {"a": {"b": 1}}, what="It", advice="Look.")


# Older layouts.


@pytest.mark.parametrize("strata", [{"strata": ""}, {}])
def test_a_sampler_of_version_1_had_the_plan_among_the_rest(strata):
    plan = {name: value for name, value in IDENTITY.items() if name != "strata"} | strata
    state = {"version": 1, "seed": 5, "epoch": 1, "position": 2, **plan}
    assert read(state, needed=("position",)) == save_state(PLAN, position=2)


def test_a_stream_of_version_1_had_its_own_options_there_too():
    own = {"window": 4, "shards_open": 2, "shards": "abc"}
    state = {"version": 1, "seed": 5, "epoch": 1, "done": [2], **IDENTITY, **own}
    assert read(state, stream=own) == save_state(PLAN, done=[2], stream=own)


@pytest.mark.parametrize("strata", [{"strata": ""}, {}])
def test_a_data_set_had_no_version_and_the_seed_in_its_plan(strata):
    plan = {name: value for name, value in IDENTITY.items() if name != "strata"} | strata
    state = {"epoch": 1, "named": True, "plan": plan | {"seed": 5}}
    assert read(state) == save_state(PLAN, named=True)
    # What was given is left as it is.
    assert state["plan"]["seed"] == 5


def test_an_older_state_of_other_strata_is_refused():
    state = {"version": 1, "seed": 5, "epoch": 1, "position": 2, **IDENTITY, "strata": "other"}
    with pytest.raises(MismatchError, match="it has strata='other', here it is ''"):
        read(state)
