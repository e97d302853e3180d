from collections import Counter

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowdata.core.shard_plan import ShardPlan
from flowdata.streaming.draw_order import StreamOrder
from flowdata.streaming.order import Layout, share_of
from flowdata.streaming.slots import Slots

SEED = 5


def make_order(sizes, draws, *, epoch=0, window=7, shards_open=2, seed=SEED):
    weights = np.random.default_rng(1).random(sum(sizes)) + 0.01
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    plan = ShardPlan(weights, bounds, seed=seed, epoch=epoch, epoch_size=draws)
    return plan, StreamOrder(plan, window=window, shards_open=shards_open)


def drawn(order, slots, random_key=(0, 0, 0), skip=0):
    """Rows in the order they come out."""
    rows = [np.zeros(0, dtype=np.int64)]
    for window, done in order.windows(slots, random_key, skip):
        rows.append(np.concatenate(window.rows)[window.order[done:]])
    return np.concatenate(rows).tolist()


layouts = st.builds(Layout, st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.booleans())
sizes = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)


@given(sizes, st.integers(1, 120), st.integers(1, 4), st.integers(1, 4), st.integers(1, 9))
def test_all_workers_together_draw_the_plan_and_the_repeats_of_the_last_ranks(
    sizes, draws, ranks, workers, batch
):
    plan, order = make_order(sizes, draws)
    layout = Layout(ranks, workers, batch)
    by_rank = [
        [
            row
            for worker in range(workers)
            for row in drawn(
                order, share_of(Slots.run(0, draws), layout, rank, worker), (0, rank, worker)
            )
        ]
        for rank in range(ranks)
    ]
    assert {len(rows) for rows in by_rank} == {-(-draws // ranks)}
    found = Counter(row for rows in by_rank for row in rows)
    expected = Counter(np.repeat(np.arange(sum(sizes)), plan.counts()).tolist())
    assert not expected - found
    assert (found - expected).total() == -draws % ranks


@given(st.integers(0, 300), layouts)
def test_shares_are_whole_batches_but_one_and_add_up(draws, layout):
    shares = layout.shares(draws)
    own = draws // layout.ranks if layout.drop_last else -(-draws // layout.ranks)
    assert sum(shares) == own
    assert len(shares) == layout.workers
    assert sum(share % layout.batch > 0 for share in shares) <= 1
    batches = [-(-share // layout.batch) for share in shares]
    assert max(batches) - min(batches) <= 1
    assert batches == sorted(batches, reverse=True)


@given(st.integers(1, 200), layouts)
def test_batches_done_are_dealt_out_as_a_loader_asks_its_workers(draws, layout):
    """A DataLoader asks its workers in turn, and passes over those that have ended."""
    shares = layout.shares(draws)
    left, done = list(shares), 0
    turn = 0
    while sum(left):
        if left[turn % layout.workers]:
            taken = min(left[turn % layout.workers], layout.batch)
            left[turn % layout.workers] -= taken
            done += taken
            by_worker = [share - rest for share, rest in zip(shares, left, strict=True)]
            assert layout.by_worker(draws, done) == by_worker
        turn += 1


@examples(60)
@given(sizes, st.integers(1, 100), layouts, st.data())
def test_what_is_left_and_what_was_done_are_the_epoch(sizes, draws, layout, data):
    _, order = make_order(sizes, draws)
    own = layout.per_rank(draws)
    batches = data.draw(st.integers(0, -(-own // layout.batch)))
    done = min(batches * layout.batch, own)
    by_worker = layout.by_worker(draws, done)
    left = order.remaining(Slots.run(0, draws), layout, by_worker, 0)
    assert (np.diff(left.array()) > 0).all()
    before = Counter()
    for rank in range(layout.ranks):
        for worker in range(layout.workers):
            share = share_of(Slots.run(0, draws), layout, rank, worker)
            before.update(drawn(order, share, (0, rank, worker))[: by_worker[worker]])
    after = Counter(drawn(order, left))
    whole = Counter(drawn(order, Slots.run(0, draws)))
    assert not whole - (before + after)
    # More than the epoch are only the repeats that fill up the last ranks.
    assert ((before + after) - whole).total() <= -draws % layout.ranks


@given(sizes, st.integers(1, 100), st.data())
def test_skipping_draws_leaves_the_rest_as_it_was(sizes, draws, data):
    _, order = make_order(sizes, draws)
    skip = data.draw(st.integers(0, draws))
    assert drawn(order, Slots.run(0, draws), skip=skip) == drawn(order, Slots.run(0, draws))[skip:]


@given(sizes, st.integers(1, 200), st.integers(1, 20), st.integers(1, 5))
def test_windows_are_bounded_and_read_each_shard_onwards(sizes, draws, window, shards_open):
    _, order = make_order(sizes, draws, window=window, shards_open=shards_open)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    reached, group, seen = {}, 0, set()
    for found, done in order.windows(Slots.run(0, draws), (0,)):
        assert done == 0
        assert found.order.size <= window + shards_open
        assert len(found.shards) <= shards_open
        if found.group != group:
            assert found.group == group + 1
            seen |= reached.keys()
            reached, group = {}, found.group
        for shard, rows in zip(found.shards, found.rows, strict=True):
            assert shard not in seen
            assert bounds[shard] <= rows[0]
            assert rows[-1] < bounds[shard + 1]
            assert (np.diff(rows) >= 0).all()
            assert rows[0] >= reached.get(shard, 0)
            reached[shard] = rows[-1]


def test_an_order_is_a_function_of_seed_and_epoch_alone():
    sizes = [40, 10, 25, 60]
    orders = {
        (seed, epoch): tuple(
            drawn(make_order(sizes, 90, seed=seed, epoch=epoch)[1], Slots.run(0, 90))
        )
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    again = {
        (seed, epoch): tuple(
            drawn(make_order(sizes, 90, seed=seed, epoch=epoch)[1], Slots.run(0, 90))
        )
        for seed, epoch in orders
    }
    assert orders == again
    assert len(set(orders.values())) == 4


def test_single_slots_are_drawn_as_a_run_is():
    _, order = make_order([40, 10, 25, 60], 90)
    assert drawn(order, Slots.of(np.arange(20, 70))) == drawn(order, Slots.run(20, 70))


def test_every_draw_of_a_window_is_as_likely_at_every_place():
    """Chi-square over 4,000 epochs, false alarms below 1e-6."""
    places = np.zeros((6, 6))
    bounds = np.array([0, 1, 3, 9])
    for epoch in range(4000):
        plan = ShardPlan(np.ones(9), bounds, seed=SEED, epoch=epoch)
        order = StreamOrder(plan, window=6, shards_open=1)
        # Not the first shard that is read, whose windows are smaller.
        windows = [
            window
            for window, _ in order.windows(Slots.run(0, 9), (0, 0, 0))
            if window.group and window.shards == [2]
        ]
        for window in windows:
            for place, row in enumerate(window.rows[0][window.order].tolist()):
                places[place, row - 3] += 1
    assert places.sum() > 10_000
    assert stats.chisquare(places.ravel()).pvalue > 1e-6


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_ranks_that_outnumber_the_draws_repeat_them(draws):
    _, order = make_order([3, 4], draws)
    layout = Layout(7, 1, 1)
    rows = [drawn(order, share_of(Slots.run(0, draws), layout, rank, 0)) for rank in range(7)]
    assert all(len(row) == 1 for row in rows)
    assert Counter(row for [row] in rows).keys() == set(drawn(order, Slots.run(0, draws)))
