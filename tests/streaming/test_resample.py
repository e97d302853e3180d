import io
import itertools
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
import webdataset as wds
from scipy import stats
from shard_files import make_table, name_of, names, planned, write_shards
from torch.utils.data import DataLoader

import flowdata
from flowdata import Access, FlowDataWarning, FlowShards, LossTable, MismatchError, ShardRows
from flowdata.streaming import resample as resample_module
from flowdata.streaming.resample import resample
from flowdata.table import shard_index, stored_table
from flowdata.tar.indexing import index_shards
from flowdata.tar.names import ShardNames

OPTIONS = {"epoch_size": 400, "seed": 3}


def pipeline(urls, stage, **options):
    options = {"shardshuffle": False, "nodesplitter": None, "empty_check": False} | options
    return wds.WebDataset(urls, **options).compose(stage)


def names_of(samples):
    return Counter(name_of(sample) for sample in samples)


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_pass_draws_the_plan_whatever_worker_reads_a_shard(urls, table, workers):
    stage = resample(table, **OPTIONS)
    loader = DataLoader(pipeline(urls, stage), batch_size=None, num_workers=workers)
    for epoch in range(3):
        assert names_of(loader) == planned(table, epoch=epoch, **OPTIONS)


def test_a_count_does_not_depend_on_the_order_of_the_shards(urls, table):
    stage = resample(table, **OPTIONS)
    shuffled = pipeline(urls, stage, shardshuffle=100, seed=1).shuffle(50)
    assert names_of(shuffled) == planned(table, **OPTIONS)
    stage.set_epoch(0)
    for shard in range(5):
        url = urls.replace("{0..4}", str(shard))
        expected = planned(table, epoch=shard, **OPTIONS)
        found = names_of(pipeline(url, stage))
        assert found == {n: c for n, c in expected.items() if n.startswith(f"{shard}/")}


def test_set_epoch_reaches_workers_that_persist(urls, table):
    stage = resample(table, **OPTIONS)
    loader = DataLoader(
        pipeline(urls, stage), batch_size=None, num_workers=2, persistent_workers=True
    )
    for epoch in (5, 5, 1):
        stage.set_epoch(epoch)
        assert names_of(loader) == planned(table, epoch=epoch, **OPTIONS)


def late_in_one(worker):
    if worker == 1:
        time.sleep(0.3)


def test_a_look_at_the_first_sample_leaves_no_worker_behind(urls, table):
    stage = resample(table, **OPTIONS)
    loader = DataLoader(
        pipeline(urls, stage), batch_size=None, num_workers=2, worker_init_fn=late_in_one
    )
    next(iter(loader))
    assert names_of(loader) == planned(table, epoch=1, **OPTIONS)


def test_a_table_is_read_from_its_file(urls, table, tmp_path):
    table.save(tmp_path / "losses.parquet")
    for path in (tmp_path / "losses.parquet", str(tmp_path / "losses.parquet")):
        assert names_of(pipeline(urls, resample(path, **OPTIONS))) == planned(table, **OPTIONS)


def test_after_a_shuffle_the_keys_of_a_shard_are_looked_up_once(urls, table, monkeypatch):
    asked = []
    number = ShardNames.number
    monkeypatch.setattr(
        ShardNames, "number", lambda names, url: asked.append(url) or number(names, url)
    )
    options = {"shardshuffle": False, "nodesplitter": None, "empty_check": False}
    shuffled = wds.WebDataset(urls, **options).shuffle(300, initial=300)
    assert names_of(shuffled.compose(resample(table, **OPTIONS))) == planned(table, **OPTIONS)
    assert len(asked) == len(set(asked)) == 5


def test_it_works_in_a_data_pipeline_before_decoding_and_batching(urls, table):
    dataset = wds.DataPipeline(
        wds.SimpleShardList(urls),
        wds.tarfile_to_samples(),
        resample(table, **OPTIONS),
        wds.shuffle(100),
        wds.decode(),
        wds.to_tuple("txt"),
        wds.batched(50),
    )
    batches = list(dataset)
    assert Counter(text for [texts] in batches for text in texts) == planned(table, **OPTIONS)


def test_copies_are_dicts_of_their_own(urls, table):
    stage = resample(table.index, np.ones(len(table)), epoch_size=2.0)
    samples = list(pipeline(urls, stage))
    assert len({id(sample) for sample in samples}) == 2 * len(table)
    samples[0]["txt"] = None
    assert samples[1]["txt"] == b"0/0"


