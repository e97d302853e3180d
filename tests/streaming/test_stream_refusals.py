"""FlowShards: what is refused, and what runs only if it is allowed."""

import io
import pickle
import tarfile
from collections import Counter

import pytest
import torch.distributed as dist
import webdataset as wds
from shard_files import make_table, planned
from shard_streams import DRAWS, OPTIONS, loader_over, make, one_pass

from flowdata import (
    Access,
    FlowShards,
    MismatchError,
    ShardError,
)
from flowdata.tar.indexing import index_shards


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"window": 0}, "window must be"),
        ({"window": 65_536}, "at most 65,536, got window=65,536 and shards_open=2"),
        ({"shards_open": 0}, "shards_open must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"num_replicas": 2}, "both num_replicas and rank"),
        ({"num_replicas": 2, "rank": 2}, "rank must be in"),
        ({"num_replicas": 301, "rank": 0, "drop_last": True}, "leaves no draw"),
    ],
)
def test_wrong_options_are_refused(urls, table, options, error):
    with pytest.raises(ValueError, match=error):
        make(urls, table, **options)


def test_what_would_break_the_epoch_is_refused_with_advice(urls, table):
    stream = FlowShards(urls, table)
    with pytest.raises(TypeError, match="larger window"):
        stream.shuffle(100)
    for stage in (wds.shuffle(50), wds.detshuffle(50)):
        with pytest.raises(TypeError, match="larger window"):
            stream.compose(stage)
        with pytest.raises(TypeError, match="larger window"):
            stream.append(stage)
    for refused in (stream.with_epoch, stream.with_length, stream.repeat, stream.slice):
        with pytest.raises(TypeError, match="epoch_size="):
            refused(10)


def twice(samples):
    for sample in samples:
        yield sample
        yield sample


def test_stages_that_make_several_samples_of_one_are_refused(urls, table):
    with pytest.raises(ValueError, match="several samples of one"):
        list(make(urls, table).compose(twice))
    with pytest.raises(ValueError, match="several items of a batch"):
        list(make(urls, table).batched(8, collation_fn=list).unbatched())


@pytest.mark.guard
def test_the_batch_size_must_be_that_of_the_loader(urls, table):
    told = make(urls, table, batch_size=20)
    batched = make(urls, table).batched(20, collation_fn=list)
    for stream, size, expected in ((told, 10, 20), (told, None, 20), (batched, 10, 1)):
        with pytest.raises(ValueError, match=f"takes {size or 1} items .* expects\\s+{expected}"):
            next(iter(loader_over(stream, 2, batch_size=size)))
    # One worker gives its draws in one order, whatever the batches.
    for workers in (0, 1):
        told.set_epoch(0)
        drawn = one_pass(loader_over(told, workers, batch_size=10))
        assert Counter(drawn) == planned(table, **OPTIONS)


def test_a_stream_built_before_the_ranks_are_known_is_refused(urls, table, monkeypatch):
    early, told = make(urls, table), make(urls, table, num_replicas=1, rank=0)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    for use in (len, list, pickle.dumps):
        with pytest.raises(RuntimeError, match="built for rank 0 of 1, but is used on rank 2 of 4"):
            use(early)
    assert len(make(urls, table)) == DRAWS // 4
    assert len(told) == len(list(told)) == DRAWS


def test_urls_must_be_those_of_the_table(urls, table, folder, tmp_path):
    with pytest.raises(MismatchError, match=r"2 shards .* not among the URLs, s-3\.tar first"):
        FlowShards(str(folder / "s-{0..2}.tar"), table)
    with pytest.raises(MismatchError, match=r"knows no shard .*other\.tar"):
        FlowShards([str(folder / "other.tar")], table)
    with pytest.raises(ShardError, match="given twice"):
        FlowShards([urls, urls], table)


@pytest.mark.guard
def test_a_framework_must_not_divide_the_stream_again(urls, table):
    from accelerate.data_loader import IterableDatasetShard

    def divided(stream):
        return [
            IterableDatasetShard(stream, batch_size=10, num_processes=2, process_index=rank)
            for rank in range(2)
        ]

    stream = make(urls, table, num_replicas=2, rank=0)
    with pytest.raises(RuntimeError, match="accelerate divides this stream"):
        list(divided(stream)[0])
    whole = make(urls, table, num_replicas=1, rank=0)
    drawn = Counter()
    for shard in divided(whole):
        whole.set_epoch(0)
        drawn.update(shard)
    assert drawn == planned(table, **OPTIONS)


def test_pickles_are_not_decoded_unless_asked_for(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        data = pickle.dumps({"a": 1})
        member = tarfile.TarInfo("k0000.pickle")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    url = str(tmp_path / "s-0.tar")
    table = make_table(url)
    with pytest.raises(
        ShardError, match=r"pickle of the sample 'k0000' .*s-0\.tar .*allow_pickle=True"
    ):
        list(FlowShards(url, table).decode())
    [sample] = FlowShards(url, table).decode(allow_pickle=True)
    assert sample["pickle"] == {"a": 1}
    own = wds.handle_extension("pickle", len)
    [sample] = FlowShards(url, table).decode(own)
    assert sample["pickle"] == len(data)


@pytest.mark.slow
def test_a_pipe_runs_only_if_it_is_allowed(folder, table):
    urls = [f"pipe:cat {folder}/s-{shard}.tar" for shard in range(5)]
    index = table.index
    with pytest.raises(ShardError, match="allow_pipe=True"):
        make_table(urls)
    allowed = Access(allow_pipe=True)
    piped = index_shards(urls, access=allowed, progress=False)
    assert piped.keys.equals(index.keys)
    stream = make(urls, piped, weights=table.weights(), access=allowed)
    assert Counter(stream) == planned(table, **OPTIONS)
