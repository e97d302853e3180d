"""Streams whose batches are filled evenly from groups."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from shard_files import make_table, name_of, names, write_shards

from flowdata import FlowShards, Strata

SIZES, BATCH = (60, 40, 80, 20), 10


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), SIZES, content=50)


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)


@pytest.fixture(scope="module")
def groups(table):
    """The groups of the rows, each in a shard of its own but for the last, as files often are."""
    return np.minimum(table.index.shard, 2)


def make(urls, table, groups, *, ranks=1, rank=0, state=None, **options):
    strata = Strata(groups, batch_size=BATCH, levels=2)
    stream = FlowShards(
        urls,
        table,
        np.ones(len(table)),
        strata=strata,
        num_replicas=ranks,
        rank=rank,
        epoch_size=200,
        shards_open=4,
        **options,
    ).map(name_of)
    if state is not None:
        stream.load_state_dict(state)
    return stream


def batches(drawn, size=BATCH):
    return [drawn[start : start + size] for start in range(0, len(drawn), size)]


def groups_in(batch):
    return np.bincount([min(int(name.split("/")[0]), 2) for name in batch], minlength=3)


def test_every_batch_has_its_share_of_each_group(urls, table, groups):
    drawn = list(make(urls, table, groups, batch_size=BATCH))
    found = np.array([groups_in(batch) for batch in batches(drawn)])
    assert (np.abs(found - [3, 2, 5]) <= 2).all()
    # At random, a group of five tenths varies by 1.6; here nearly not at all.
    assert found.std(axis=0).max() < 1
    plain = FlowShards(urls, table, np.ones(len(table)), epoch_size=200, shards_open=4)
    random = [groups_in(batch) for batch in batches(list(plain.map(name_of)))]
    assert np.array(random).std(axis=0).max() > 1.1


def test_rows_are_drawn_as_often_as_without_strata_are_owed(urls, table, groups):
    stream = make(urls, table, groups)
    counts = dict(zip(names(table), stream.plan.counts().tolist(), strict=True))
    assert Counter(stream) == Counter(counts)
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_a_run_that_was_stopped_draws_the_rest_on_other_ranks(urls, table, groups, ranks):
    expected = Counter(make(urls, table, groups))
    before = [make(urls, table, groups, ranks=2, rank=rank) for rank in range(2)]
    drawn = Counter(name for stream in before for name in islice(stream, 37))
    state = before[0].state_dict()
    after = [
        make(urls, table, groups, ranks=ranks, rank=rank, state=state) for rank in range(ranks)
    ]
    drawn += Counter(name for stream in after for name in stream)
    assert drawn.keys() == expected.keys()
    assert not expected - drawn
    assert (drawn - expected).total() == -(200 - 74) % ranks


def test_batches_that_are_not_those_of_the_strata_are_refused(urls, table, groups):
    with pytest.raises(ValueError, match=r"batches of 10 draws over all ranks.* 3 ranks"):
        make(urls, table, groups, ranks=3)
    with pytest.raises(ValueError, match="2 ranks with batches of 10"):
        make(urls, table, groups, ranks=2, batch_size=10)
    stream = make(urls, table, groups, ranks=2).batched(4)
    with pytest.raises(ValueError, match="2 ranks with batches of 4"):
        next(iter(stream))
