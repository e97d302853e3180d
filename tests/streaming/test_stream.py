import io
import os
import pickle
import tarfile
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset as wds
from scipy import stats
from shard_files import make_table, name_of, names, planned, write_shards
from shard_streams import DRAWS, OPTIONS, SEED, SMALL, loader_over, make, one_pass
from torch.utils.data import DataLoader

from flowdata import (
    Access,
    EpochPlan,
    FlowShards,
    LossTable,
    MismatchError,
    ShardError,
)
from flowdata.tar.indexing import index_shards


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_ranks_and_workers_together_draw_the_plan(urls, table, ranks, workers, batch_size):
    found, lengths = Counter(), set()
    for rank in range(ranks):
        stream = make(urls, table, num_replicas=ranks, rank=rank, batch_size=batch_size)
        drawn = one_pass(loader_over(stream, workers))
        lengths.add(len(drawn))
        found.update(drawn)
    assert lengths == {DRAWS // ranks} == {len(stream)}
    assert found == planned(table, **OPTIONS)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("sizes", "owing", "draws"),
    [
        ((1,), [0], 90),
        ((400,), [0], 90),
        ((1, 1, 1), [0, 1, 2], 5),
        ((500, 1, 1, 2), [0, 1, 2, 3], 90),
        ((20, 3, 20, 40, 1, 7), [1, 2, 5], 90),
    ],
    ids=str,
)
def test_few_or_uneven_shards_are_divided_evenly(tmp_path, sizes, owing, draws):
    """Fewer shards than workers, workers that owe no draw, and shards that owe none."""
    urls = write_shards(tmp_path, sizes)
    table = make_table(urls)
    index = table.index
    weights = np.random.default_rng(0).gamma(1, size=len(index)) * np.isin(index.shard, owing)
    counts = EpochPlan(weights, epoch_size=draws, seed=SEED).counts().tolist()
    expected = Counter(dict(zip(names(table), counts, strict=True)))
    found = Counter()
    for rank in range(3):
        stream = make(
            urls, index, weights=weights, epoch_size=draws, num_replicas=3, rank=rank, batch_size=5
        )
        drawn = one_pass(loader_over(stream, 4, batch_size=5))
        assert len(drawn) == -(-draws // 3)
        found.update(drawn)
    assert not expected - found
    assert (found - expected).total() == -draws % 3


def test_shards_that_owe_nothing_are_never_opened(tmp_path):
    urls = write_shards(tmp_path, (20, 20, 20))
    index = make_table(urls).index
    weights = np.repeat([1.0, 0.0, 1.0], 20)
    (tmp_path / "s-1.tar").unlink()
    drawn = list(make(urls, index, weights=weights, epoch_size=60))
    assert {name.split("/")[0] for name in drawn} == {"0", "2"}


def test_every_pass_is_the_next_epoch_in_loaders_of_all_kinds(urls, table):
    stream = make(urls, table, batch_size=8)
    persistent = loader_over(stream, 2, persistent_workers=True)
    loaders = [
        loader_over(stream, 2),
        loader_over(stream, 2),
        loader_over(stream, 0),
        loader_over(stream, 3),
        persistent,
        persistent,
    ]
    for epoch, loader in enumerate(loaders):
        assert stream.epoch == epoch
        assert Counter(one_pass(loader)) == planned(table, epoch=epoch, **OPTIONS)


def late_in_one(worker):
    if worker == 1:
        time.sleep(0.3)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_look_at_the_first_batch_leaves_no_worker_behind(urls, table, persistent):
    stream = make(urls, table, batch_size=8)
    options = {"persistent_workers": persistent, "worker_init_fn": late_in_one}
    loader = loader_over(stream, 2, **options)
    next(iter(loader))
    assert Counter(one_pass(loader)) == planned(table, epoch=1, **OPTIONS)
    stream.set_epoch(5)
    assert Counter(one_pass(loader)) == planned(table, epoch=5, **OPTIONS)
    loader = loader_over(stream, 2, **options)
    next(iter(loader))
    stream.set_epoch(0)
    for epoch in range(2):
        assert Counter(one_pass(loader)) == planned(table, epoch=epoch, **OPTIONS)


def test_loaders_that_persist_and_take_turns_go_on_from_one_another(urls, table):
    stream = make(urls, table, batch_size=8)
    loaders = [loader_over(stream, workers, persistent_workers=True) for workers in (2, 1, 2)]
    for epoch in range(6):
        found = Counter(one_pass(loaders[epoch % 3]))
        assert found == planned(table, epoch=epoch, **OPTIONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_set_epoch_says_which_epoch_the_next_pass_is(urls, table, workers):
    stream = make(urls, table)
    loader = loader_over(stream, workers, persistent_workers=workers > 0)
    orders = []
    for epoch in (4, 4, 0):
        stream.set_epoch(epoch)
        orders.append(one_pass(loader))
        assert Counter(orders[-1]) == planned(table, epoch=epoch, **OPTIONS)
    assert orders[0] == orders[1]


@pytest.mark.slow
def test_workers_that_are_spawned_draw_the_same(urls, table):
    stream = FlowShards(urls, table, **SMALL, batch_size=8).to_tuple("txt")
    forked = list(loader_over(stream, 2, collate_fn=pickle.dumps))
    stream.set_epoch(0)
    spawned = DataLoader(
        stream,
        batch_size=8,
        num_workers=2,
        collate_fn=pickle.dumps,
        multiprocessing_context="spawn",
    )
    assert list(spawned) == forked


def test_long_run_frequencies_follow_the_weights(urls, table):
    """Chi-square of 150 epochs of 30 multinomial draws, false alarms below 1e-6."""
    stream = FlowShards(urls, table, epoch_size=30, seed=1, scheme="multinomial").map(name_of)
    found = Counter(name for _ in range(150) for name in stream)
    weights = table.weights().relative
    expected = weights / weights.sum() * 4500
    observed = np.array([found[name] for name in names(table)])
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-6


def test_samples_are_those_of_webdataset_and_no_two_are_one(urls, table):
    expected = {
        (sample["__url__"], sample["__key__"]): sample
        for sample in wds.WebDataset(urls, shardshuffle=False, nodesplitter=wds.split_by_node)
    }
    samples = list(FlowShards(urls, table, **OPTIONS))
    for sample in samples:
        whole = expected[sample["__url__"], sample["__key__"]]
        assert sample == {name: whole[name] for name in whole if name != "__local_path__"}
    assert len({id(sample) for sample in samples}) == DRAWS


def test_stages_are_those_of_webdataset(urls, table):
    stream = FlowShards(urls, table, **OPTIONS)
    batches = list(stream.decode().to_tuple("txt", "bin").batched(64))
    assert [len(texts) for texts, _ in batches] == [64, 64, 64, 64, 44]
    assert len(stream.batched(64)) == 5
    assert len(stream.batched(64, partial=False)) == 4
    assert len(stream.compose(wds.batched(100))) == 3
    appended = stream.map(name_of)
    appended.append(wds.batched(64, collation_fn=list))
    assert len(appended) == len(list(appended)) == 5
    assert Counter(text for texts, _ in batches for text in texts) == planned(table, **OPTIONS)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_in_the_stream_are_whole_but_one(urls, table, workers):
    stream = make(urls, table).batched(32, collation_fn=list)
    loader = loader_over(stream, workers, batch_size=None)
    sizes = [len(batch) for batch in loader]
    assert len(sizes) == len(loader) == len(stream) == 10
    assert sorted(sizes) == [12] + [32] * 9


def test_a_loader_that_knows_the_batch_size_has_the_length_it_says(urls, table):
    for workers in (0, 1, 2, 3):
        loader = loader_over(make(urls, table, batch_size=32), workers, batch_size=32)
        assert [len(batch) for batch in loader] == [32] * 9 + [12]
        assert len(loader) == 10


def test_an_index_and_weights_do_for_a_table(urls, table):
    weights = np.arange(1.0, len(table) + 1)
    drawn = Counter(make(urls, table.index, weights=weights))
    counts = EpochPlan(weights, **OPTIONS).counts()
    assert [drawn[name] for name in names(table)] == counts.tolist()
    with pytest.raises(TypeError, match="give weights"):
        FlowShards(urls, table.index)
    with pytest.raises(MismatchError, match="3 weights for 331 samples"):
        FlowShards(urls, table.index, [1, 2, 3])
    with pytest.raises(TypeError, match="no index of shards"):
        FlowShards(urls, LossTable.from_losses([1.0]))


def test_a_table_is_read_from_its_file(urls, table, tmp_path):
    table.save(tmp_path / "losses.parquet")
    assert list(make(urls, tmp_path / "losses.parquet")) == list(make(urls, table))


def test_compressed_shards_give_the_same_draws_in_the_same_order(urls, table, tmp_path):
    packed = write_shards(tmp_path, mode="w:gz", suffix="tar.gz")
    stream = make(packed, make_table(packed))
    assert list(stream) == list(make(urls, table))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"window": 0}, "window must be"),
        ({"window": 65_536}, "65,536 together"),
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


