"""What a stream says of its reading: of all workers, of the epoch that runs or ran last."""

import copy
import itertools
import logging
import pickle
import re
import zlib

import pytest
import torch
from server import ShardServer
from torch.utils.data import DataLoader

from flowdata import Access, FlowShards, ShardRows, score
from flowdata.streaming.stats import StreamStats

SAMPLES = 400


@pytest.fixture
def stream(urls, table):
    return FlowShards(urls, table, epoch_size=SAMPLES, seed=1, window=50, batch_size=8)


def read_through(stream, workers=0):
    if not workers:
        return list(stream)
    return list(DataLoader(stream, batch_size=8, num_workers=workers, collate_fn=len))


def check_whole_epoch(stats, epoch=0):
    assert (stats.epoch, stats.samples, stats.dropped) == (epoch, SAMPLES, 0)
    assert stats.bytes_read >= stats.bytes_owed > SAMPLES * 512
    assert stats.requests >= 5
    assert stats.seconds_waited > 0
    assert (stats.retries, stats.hedged, stats.hosts) == (0, 0, {})


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_statistics_of_an_epoch_are_those_of_all_workers(urls, table, workers):
    stream = FlowShards(urls, table, epoch_size=SAMPLES, window=50, batch_size=8)
    assert stream.stats() == StreamStats()
    assert str(stream.stats()) == "nothing read yet"
    for epoch in range(2):
        read_through(stream, workers)
        check_whole_epoch(stream.stats(), epoch)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_persist_show_the_epoch_that_they_are_in(stream, context):
    loader = DataLoader(
        stream, batch_size=8, num_workers=2, collate_fn=len, persistent_workers=True,
        multiprocessing_context=context,
    )  # fmt: skip
    for epoch in (0, 1):
        assert sum(loader) == SAMPLES
        check_whole_epoch(stream.stats(), epoch)


def test_a_pass_is_seen_while_it_runs_and_after_it_was_left(stream):
    iterator = iter(stream)
    before = 0
    for _ in range(3):
        list(itertools.islice(iterator, 60))
        stats = stream.stats()
        assert before < stats.samples <= SAMPLES
        before = stats.samples
    iterator.close()
    stats = stream.stats()
    assert stats.samples == 180
    assert stats.bytes_read >= stats.bytes_owed > 0
    # The next pass counts anew.
    next(iter(stream))
    assert stream.stats().epoch == 1
    assert stream.stats().samples <= 1


def test_streams_made_of_one_are_seen_through_it(stream):
    keys = stream.map(lambda sample: sample["__key__"])
    list(keys)
    check_whole_epoch(stream.stats(), 0)
    assert keys.stats() == stream.stats()
    first, other = iter(keys), iter(stream)
    next(first)
    next(other)
    # Of two passes side by side it is the one that began last.
    list(other)
    seen = stream.stats()
    assert seen.samples == SAMPLES
    list(first)
    assert stream.stats() == seen
    with stream:
        pass
    assert stream.stats() == seen


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_counts_for_itself(stream, copied):
    read_through(stream)
    seen = stream.stats()
    other = copied(stream)
    list(itertools.islice(other, 3))
    assert other.stats().samples == 3
    assert stream.stats() == seen


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.* draws were dropped")
def test_dropped_samples_and_those_before_a_resume_are_told_apart(stream, workers):
    kept = stream.select(lambda sample: zlib.crc32(sample["txt"]) % 5 > 0)
    read_through(kept, workers)
    stats = stream.stats()
    assert stats.samples == SAMPLES
    assert 20 < stats.dropped < 200
    state = stream.state_dict(position=240)
    stream.load_state_dict(state)
    read_through(stream, workers)
    assert stream.stats().samples == SAMPLES - 240


def test_each_worker_logs_one_line_when_it_has_given_out_its_part(urls, table, caplog):
    options = {"epoch_size": SAMPLES, "num_replicas": 2}
    stream = FlowShards(urls, table, rank=1, **options)
    with caplog.at_level(logging.WARNING, "flowdata"):
        list(stream)
    with caplog.at_level(logging.INFO, "flowdata"):
        list(itertools.islice(stream, 10))
        assert not caplog.records
        list(stream)
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("FlowShards (rank 1 of 2): epoch 2: 200 samples of ")
    assert record.getMessage().endswith(str(stream.stats()))


def test_workers_say_which_they_are(stream, capfd):
    def log_to_stderr(worker):
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)

    loader = DataLoader(
        stream, batch_size=8, num_workers=2, worker_init_fn=log_to_stderr, collate_fn=len
    )
    list(loader)
    lines = sorted(line for line in capfd.readouterr().err.splitlines() if "FlowShards" in line)
    assert [line.split(":")[0] for line in lines] == [
        "FlowShards (worker 0 of 2)",
        "FlowShards (worker 1 of 2)",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_is_named_with_what_it_took(folder, table, workers):
    with ShardServer(folder, fails=2) as server:
        urls = [
            server.url(f"s-{shard}.tar?secret={shard}").replace("//", "//me:secret@", 1)
            for shard in range(5)
        ]
        options = {"epoch_size": SAMPLES, "window": 50, "batch_size": 8}
        stream = FlowShards(urls, table, **options, access=Access(signed_by=["secret"]))
        read_through(stream, workers)
        stats = stream.stats()
        [(host, speed)] = stats.hosts.items()
        assert host == server.url("").rstrip("/")
        assert speed.latency > 0
        assert speed.bandwidth > 0
        assert stats.retries == 2
        assert stats.requests > 5
        assert SAMPLES * 512 < stats.bytes_owed <= stats.bytes_read <= server.bytes_sent
        assert stats.seconds_waited > 0
        assert f"; {host} " in str(stats)
        assert "; 2 retries" in str(stats)
        assert "secret" not in repr(stats)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_fetched_into_the_cache_is_told_once(folder, table, tmp_path, workers):
    lengths = sum((folder / f"s-{shard}.tar").stat().st_size for shard in range(5))
    with ShardServer(folder) as server:
        stream = FlowShards(
            [server.url(f"s-{shard}.tar") for shard in range(5)], table, window=50, batch_size=8,
            access=Access(cache_dir=tmp_path / "cache", cache_from=0), epoch_size=SAMPLES,
        )  # fmt: skip
        for kept in (lengths, 0):
            read_through(stream, workers)
            assert stream.stats().bytes_kept == kept
            assert ("fetched into the cache" in str(stream.stats())) is bool(kept)


def size_of(sample):
    return torch.tensor(float(len(sample["bin"])))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_bar_of_scoring_shows_what_is_read_of_shards_a_second(urls, capsys, workers):
    rows = ShardRows(urls, decode=size_of, progress=False)
    score(torch.nn.Linear(1, 1), rows, lambda _, sizes: sizes, num_workers=workers)
    [rate] = re.findall(r"([\d,.]+) MB/s\]", capsys.readouterr().err.split("\r")[-1])
    assert float(rate.replace(",", "")) > 0
