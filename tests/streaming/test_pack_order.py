"""The order of packs, without bytes: what workers, ranks and resumed runs get."""

from collections import Counter

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata.core import shard_packs
from flowdata.core.shard_packs import ShardPacks
from flowdata.core.shard_plan import ShardPlan
from flowdata.streaming.order import Layout, share_of
from flowdata.streaming.pack_order import PackOrder
from flowdata.streaming.slots import Slots

pytestmark = pytest.mark.usefixtures("small_clusters")


@pytest.fixture(scope="module")
def small_clusters():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_packs, "_LEAST_PACKS", 3)
        yield


def make_packs(sizes, draws, *, epoch=0, seed=5):
    random = np.random.default_rng(1)
    weights, lengths = random.random(sum(sizes)) + 0.01, random.integers(1, 13, sum(sizes))
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    plan = ShardPlan(weights, bounds, seed=seed, epoch=epoch, epoch_size=draws)
    return ShardPacks(plan, lengths, 12)


def given_out(order, slots, random_key=(0, 0, 0), skip=0):
    """The rows of each pack, in the order they come out."""
    found = []
    for window, done in order.windows(slots, random_key, skip):
        rows = np.concatenate(window.rows)[window.order].tolist()
        ends = np.cumsum(window.packs).tolist()
        assert len(rows) == ends[-1]
        assert done in (0, *ends[:-1])
        packs = [
            tuple(rows[end - size : end]) for size, end in zip(window.packs, ends, strict=True)
        ]
        found += packs[np.searchsorted(ends, done, side="right") :]
    return found


layouts = st.builds(Layout, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.booleans())
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)
draws = st.integers(1, 150)
shards_open = st.integers(1, 5)


@examples(40)
@given(sizes, draws, layouts, shards_open)
def test_all_workers_together_have_each_pack_of_the_plan(sizes, draws, layout, shards_open):
    packs = make_packs(sizes, draws)
    order, count = PackOrder(packs, shards_open=shards_open), len(packs)
    by_rank = [
        [
            pack
            for worker in range(layout.workers)
            for pack in given_out(
                order, share_of(Slots.run(0, count), layout, rank, worker), (0, rank, worker)
            )
        ]
        for rank in range(layout.ranks)
    ]
    assert {len(own) for own in by_rank} == {layout.per_rank(count)}
    found = Counter(pack for own in by_rank for pack in own)
    expected = Counter(tuple(pack.tolist()) for pack in packs.of(np.arange(count)))
    if layout.drop_last:
        assert not found - expected
        assert (expected - found).total() == count % layout.ranks
    else:
        assert not expected - found
        assert (found - expected).total() == -count % layout.ranks


@examples(40)
@given(sizes, draws, layouts, shards_open, st.data())
def test_what_is_left_and_what_was_done_are_the_epoch(sizes, draws, layout, shards_open, data):
    packs = make_packs(sizes, draws)
    order, count = PackOrder(packs, shards_open=shards_open), len(packs)
    own = layout.per_rank(count)
    done = min(data.draw(st.integers(0, -(-own // layout.batch))) * layout.batch, own)
    by_worker = layout.by_worker(count, done)
    left = order.remaining(Slots.run(0, count), layout, by_worker, 0)
    before = Counter()
    for rank in range(layout.ranks):
        for worker in range(layout.workers):
            share = share_of(Slots.run(0, count), layout, rank, worker)
            before.update(given_out(order, share, (0, rank, worker))[: by_worker[worker]])
    after, whole = Counter(given_out(order, left)), Counter(given_out(order, Slots.run(0, count)))
    assert not whole - (before + after)
    # More than the epoch are only the repeats that fill up the last ranks.
    assert ((before + after) - whole).total() <= -count % layout.ranks


@examples(40)
@given(sizes, draws, shards_open, st.data())
def test_skipping_packs_leaves_the_rest_as_it_was(sizes, draws, shards_open, data):
    packs = make_packs(sizes, draws)
    order, slots = PackOrder(packs, shards_open=shards_open), Slots.run(0, len(packs))
    skip = data.draw(st.integers(0, len(packs)))
    assert given_out(order, slots, skip=skip) == given_out(order, slots)[skip:]


@examples(40)
@given(sizes, draws, shards_open)
def test_windows_read_each_shard_onwards(sizes, draws, shards_open):
    packs = make_packs(sizes, draws)
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    reached, seen, group = {}, set(), 0
    for window, _ in PackOrder(packs, shards_open=shards_open).windows(
        Slots.run(0, len(packs)), (0,)
    ):
        if window.group != group:
            seen |= reached.keys()
            reached, group = {}, window.group
        for shard, rows, share in zip(window.shards, window.rows, window.shares, strict=True):
            assert shard not in seen
            assert bounds[shard] <= rows[0]
            assert rows[-1] < bounds[shard + 1]
            assert (np.diff(rows) >= 0).all()
            # A cluster is read in one window, by a worker that has it alone.
            assert rows[0] > reached.get(shard, -1)
            assert 0 < share <= 1
            reached[shard] = rows[-1]


def test_packs_of_a_window_are_of_several_shards_and_mixed():
    packs = make_packs([60] * 12, 720)
    assert packs.sections == 12
    order = PackOrder(packs, shards_open=4)
    windows = [window for window, _ in order.windows(Slots.run(0, len(packs)), (0,))]
    assert np.mean([len(window.shards) for window in windows]) > 3.5
    shards = [
        np.concatenate(window.rows)[window.order][np.cumsum([0, *window.packs[:-1]])] // 60
        for window in windows
    ]
    changes = np.mean([np.mean(np.diff(found) != 0) for found in shards])
    # Of packs of four shards in a random order three of four have another than the one before.
    assert abs(changes - 0.72) < 0.1


def test_an_order_is_a_function_of_seed_and_epoch_alone():
    def packs_of(seed, epoch):
        packs = make_packs([40, 10, 25, 60], 90, seed=seed, epoch=epoch)
        return tuple(given_out(PackOrder(packs, shards_open=2), Slots.run(0, len(packs))))

    keys = [(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = {key: packs_of(*key) for key in keys}
    assert len(set(orders.values())) == len(keys)
    assert {key: packs_of(*key) for key in keys} == orders


def test_sections_of_many_small_shards_are_open_as_about_so_many_shards():
    packs = make_packs([3] * 200, 600)
    assert packs.sections < 100
    for window, _ in PackOrder(packs, shards_open=16).windows(Slots.run(0, len(packs)), (0,)):
        assert len(window.shards) < 40