def test_drop_last_leaves_out_the_draws_that_ranks_do_not_share(urls, table):
    found = Counter()
    for rank in range(7):
        found.update(make(urls, table, num_replicas=7, rank=rank, drop_last=True))
    assert found.total() == 294
    assert not found - planned(table, **OPTIONS)


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


# Safety


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


def test_memory_and_open_files_do_not_grow_with_the_shards(tmp_path):
    urls = write_shards(tmp_path, (60,) * 12, content=20_000)
    table = make_table(urls)
    stream = FlowShards(urls, table, window=50, shards_open=3)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    for _ in stream:
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
    assert 1 <= most <= 4
    assert len(os.listdir("/proc/self/fd")) <= before


def test_memory_is_that_of_a_window_not_of_the_shards(tmp_path):
    urls = write_shards(tmp_path, (200,) * 4, content=150_000)
    table = make_table(urls)
    stream = FlowShards(urls, table, window=20, shards_open=2)
    next(iter(stream))
    tracemalloc.start()
    try:
        for _ in stream:
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    largest = int(table.index.sizes.max())
    assert peak < 1.5 * (20 + 2) * largest < table.index.sizes.sum() / 10


def test_bytes_read_are_those_of_the_draws_when_samples_are_large(tmp_path):
    urls = write_shards(tmp_path, (100,) * 3, content=150_000)
    table = make_table(urls)
    stream = FlowShards(urls, table, epoch_size="distinct")
    rows = list(stream)
    assert len(rows) < 220
    owed = sum(
        int(table.index.sizes[row])
        for row in np.flatnonzero(EpochPlan(table, epoch_size="distinct").counts())
    )
    assert owed <= stream.bytes_read <= 1.15 * owed


def test_tensors_of_decoded_images_come_through_a_loader(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    with wds.TarWriter(str(tmp_path / "s-0.tar")) as tar:
        for sample in range(20):
            image = Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8))
            tar.write({"__key__": f"k{sample:04d}", "png": image, "cls": sample})
    url = str(tmp_path / "s-0.tar")
    stream = FlowShards(url, make_table(url), batch_size=4).decode("torchrgb")
    batches = list(loader_over(stream.to_tuple("png", "cls"), 2, batch_size=4))
    assert all(images.shape == (4, 3, 16, 16) for images, _ in batches)
    assert torch.cat([labels for _, labels in batches]).numel() == 20
