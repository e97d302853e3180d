"""Streams over shards that are damaged, or gone, and samples that are dropped."""

import re
from collections import Counter

import numpy as np
import pytest
import webdataset as wds
from shard_files import make_table, name_of, names, planned
from shard_places import PLACES
from shard_streams import DRAWS, OPTIONS, SMALL, loader_over, make, one_pass

from flowdata import (
    FlowDataWarning,
    FlowShards,
    ShardError,
)

pytestmark = pytest.mark.parametrize("place", PLACES, scope="module")


@pytest.fixture(scope="module")
def table(local_urls):
    """Without the versions that a server tells: what is damaged here happened on the way to it."""
    return make_table(local_urls)


def damaged_copy(folder, target, shard, change):
    for path in folder.glob("s-*.tar"):
        content = path.read_bytes()
        (target / path.name).write_bytes(change(content) if path.name == shard else content)
    return str(target / "s-{0..4}.tar")


def overwrite(table, shard, sample):
    """Change the header of one sample into nonsense, at the same length."""
    row = table.index.bounds()[shard] + sample
    offset = int(table.index.offsets[row])
    return lambda content: content[:offset] + b"\xff" * 512 + content[offset + 512 :]


def test_a_shard_of_another_length_is_noticed_before_anything_is_read(
    folder, table, tmp_path, moved
):
    urls = damaged_copy(folder, tmp_path, "s-2.tar", lambda content: content + bytes(512))
    urls = moved(urls)
    with pytest.raises(ShardError, match=r"s-2\.tar has .* bytes, but .* when it was indexed"):
        list(make(urls, table))


def test_a_corrupt_sample_is_named_with_its_shard(folder, table, tmp_path, moved):
    urls = damaged_copy(folder, tmp_path, "s-2.tar", overwrite(table, 2, 0))
    urls = moved(urls)
    with pytest.raises(ShardError, match=r"s-2\.tar .*'k0000'"):
        list(FlowShards(urls, table.index, weights=np.ones(len(table))))


@pytest.mark.filterwarnings("default::flowdata.FlowDataWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_corrupt_samples_keeps_the_length(folder, table, tmp_path, moved, workers):
    urls = damaged_copy(folder, tmp_path, "s-2.tar", overwrite(table, 2, 5))
    urls = moved(urls)
    weights = np.ones(len(table))
    stream = make(urls, table.index, weights=weights, epoch_size="full", handler=is_shard_error)
    drawn = Counter(one_pass(loader_over(stream, workers)))
    assert drawn.total() == len(table)
    assert set(names(table)) - drawn.keys() == {"2/5"}


def is_shard_error(error):
    return isinstance(error, ShardError)


def test_a_missing_shard_can_be_done_without(folder, table, tmp_path, place, moved):
    urls = damaged_copy(folder, tmp_path, "none", bytes)
    (tmp_path / "s-2.tar").unlink()
    urls = moved(urls)
    with pytest.raises(ShardError, match="there is no shard" if place == "local" else "s-2.tar"):
        list(make(urls, table))
    stream = make(urls, table, handler=lambda error: True)
    expected = planned(table, **OPTIONS)
    with pytest.warns(FlowDataWarning, match="draws were dropped in epoch 0") as warned:
        drawn = Counter(stream)
    dropped, of_all = map(int, re.findall(r"\d+", str(warned[0].message))[:2])
    lost = sum(count for name, count in expected.items() if name.startswith("2/"))
    assert of_all - dropped == DRAWS
    assert dropped >= lost
    assert drawn.total() == DRAWS
    assert {name: drawn[name] for name in drawn if name.startswith("2/")} == {}
    assert not Counter({n: c for n, c in expected.items() if not n.startswith("2/")}) - drawn


def test_samples_that_a_stage_drops_are_replaced(urls, table):
    def fails(sample):
        if sample["txt"].startswith(b"0/"):
            raise ValueError("cannot decode")
        return name_of(sample)

    stream = FlowShards(urls, table, **SMALL).map(fails, handler=wds.ignore_and_continue)
    with pytest.warns(FlowDataWarning, match="replaced by others"):
        drawn = list(stream)
    assert len(drawn) == DRAWS
    assert not any(name.startswith("0/") for name in drawn)
    nothing = FlowShards(urls, table, **SMALL).select(lambda sample: False)
    with pytest.raises(ShardError, match="none of the 300 samples"):
        list(nothing)