def test_copies_do_not_come_out_side_by_side_after_a_shuffle(urls, table):
    stage = resample(table.index, np.ones(len(table)), epoch_size=3.0)
    drawn = [name_of(sample) for sample in pipeline(urls, stage).shuffle(300, initial=300)]
    adjacent = sum(first == second for first, second in itertools.pairwise(drawn))
    # In a random order of 3 copies each, 2 of 993 are expected.
    assert len(drawn) == 993
    assert adjacent < 25


@pytest.mark.slow
def test_long_run_frequencies_follow_the_weights(urls, table):
    """Chi-square of 150 epochs of 30 multinomial draws, false alarms below 1e-6."""
    dataset = pipeline(urls, resample(table, epoch_size=30, scheme="multinomial", seed=2))
    found = sum((names_of(dataset) for _ in range(150)), Counter())
    weights = table.weights().relative
    expected = weights / weights.sum() * 4500
    observed = np.array([found[name] for name in names(table)])
    rare = expected < 5
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected).pvalue > 1e-6


def test_samples_that_the_table_does_not_know_are_refused(urls, table, tmp_path):
    other = write_shards(tmp_path, (60, 3, 200, 1, 77))
    with pytest.raises(MismatchError, match=r"no sample 'k0050' of .*s-0\.tar"):
        list(pipeline(other, resample(table)))
    moved = tmp_path / "moved.tar"
    moved.write_bytes((tmp_path / "s-0.tar").read_bytes())
    with pytest.raises(MismatchError, match=r"knows no shard .*moved\.tar"):
        list(pipeline(str(moved), resample(table)))
    with pytest.raises(TypeError, match="no index of shards"):
        resample(LossTable.from_losses([1.0, 2.0]))


@pytest.mark.slow
def test_it_is_found_in_the_package_without_importing_webdataset_first():
    import subprocess
    import sys

    code = "import sys, flowdata; assert 'webdataset' not in sys.modules; flowdata.resample"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert flowdata.resample is resample
    with pytest.raises(AttributeError, match="no_such_name"):
        flowdata.no_such_name  # noqa: B018


def test_what_is_no_raw_sample_any_more_is_refused(urls, table):
    pipeline = wds.WebDataset(urls, shardshuffle=False).to_tuple("bin").compose(resample(table))
    with pytest.raises(TypeError, match=r"was given tuple, not a raw sample.* before"):
        next(iter(pipeline))


