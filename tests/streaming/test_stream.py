import itertools
import os
import pickle
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
import webdataset as wds
from long_run import some
from scipy import stats
from shard_files import make_table, name_of, names, planned, write_shards
from shard_places import AWAY, PLACES
from shard_streams import DRAWS, OPTIONS, SEED, SMALL, loader_over, make, one_pass
from torch.utils.data import DataLoader

from flowdata import (
    FlowShards,
    LossTable,
    MismatchError,
)
from flowdata.core.shard_plan import ShardPlan

LAYOUTS = list(itertools.product([1, 2, 3], [0, 1, 4], [None, 8]))
FEW = some(LAYOUTS, (1, 4, None), (3, 0, 8))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("place", "layout"),
    [("local", layout) for layout in LAYOUTS] + list(itertools.product(AWAY, FEW)),
    scope="module",
)
def test_ranks_and_workers_together_draw_the_plan(urls, table, layout):
    ranks, workers, batch_size = layout
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
    counts = ShardPlan(weights, index.bounds(), epoch_size=draws, seed=SEED).counts().tolist()
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


@pytest.mark.parametrize("place", PLACES, scope="module")
def test_a_loader_that_knows_the_batch_size_has_the_length_it_says(urls, table):
    for workers in (0, 1, 2, 3):
        loader = loader_over(make(urls, table, batch_size=32), workers, batch_size=32)
        assert [len(batch) for batch in loader] == [32] * 9 + [12]
        assert len(loader) == 10


def test_an_index_and_weights_do_for_a_table(urls, table):
    weights = np.arange(1.0, len(table) + 1)
    drawn = Counter(make(urls, table.index, weights=weights))
    counts = ShardPlan(weights, table.index.bounds(), **OPTIONS).counts()
    assert [drawn[name] for name in names(table)] == counts.tolist()
    with pytest.raises(TypeError, match="give weights"):
        FlowShards(urls, table.index)
    for too_few in ([1, 2, 3], LossTable.from_losses([0.3, 0.1, 0.2])):
        with pytest.raises(MismatchError, match="3 weights for 331 samples"):
            FlowShards(urls, table.index, too_few)
    with pytest.raises(TypeError, match="no index of shards"):
        FlowShards(urls, LossTable.from_losses([1.0]))


def test_a_table_is_read_from_its_file(urls, table, tmp_path):
    table.save(tmp_path / "losses.parquet")
    assert list(make(urls, tmp_path / "losses.parquet")) == list(make(urls, table))


def test_compressed_shards_give_the_same_draws_in_the_same_order(urls, table, tmp_path):
    packed = write_shards(tmp_path, mode="w:gz", suffix="tar.gz")
    stream = make(packed, make_table(packed))
    assert list(stream) == list(make(urls, table))


def test_drop_last_leaves_out_the_draws_that_ranks_do_not_share(urls, table):
    found = Counter()
    for rank in range(7):
        found.update(make(urls, table, num_replicas=7, rank=rank, drop_last=True))
    assert found.total() == 294
    assert not found - planned(table, **OPTIONS)


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
    owed = sum(int(table.index.sizes[row]) for row in np.flatnonzero(stream.plan.counts()))
    rows = list(stream)
    assert len(rows) < 220
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
