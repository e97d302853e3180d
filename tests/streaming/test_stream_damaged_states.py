"""States of FlowShards that are damaged: refused at once, or it makes no difference."""

import copy
import json
import random
import signal
from contextlib import contextmanager
from itertools import islice

import numpy as np
import pytest
import webdataset as wds
from fuzzing import TIMES, examples
from hypothesis import given
from hypothesis import strategies as st
from shard_files import make_table, name_of, write_shards
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowShards, MismatchError

OPTIONS = {"epoch_size": 60, "window": 7, "shards_open": 2, "batch_size": 4}
SEED = 3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*draws (were|had been) dropped:flowdata.FlowDataWarning"
)


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), (20, 3, 30, 1, 9))


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)


def kept(name):
    """Two of three names."""
    if int(name.split("/")[1]) % 3 == 0:
        raise ValueError(name)
    return name


@pytest.fixture(scope="module")
def make(urls, table):
    def make(state=None, *, drops=False, **options):
        stream = FlowShards(urls, table, **{"seed": SEED} | OPTIONS | options).map(name_of)
        if drops:
            stream = stream.map(kept, handler=wds.ignore_and_continue)
        if state is not None:
            stream.load_state_dict(state)
        return stream

    return make


@pytest.fixture(scope="module")
def states(make):
    """States of each kind that is saved, through JSON, and what makes the stream that saved it."""
    fresh = make()
    begun = make()
    list(islice(begun, 13))
    two = {"num_replicas": 2, "rank": 1}
    moved = make(begun.state_dict(), **two)
    list(islice(moved, 5))
    again = make(moved.state_dict(), num_replicas=3, rank=0, drop_last=True)
    list(islice(again, 4))
    dropping = make(drops=True, **two)
    list(islice(dropping, 6))
    loader = StatefulDataLoader(make(drops=True), batch_size=4, num_workers=2)
    running = iter(loader)
    list(islice(running, 5))
    workers = loader.state_dict()["_snapshot"]["_worker_snapshots"]
    found = {
        "fresh": (fresh.state_dict(), {}),
        "begun": (begun.state_dict(), {}),
        "moved": (moved.state_dict(), two),
        "moved twice": (again.state_dict(), {"num_replicas": 3, "rank": 0, "drop_last": True}),
        "dropping": (dropping.state_dict(), two | {"drops": True}),
        "of a worker": (workers["worker_1"]["dataset_state"], {"drops": True}),
    }
    return {
        name: (json.loads(json.dumps(state)), options) for name, (state, options) in found.items()
    }


KINDS = ["fresh", "begun", "moved", "moved twice", "dropping", "of a worker"]


