"""Streams whose batches are of samples about as long."""

from collections import Counter
from itertools import islice, pairwise

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from token_shards import as_tokens, lengths_of, make_token_table, write_token_shards

from flowdata import ByLength, FlowShards, MismatchError, Strata
from flowdata.core.permutation import Purpose, random_bits
from flowdata.core.shard_plan import ShardPlan
from flowdata.streaming.draw_order import StreamOrder, batches_by_length
from flowdata.streaming.order import Layout, share_of
from flowdata.streaming.slots import Slots

SIZES, BATCH = (120, 40, 160, 20), 10


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    return write_token_shards(tmp_path_factory.mktemp("shards"), SIZES)


@pytest.fixture(scope="module")
def table(urls):
    return make_token_table(urls)


def row_of(sample):
    return as_tokens(sample)["input_ids"][0]


def make(urls, table, *, ranks=1, rank=0, state=None, **options):
    options = {"arrange": ByLength(table, batch_size=BATCH), "epoch_size": 345} | options
    stream = FlowShards(urls, table, num_replicas=ranks, rank=rank, shards_open=4, **options)
    stream = stream.map(row_of)
    if state is not None:
        stream.load_state_dict(state)
    return stream


def padding(lengths, batch=BATCH):
    """The share of a batch's numbers that are padding, of an epoch's batches."""
    parts = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return 1 - sum(map(sum, parts)) / sum(max(part) * len(part) for part in parts)


def order_of(rows=6000, *, ranks=1, rank=0, window=1000, arrange=ByLength):
    lengths = lengths_of(rows, 1000, seed=3) + np.arange(rows) % 7
    plan = ShardPlan(
        np.random.default_rng(1).random(rows) + 0.1,
        np.linspace(0, rows, 31).astype(np.int64),
        arrange=arrange and arrange(lengths, batch_size=16),
    )
    share = share_of(Slots.run(0, rows), Layout(ranks, 1, 16 // ranks), rank, 0)
    windows = StreamOrder(plan, window=window, shards_open=8).windows(
        share, (0, rank, 0), ranks=ranks
    )
    drawn = [np.concatenate(window.rows)[window.order] for window, _ in windows]
    return lengths, drawn


@pytest.mark.parametrize("ranks", [1, 2])
def test_padding_is_nearly_that_of_windows_that_are_sorted(ranks):
    lengths, drawn = order_of(ranks=ranks)
    found = padding(lengths[np.concatenate(drawn)].tolist(), 16 // ranks)
    best = padding([n for rows in drawn for n in sorted(lengths[rows])], 16 // ranks)
    _, random = order_of(ranks=ranks, arrange=None)
    assert found < best + 0.02
    assert found < padding(lengths[np.concatenate(random)].tolist(), 16 // ranks) / 3


def test_the_order_of_batches_is_uncorrelated_with_length():
    """Of 375 batches, a rank correlation beyond 4.9 standard errors has a chance below 1e-6."""
    lengths, drawn = order_of()
    found = lengths[np.concatenate(drawn)][: 6000 // 16 * 16].reshape(-1, 16).mean(axis=1)
    assert abs(stats.spearmanr(found, np.arange(found.size)).statistic) < 4.9 / 375**0.5
    assert abs(stats.spearmanr(found[1:], found[:-1]).statistic) < 4.9 / 375**0.5


@examples(100)
@given(
    st.lists(st.integers(0, 50), max_size=90),
    st.integers(1, 12),
    st.integers(0, 40),
    st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_each_draw_of_a_window_comes_once(lengths, batch_size, start, places):
    random = random_bits(0, 0, Purpose.WINDOW_ORDER)
    found = batches_by_length(np.array(lengths, dtype=int), batch_size, start, places, random)
    assert sorted(found.tolist()) == list(range(len(lengths)))
    # Each whole batch is a run of the sorted lengths, or one with what went over a border left out.
    head = -start % batch_size
    whole = (len(lengths) - head) // batch_size
    taken = np.array(lengths)[found][head : head + max(whole, 0) * batch_size]
    spans = [(min(batch), max(batch)) for batch in taken.reshape(-1, batch_size)]
    spans.sort()
    assert all(first[1] <= second[0] for first, second in pairwise(spans))


def test_rows_are_drawn_as_often_as_the_plan_says(urls, table):
    stream = make(urls, table)
    expected = Counter(dict(enumerate(stream.plan.counts().tolist())))
    assert Counter(stream) == +expected


def test_batches_over_the_borders_of_windows_are_alike_too(urls, table):
    rows = list(make(urls, table, window=33, batch_size=BATCH))
    lengths = lengths_of(sum(SIZES))[rows]
    random = list(make(urls, table, window=33, arrange=None))
    assert padding(lengths) < 0.8 * padding(lengths_of(sum(SIZES))[random])


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_run_that_was_stopped_draws_the_rest_on_other_ranks(urls, table, ranks):
    expected = Counter(make(urls, table))
    before = [make(urls, table, ranks=2, rank=rank) for rank in range(2)]
    drawn = Counter(row for stream in before for row in islice(stream, 37))
    state = before[0].state_dict()
    after = [make(urls, table, ranks=ranks, rank=rank, state=state) for rank in range(ranks)]
    drawn += Counter(row for stream in after for row in stream)
    assert drawn.keys() == expected.keys()
    assert not expected - drawn
    assert (drawn - expected).total() <= 1 + -(345 - 74) % ranks


def test_a_loop_goes_on_where_it_was(urls, table):
    whole, running = list(make(urls, table, window=60)), make(urls, table, window=60)
    for step, _ in zip(range(1, 200), running, strict=False):
        if step % 23 == 0:
            after = make(urls, table, window=60, state=running.state_dict())
            assert list(after) == whole[step:]


def test_strata_may_be_given_as_arrangement(urls, table):
    groups = table.index.shard
    given_as = [{"strata": Strata(groups, BATCH)}, {"arrange": Strata(groups, BATCH)}]
    streams = [FlowShards(urls, table, **options).map(row_of) for options in given_as]
    assert list(streams[0]) == list(streams[1])
    assert streams[0].state_dict() == streams[1].state_dict()
    with pytest.raises(ValueError, match="strata= is another name for arrange="):
        FlowShards(urls, table, **given_as[0], **given_as[1])


def test_batches_that_are_not_those_of_the_arrangement_are_refused(urls, table):
    with pytest.raises(ValueError, match=r"ByLength is of batches of 10 draws over all ranks.* 3"):
        make(urls, table, ranks=3)
    with pytest.raises(ValueError, match=r"2 ranks with batches of 10: give ByLength\(batch_size"):
        make(urls, table, ranks=2, batch_size=10)
    with pytest.raises(MismatchError, match="lengths are of 3 rows"):
        make(urls, table, arrange=ByLength([1, 2, 3], batch_size=2))
    state = make(urls, table).state_dict()
    with pytest.raises(MismatchError, match="by_length"):
        make(urls, table, arrange=None, state=state)
