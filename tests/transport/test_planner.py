"""Which requests read some samples, as a function; what a server gives, from what was measured."""

import math
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdata import Access, ShardError
from flowdata.transport.planner import LARGEST, NEARBY, SMALLEST, plan_requests
from flowdata.transport.speeds import Speed, Speeds

STORE = Speed(0.03, 80e6)

samples = st.lists(
    st.tuples(st.integers(0, 3_000_000), st.integers(1, 400_000)), min_size=1, max_size=60
).map(
    lambda steps: (
        np.cumsum([gap for gap, _ in steps])
        + np.concatenate([[0], np.cumsum([size for _, size in steps])[:-1]]),
        np.array([size for _, size in steps]),
    )
)
speeds = st.builds(Speed, st.floats(NEARBY, 0.3), st.floats(1e6, 1e9))
options = st.fixed_dictionaries(
    {
        "connections": st.floats(1.0, 32.0),
        "most_overread": st.sampled_from([1.0, 1.5, 4.0, 1000.0]),
    }
)


def spans(offsets, sizes, firsts):
    """First byte and end of each request."""
    lasts = np.array([*firsts[1:], offsets.size]) - 1
    return offsets[firsts], offsets[lasts] + sizes[lasts]


def seconds(offsets, sizes, firsts, speed, connections):
    """The cost that the plan is made by."""
    starts, ends = spans(offsets, sizes, firsts)
    lengths = ends - starts
    return max(
        (starts.size * speed.latency + lengths.sum() / speed.bandwidth) / connections,
        speed.latency + lengths.max() / speed.bandwidth,
    )


@given(samples, speeds, options)
def test_each_sample_is_in_one_request_and_requests_are_in_order_and_small(found, speed, chosen):
    offsets, sizes = found
    firsts = plan_requests(offsets, sizes, speed, **chosen)
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    assert firsts[-1] < offsets.size
    starts, ends = spans(offsets, sizes, firsts)
    assert (ends[:-1] <= starts[1:]).all()
    alone = np.diff([*firsts, offsets.size]) == 1
    assert ((ends - starts <= LARGEST) | alone).all()
    assert (ends - starts).sum() <= chosen["most_overread"] * sizes.sum()


@given(samples, speeds, options)
def test_no_plan_costs_more_than_one_request_a_sample(found, speed, chosen):
    offsets, sizes = found
    connections = chosen["connections"]
    firsts = plan_requests(offsets, sizes, speed, **chosen)
    starts, ends = spans(offsets, sizes, firsts)
    bytes_read = (ends - starts).sum()
    planned = len(firsts) * speed.latency + bytes_read / speed.bandwidth
    single = offsets.size * speed.latency + sizes.sum() / speed.bandwidth
    assert planned <= single * (1 + 1e-9)
    # Nor than all in one, if that may be.
    if chosen["most_overread"] > 100 and connections >= 4:
        whole = seconds(offsets, sizes, [0], speed, connections)
        assert seconds(offsets, sizes, firsts, speed, connections) <= whole * (1 + 1e-9)


def test_gaps_are_read_over_as_far_as_another_answer_would_take_longer():
    reach = int(STORE.latency * STORE.bandwidth)
    offsets = np.cumsum([0, 1000 + reach, 1000 + reach + 1, 1000 + 10])
    sizes = np.full(4, 1000)
    plan = plan_requests(offsets, sizes, STORE, connections=1, most_overread=1e9)
    assert plan == [0, 2]


def test_where_not_all_gaps_may_be_read_over_the_smallest_are():
    gaps = np.array([500, 100, 300, 200, 400])
    sizes = np.full(6, 100)
    offsets = np.concatenate([[0], np.cumsum(gaps + 100)])
    plan = plan_requests(offsets, sizes, STORE, connections=1, most_overread=2.0)
    assert plan == [0, 1, 5]


def test_the_first_samples_come_side_by_side_in_parts_that_are_not_too_small():
    sizes = np.full(100, 40_000)
    offsets = np.arange(100) * 40_000
    for connections, parts in ((2, 2), (8, 8), (64, 16)):
        plan = plan_requests(offsets, sizes, STORE, connections=connections, most_overread=4.0)
        assert len(plan) == pytest.approx(parts, abs=2)
        starts, ends = spans(offsets, sizes, plan)
        assert (ends - starts)[:-1].min() > SMALLEST / 2


@pytest.mark.parametrize(("share", "most"), [(0.05, 4.0), (0.2, 4.0), (0.5, 2.2), (1.0, 1.0)])
def test_bytes_read_over_a_store_are_bounded_by_what_is_drawn(share, most):
    chosen, lengths = drawn(share)
    offsets, sizes = (np.cumsum(lengths) - lengths)[chosen], lengths[chosen]
    plan = plan_requests(offsets, sizes, STORE, connections=2, most_overread=Access().most_overread)
    starts, ends = spans(offsets, sizes, plan)
    assert (ends - starts).sum() <= most * sizes.sum()
    # Never ten requests where one would do.
    assert len(plan) <= 0.8 * chosen.sum()