def test_names_that_are_not_utf8_are_found_too(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w", encoding="latin-1") as tar:
        for name in ("café.txt", "tea.txt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"0/0"))
    url = str(tmp_path / "s-0.tar")
    stage = resample(index_shards(url, progress=False), [2.0, 1.0], epoch_size=3)
    assert sum(names_of(pipeline(url, stage)).values()) == 3


def test_the_file_of_an_index_does_with_weights(urls, table, tmp_path):
    table.index.save(tmp_path / "index.parquet")
    stage = resample(tmp_path / "index.parquet", table.weights(), **OPTIONS)
    assert names_of(pipeline(urls, stage)) == planned(table, **OPTIONS)


def test_pipelines_that_use_one_stage_at_once_are_warned_and_with_their_own_draw_the_same(
    urls, table
):
    dataset = pipeline(urls, resample(table, **OPTIONS))
    one, other = dataset.map(name_of), dataset.map(name_of)
    with pytest.warns(FlowDataWarning, match="two pipelines, .* a stage of its own"):
        pairs = list(zip(one, other, strict=False))
    assert any(first != second for first, second in pairs)
    # One after the other they take turns, also where one is left early.
    next(iter(one))
    assert names_of(pipeline(urls, dataset.pipeline[-1])) == planned(table, epoch=3, **OPTIONS)
    own = [pipeline(urls, resample(table, **OPTIONS)).map(name_of) for _ in range(2)]
    assert all(first == second for first, second in zip(*own, strict=True))


def test_keys_are_held_some_at_a_time_and_those_in_another_order_are_found(
    urls, table, monkeypatch
):
    monkeypatch.setattr(resample_module, "_BLOCK", 16)
    keys_read = []
    plain_keys = resample_module.plain_keys
    monkeypatch.setattr(
        resample_module, "plain_keys", lambda keys: keys_read.append(len(keys)) or plain_keys(keys)
    )
    stage = resample(table, **OPTIONS)
    times = planned(table, **OPTIONS)
    assert names_of(pipeline(urls, stage)) == times
    assert max(keys_read) == 16
    assert sum(keys_read) == len(table)
    raw = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    for samples in (raw[::-1], raw[::7] + raw, [raw[40], *raw[40:], raw[40]]):
        stage.set_epoch(0)
        expected = Counter()
        for sample in samples:
            expected[name_of(sample)] += times[name_of(sample)]
        assert names_of(stage(samples)) == +expected
    # One shard read again and again, as webdataset does with resampled=True.
    keys_read.clear()
    stage.set_epoch(0)
    assert sum(1 for _ in stage(raw[:50] * 3)) == 3 * sum(times[f"0/{n}"] for n in range(50))
    assert max(keys_read) == 16


@pytest.mark.parametrize(
    "form",
    ["pipe:cat {}/s-{{0..4}}.tar", "file:{}/s-{{0..4}}.tar", "pipe:cat<'{}/s-{{0..4}}.tar'|cat"],
)
def test_shards_are_known_by_whatever_url_webdataset_reads_them(folder, table, form):
    stage = resample(table, **OPTIONS)
    assert names_of(pipeline(form.format(folder), stage)) == planned(table, **OPTIONS)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_it_draws_as_flowshards_of_the_same_seed_does(urls, table, scheme):
    options = OPTIONS | {"scheme": scheme}
    dataset, stream = pipeline(urls, resample(table, **options)), FlowShards(urls, table, **options)
    for _ in range(2):
        assert names_of(dataset) == names_of(stream)


def test_commands_are_the_shards_of_a_table_for_streams_and_rows_too(folder, table):
    urls = [f"pipe:cat {folder}/s-{shard}.tar || true" for shard in range(5)]
    access = Access(allow_pipe=True)
    stream = FlowShards(urls[::-1], table, access=access, **OPTIONS)
    assert names_of(stream) == planned(table, **OPTIONS)
    rows = ShardRows(urls, index=table.index, access=access)
    assert [name_of(rows[row]) for row in (0, 60, 330)] == ["0/0", "2/7", "4/76"]
    with pytest.raises(MismatchError, match=r"knows no shard pipe:cat .*s-5\.tar"):
        FlowShards([*urls, f"pipe:cat {folder}/s-5.tar"], table, access=access)
    # Scored through commands, and read from the disk.
    piped = index_shards(urls, access=access, progress=False)
    assert piped.shards == table.index.shards
    paths = [f"{folder}/s-{shard}.tar" for shard in range(5)]
    local = FlowShards(paths, piped, table.weights(), **OPTIONS)
    assert names_of(local) == planned(table, **OPTIONS)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_that_stays_in_its_file_is_read_shard_by_shard(
    urls, table, tmp_path, monkeypatch, workers
):
    table.save(tmp_path / "losses.parquet")
    for module in (shard_index, stored_table):
        monkeypatch.setattr(module, "MOST_ROWS_HELD", 100)
    stored = LossTable.load(tmp_path / "losses.parquet")
    dataset = pipeline(urls, resample(stored, **OPTIONS))
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    for epoch in range(2):
        assert names_of(loader) == planned(table, epoch=epoch, **OPTIONS)
    # A column of all rows would be held from then on.
    assert "losses" not in vars(stored)
    assert not {"shard", "keys", "_places"} & vars(stored.index).keys()


@pytest.mark.parametrize("most", [16, 2])
def test_shards_in_turn_are_looked_up_once_each_while_there_is_room(tmp_path, monkeypatch, most):
    keys_read = []
    plain_keys = resample_module.plain_keys
    monkeypatch.setattr(
        resample_module, "plain_keys", lambda keys: keys_read.append(len(keys)) or plain_keys(keys)
    )
    for name, number in (("_BLOCK", 16), ("_MOST_SHARDS", most), ("_SHARDS", min(most, 8))):
        monkeypatch.setattr(resample_module, name, number)
    urls = write_shards(tmp_path, (40,) * 12, content=1)
    table = make_table(urls)
    raw = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    in_turn = [sample for first in range(40) for sample in raw[first::40]]
    assert names_of(resample(table, **OPTIONS)(in_turn)) == planned(table, **OPTIONS)
    assert (sum(keys_read) == len(table)) == (most == 16)
