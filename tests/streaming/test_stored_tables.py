"""Streams by a table that stays in its file draw what they draw by one in memory."""

import itertools

import pytest
from shard_files import name_of
from shard_streams import SMALL, loader_over, make, one_pass

from flowdata import FlowShards, LossTable, ShardIndex
from flowdata.table import shard_index, stored_table


@pytest.fixture
def stored(table, tmp_path, monkeypatch):
    table.save(tmp_path / "losses.parquet")
    for module in (shard_index, stored_table):
        monkeypatch.setattr(module, "MOST_ROWS_HELD", 10)
    return tmp_path / "losses.parquet"


def named_with_weight(sample):
    return f"{name_of(sample)} {sample.get('__weight__')}"


def is_held(table):
    """Whether a column of all rows was read."""
    return "losses" in vars(table) or bool({"keys", "_places"} & vars(table.index).keys())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.5, "mode": "reweight"}, {"epoch_size": "ess"}])
def test_a_stream_draws_the_same_samples_without_holding_a_column(
    urls, table, stored, workers, options
):
    loaded = LossTable.load(stored)
    streams = [
        FlowShards(urls, some, **SMALL | options).map(named_with_weight) for some in (table, loaded)
    ]
    assert streams[0].state_dict() == streams[1].state_dict()
    loaders = [loader_over(stream, workers) for stream in streams]
    for _ in range(2):
        first, second = map(one_pass, loaders)
        assert first == second
        assert first
    assert not is_held(loaded)


def test_a_state_of_a_stream_by_a_table_in_memory_goes_on_by_its_file(urls, table, stored):
    stream = FlowShards(urls, table, **SMALL)
    names = [name_of(sample) for sample in stream]
    begun = FlowShards(urls, table, **SMALL)
    drawn = [name_of(sample) for sample in itertools.islice(begun, 77)]
    for some in (stored, LossTable.load(stored)):
        rest = FlowShards(urls, some, **SMALL)
        rest.load_state_dict(begun.state_dict())
        assert drawn + [name_of(sample) for sample in rest] == names


def test_an_index_that_stays_in_its_file_takes_weights_of_a_table_in_memory(urls, table, stored):
    index = ShardIndex.load(stored)
    by_index = FlowShards(urls, index, table.weights(), **SMALL)
    by_path = FlowShards(urls, stored, table.weights(), **SMALL)
    names = [[name_of(sample) for sample in stream] for stream in (by_index, by_path)]
    assert names[0] == names[1] == one_pass(loader_over(make(urls, table), 0))