def test_over_a_server_nearby_not_much_more_is_read_than_is_drawn():
    chosen, lengths = drawn(0.5)
    offsets, sizes = (np.cumsum(lengths) - lengths)[chosen], lengths[chosen]
    nearby = Speed(0.0004, 1e9)
    plan = plan_requests(offsets, sizes, nearby, connections=2, most_overread=4.0)
    starts, ends = spans(offsets, sizes, plan)
    assert 1.0 < (ends - starts).sum() / sizes.sum() <= 1.14
    neighbours = np.count_nonzero(np.diff(np.flatnonzero(chosen)) > 1)
    assert len(plan) < 0.85 * neighbours


def drawn(share):
    random = np.random.default_rng(0)
    return random.random(1000) < share, random.integers(25_000, 60_000, 1000)


# What is learned of a server


def noted(speeds, requests):
    for size, first_byte, body in requests:
        speeds.note(size, first_byte, body)
    return speeds.speed


def test_latency_and_bandwidth_are_found_among_threads_that_wait_for_one_another():
    random = np.random.default_rng(0)
    sizes = random.integers(300_000, 4_000_000, 200)
    # A third of all threads do not run when their answer begins, or ends.
    late = random.exponential(0.05, (2, 200)) * (random.random((2, 200)) < 1 / 3)
    bodies = np.maximum(sizes / 80e6 - late[0], 0) + late[1]
    found = noted(Speeds(), zip(sizes, 0.03 + late[0], bodies, strict=True))
    assert found.latency == pytest.approx(0.03, rel=0.01)
    assert found.bandwidth == pytest.approx(80e6, rel=0.35)


def test_one_answer_that_comes_at_once_does_not_make_a_server_near():
    speeds = Speeds()
    noted(speeds, [(1_000_000, 0.05, 0.02)] * 50)
    assert noted(speeds, [(1_000_000, 0.0001, 0.02)]).latency == 0.05


def test_a_connection_adds_less_where_many_share_a_line():
    alone = noted(Speeds(), [(2_000_000, 0.03, 0.025)] * 30)
    shared = noted(Speeds(), [(2_000_000, 0.03, 0.25)] * 30)
    assert alone.bandwidth == pytest.approx(80e6)
    assert shared.bandwidth == pytest.approx(8e6)


def test_a_transport_that_does_not_tell_when_an_answer_begins_is_measured_too():
    speeds = Speeds()
    found = noted(speeds, [(50_000, math.nan, 0.0306)] * 3 + [(2_000_000, math.nan, 0.055)] * 20)
    assert found.latency == pytest.approx(0.03, abs=0.005)
    assert found.bandwidth == pytest.approx(80e6, rel=0.2)


def test_what_is_overdue_depends_on_what_others_take():
    quick, slow = Speeds(), Speeds()
    noted(quick, [(1_000_000, 0.03, 0.0125)] * 40)
    noted(slow, [(1_000_000, 0.03, 0.0125)] * 10 + [(1_000_000, 1.0, 2.0)] * 40)
    for seconds_, has_begun in ((0.5, False), (0.5, True)):
        assert quick.is_overdue(1_000_000, seconds_, has_begun=has_begun)
        assert not slow.is_overdue(1_000_000, seconds_, has_begun=has_begun)
    assert not quick.is_overdue(1_000_000, 0.05, has_begun=False)
    # A body that comes on is awaited longer than one that has stopped.
    for silent in (0.5, 0.1, math.nan):
        overdue = slow.is_overdue(10_000_000, 1.5, has_begun=True, silent=silent)
        assert overdue == (silent == 0.5)


def test_a_server_is_probed_once_by_however_many_threads():
    speeds, sizes = Speeds(), []

    def read(size):
        sizes.append(size)
        speeds.note(size, 0.03, 0.001)

    threads = [threading.Thread(target=speeds.probe, args=(read, 40_000)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [40_000]


def test_a_server_that_does_not_answer_is_not_waited_for_by_one_thread_after_another():
    speeds, asked, failed = Speeds(), [], []

    def read(size):
        asked.append(size)
        time.sleep(0.3)
        raise ShardError("no answer")

    def probe():
        try:
            speeds.probe(read, 40_000)
        except ShardError:
            failed.append(1)

    threads = [threading.Thread(target=probe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Whoever comes later tries it again.
    assert 1 <= len(asked) == len(failed) <= 3
    with pytest.raises(ShardError, match="no answer"):
        speeds.probe(read, 40_000)


# Options


@pytest.mark.parametrize(
    ("text", "number"),
    [("256MB", 256_000_000), (1000, 1000), ("1.5 GiB", 3 << 29), ("7kb", 7000), ("10B", 10)],
)
def test_bytes_ahead_are_a_number_or_a_text(text, number):
    assert Access(ahead=text).bytes_ahead == number


@pytest.mark.parametrize(
    "option",
    [
        {"ahead": "much"},
        {"ahead": -1},
        {"ahead": True},
        {"connections": 0},
        {"connections": 2.5},
        {"most_overread": 0.5},
        {"most_overread": "4"},
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(option):
    [name] = option
    with pytest.raises(ValueError, match=f"{name} must be"):
        Access(**option)