@contextmanager
def hanging_is_a_failure():
    def fail(*_):
        raise SystemError("hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def leaves(value, path=()):
    """Paths of all that is neither a dict nor a list, and of these too."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], dict | list):
            yield from leaves(value[key], (*path, key))
        else:
            yield (*path, key)


def at(state, path):
    for key in path:
        state = state[key]
    return state


def changed(state, path, value):
    state = copy.deepcopy(state)
    at(state, path[:-1])[path[-1]] = value
    return state


def without(state, path):
    state = copy.deepcopy(state)
    del at(state, path[:-1])[path[-1]]
    return state


def refusal(stream, state):
    """What is said of a state that is refused."""
    try:
        stream.load_state_dict(state)
    except MismatchError as error:
        return str(error)
    return None


def is_refused_or_the_same(make, state, options, damaged):
    """Whether a damaged state is refused; if it is not, it has to lead to the same place."""
    with hanging_is_a_failure():
        stream = make(seed=99, **options)
        before = stream.state_dict()
        message = refusal(stream, damaged)
        if message is not None:
            assert len(message) < 2000
            assert stream.state_dict() == before
            return True
        assert stream.state_dict() == make(state, seed=99, **options).state_dict()
        if "worker" not in state:
            assert list(stream) == list(make(state, seed=99, **options))
    return False


WRONG = [
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2**20, 2**32, 2**63, 2**70, 10**5000, 0.5, 1.0,
    float("nan"), float("inf"), "", "1", "x" * 100_000, b"1", [], [1], {}, {"ranks": 1}, [[]],
    np.int64(1), np.arange(3), object(),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_a_state_that_is_something_else_is_refused(make, states, kind):
    state, options = states[kind]
    for path in leaves(state):
        for number, value in enumerate(WRONG):
            damaged = changed(state, path, value)
            refused = is_refused_or_the_same(make, state, options, damaged)
            # What is equal is no damage, whatever its type.
            is_equal = not isinstance(value, np.ndarray) and value == at(state, path)
            assert refused or is_equal, (path, number)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_which_a_part_is_missing_is_refused(make, states, kind):
    state, options = states[kind]
    for path in leaves(state):
        # Older states have no checksum.
        refused = is_refused_or_the_same(make, state, options, without(state, path))
        assert refused == (path != ("check",)), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_that_is_longer_or_shorter_is_refused(make, states, kind):
    state, options = states[kind]
    stretches = state["stretches"]
    more = [*stretches, {"ranks": 1, "workers": 1, "batch": 1, "drop_last": False, "done": 0}]
    for other in (more, stretches[:-1], stretches * 2, stretches[::-1]):
        if other != stretches:
            damaged = changed(state, ("stretches",), other)
            assert is_refused_or_the_same(make, state, options, damaged)


@examples(150)
@given(
    st.sampled_from(KINDS),
    st.data(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    ),
)
def test_no_value_in_any_place_does_harm(make, states, kind, data, value):
    state, options = states[kind]
    path = data.draw(st.sampled_from(list(leaves(state))))
    is_refused_or_the_same(make, state, options, changed(state, path, value))


def flips(text, count):
    random_ = random.Random(7)
    for _ in range(count):
        place, bit = random_.randrange(len(text)), random_.randrange(8)
        yield text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bit_that_is_flipped_in_a_saved_state_is_noticed_or_makes_no_difference(
    make, states, kind
):
    state, options = states[kind]
    text = json.dumps(state).encode()
    for flipped in flips(text, 120 * TIMES):
        try:
            damaged = json.loads(flipped)
        except ValueError:
            continue
        is_refused_or_the_same(make, state, options, damaged)


# States of earlier releases have no checksum: what cannot be is refused all the same.


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("begun", ("stretches", 0, "ranks"), 2**32),
        ("begun", ("stretches", 0, "ranks"), 60),
        ("begun", ("stretches", 0, "workers"), 2**70),
        ("begun", ("stretches", 0, "workers"), 257),
        ("begun", ("stretches", 0, "done"), 61),
        ("begun", ("stretches", 0, "done"), -1),
        ("begun", ("stretches",), {}),
        ("begun", ("stretches",), ""),
        ("moved", ("stretches", 0, "done"), 0),
        ("moved", ("stretches", 1, "done"), 25),
        ("dropping", ("rank",), 2),
        ("dropping", ("drawn",), 5),
        ("dropping", ("drawn",), 2**40),
        ("of a worker", ("worker",), 2),
        ("of a worker", ("done",), 33),
        ("of a worker", ("ended",), 1),
        ("of a worker", ("stretches",), []),
    ],
)
def test_a_state_without_a_checksum_is_refused_if_no_run_can_have_saved_it(
    make, states, kind, path, value
):
    state, options = states[kind]
    older = without(state, ("check",))
    assert not is_refused_or_the_same(make, state, options, older)
    assert is_refused_or_the_same(make, older, options, changed(older, path, value))


def test_a_position_beyond_the_epoch_is_refused(make):
    stream = make()
    next(iter(stream))
    assert stream.state_dict(position=60) == stream.state_dict(position=63)
    for position in (64, 200, 10**12):
        with pytest.raises(ValueError, match="is beyond epoch 0, which has 60 draws"):
            stream.state_dict(position=position)
    unknown = make(batch_size=None)
    next(iter(unknown))
    assert unknown.state_dict(position=100)["epoch"] == 1
    with pytest.raises(ValueError, match="is beyond epoch 0, which has 60 draws"):
        unknown.state_dict(position=121)


@pytest.mark.parametrize(
    "layout",
    [
        {"ranks": 2**20, "done": 1},
        {"ranks": 30, "workers": 256, "done": 1},
        {"ranks": 1, "workers": 256, "batch": 2**62, "done": 59},
        {"ranks": 59, "workers": 256, "batch": 1, "done": 1},
    ],
    ids=str,
)
def test_a_division_that_no_run_has_takes_no_longer_than_its_draws(make, states, layout):
    older = without(states["begun"][0], ("check",))
    older["stretches"][0] |= layout
    with hanging_is_a_failure():
        assert len(list(make(older))) <= 60
