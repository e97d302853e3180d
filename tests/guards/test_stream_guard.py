"""StreamGuard: whose count of epochs a stream follows."""

import pytest
from shard_files import make_table, write_shards

from flowdata import FlowShards
from flowdata.errors import FlowDataWarning
from flowdata.guards.detection import Caller

pytestmark = pytest.mark.guard


@pytest.fixture
def stream(tmp_path):
    urls = write_shards(tmp_path, (5, 5))
    return FlowShards(urls, make_table(urls))


def test_an_epoch_of_accelerate_does_not_overrule_that_of_the_loop_in_silence(stream, monkeypatch):
    stream.set_epoch(1)
    accelerate = Caller(accelerate_iterates=True)
    monkeypatch.setattr("flowdata.guards.epochs.find_caller", lambda: accelerate)
    with pytest.warns(FlowDataWarning, match="epoch 1 was to be drawn"):
        stream.set_epoch(0)
    stream.set_epoch(1)


def test_an_epoch_that_accelerate_begins_again_is_named(stream, monkeypatch):
    stream.set_epoch(0)
    next(iter(stream))
    accelerate = Caller(accelerate_iterates=True)
    monkeypatch.setattr("flowdata.guards.epochs.find_caller", lambda: accelerate)
    with pytest.warns(FlowDataWarning, match="draws epoch 0 a second time"):
        stream.set_epoch(0)
