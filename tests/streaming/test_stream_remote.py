"""FlowShards over a real HTTP server and over fsspec."""

import os
import signal
import threading
import tracemalloc
from collections import Counter
from functools import partial

import fsspec
import numpy as np
import pytest
from hostile import HostileServer
from server import ShardServer
from shard_files import make_table, name_of, planned, write_shards
from torch.utils.data import DataLoader

from flowdata import Access, FlowShards, LossTable, ShardError, ShardRows, score
from flowdata.tar.indexing import index_shards

OPTIONS = {"epoch_size": 300, "seed": 3}
SMALL = OPTIONS | {"window": 40, "shards_open": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return make_table(str(folder / "s-{0..4}.tar"))


def make(urls, table, **options):
    return FlowShards(urls, table, **SMALL | options).map(name_of)


SERVERS = [{"ranges": True}, {"ranges": False}, {"head": False}]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("options", SERVERS, ids=lambda options: next(iter(options)))
def test_an_epoch_over_http_is_that_of_local_shards(folder, table, options, workers):
    local = make(str(folder / "s-{0..4}.tar"), table, batch_size=8)
    with ShardServer(folder, **options) as server:
        remote = make(server.url("s-{0..4}.tar"), table, batch_size=8)
        for _ in range(2):
            batches = list(DataLoader(remote, batch_size=8, num_workers=workers))
            assert batches == list(DataLoader(local, batch_size=8, num_workers=workers))


def test_what_is_not_drawn_is_not_fetched(tmp_path):
    urls = write_shards(tmp_path, (100,) * 3, content=150_000)
    table = make_table(urls)
    with ShardServer(tmp_path, ranges=True) as server:
        access = Access(most_overread=1.1)
        urls = server.url("s-{0..2}.tar")
        stream = FlowShards(urls, table, epoch_size="distinct", access=access)
        rows = sum(1 for _ in stream)
        assert rows < 220
        whole = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
        assert server.bytes_sent < 0.85 * whole
        assert stream.bytes_read <= server.bytes_sent <= 1.1 * stream.bytes_read


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_costs_a_retry_and_no_sample(folder, table, ranges):
    with ShardServer(folder, ranges=ranges, cut_after=1500, cuts=5) as server:
        drawn = Counter(make(server.url("s-{0..4}.tar"), table))
    assert drawn == planned(table, **OPTIONS)


def test_a_server_that_is_busy_at_first_is_asked_again(folder, table):
    with ShardServer(folder, ranges=True, fail_status=503, fails=4) as server:
        drawn = Counter(make(server.url("s-{0..4}.tar"), table))
    assert drawn == planned(table, **OPTIONS)


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_fails_for_good_is_named_without_its_secrets(folder, table, status):
    with ShardServer(folder, ranges=True, fail_status=status, fails=10**9) as server:
        urls = [server.url(f"s-{shard}.tar") + "?signature=secret" for shard in range(5)]
        stream = make(urls, table, access=Access(retries=2))
        with pytest.raises(ShardError, match=f"HTTP {status}") as caught:
            list(stream)
    assert "secret" not in str(caught.value)
    assert ".tar" in str(caught.value)


def test_shards_are_indexed_and_scored_over_http(folder, table):
    with ShardServer(folder, ranges=True) as server:
        index = index_shards(server.url("s-{0..4}.tar"), progress=False)
        assert index.shards == table.index.shards
        assert index.offsets.tolist() == table.index.offsets.tolist()
        assert index.lengths.tolist() == table.index.lengths.tolist()
        rows = ShardRows(server.url("s-{0..4}.tar"), decode=size_of, progress=False)
        import torch

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.unused = torch.nn.Parameter(torch.zeros(1))

        scored = score(Model(), rows, lambda model, batch: batch.float() / 1000, progress=False)
    local = ShardRows(str(folder / "s-{0..4}.tar"), decode=size_of, progress=False)
    expected = [local[row] / 1000 for row in range(len(local))]
    assert scored.losses.tolist() == pytest.approx(expected, rel=1e-6)


def size_of(sample):
    return len(sample["bin"])


def test_a_cache_fetches_every_shard_once(folder, table, tmp_path):
    access = Access(cache_dir=tmp_path)
    with ShardServer(folder, ranges=True) as server:
        urls = server.url("s-{0..4}.tar")
        first = Counter(make(urls, table, access=access))
        sent = server.bytes_sent
        stream = make(urls, table, access=access)
        assert Counter(stream) == first == planned(table, **OPTIONS)
        assert server.bytes_sent == sent
    assert sent == pytest.approx(sum(p.stat().st_size for p in folder.glob("*.tar")), rel=0.01)


def test_anything_fsspec_opens_will_do(folder, table):
    files = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        files.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    try:
        urls = "memory://bucket/s-{0..4}.tar"
        assert index_shards(urls, progress=False).keys.equals(table.index.keys)
        assert Counter(make(urls, table)) == planned(table, **OPTIONS)
    finally:
        files.rm("/bucket", recursive=True)


def test_file_urls_are_local(folder, table):
    urls = [f"file://{folder}/s-{shard}.tar" for shard in range(5)]
    assert Counter(make(urls, table)) == planned(table, **OPTIONS)


def test_a_shard_that_changed_on_the_server_is_noticed(folder, table, tmp_path):
    for path in folder.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes() + bytes(10_240))
    with ShardServer(tmp_path, ranges=True) as server:
        stream = make(server.url("s-{0..4}.tar"), table)
        with pytest.raises(ShardError, match=r"bytes, but .* when it was indexed"):
            list(stream)


def test_a_table_of_http_shards_fits_their_local_copies(folder, tmp_path):
    with ShardServer(folder, ranges=True) as server:
        table = make_table(server.url("s-{0..4}.tar"))
    table.save(tmp_path / "losses.parquet")
    again = LossTable.load(tmp_path / "losses.parquet")
    drawn = Counter(make(str(folder / "s-{0..4}.tar"), again))
    assert drawn == planned(table, **OPTIONS)


def test_a_compressed_shard_is_sent_once(tmp_path):
    urls = write_shards(tmp_path, (300,) * 3, mode="w:gz", suffix="tar.gz")
    table = make_table(urls)
    with ShardServer(tmp_path) as server:
        stream = FlowShards(server.url("s-{0..2}.tar.gz"), table, window=900, shards_open=3)
        assert sum(1 for _ in stream) == 900
        assert len([request for request in server.requests if "HEAD" not in str(request)]) == 3


def test_a_server_without_ranges_sends_every_shard_once(tmp_path):
    urls = write_shards(tmp_path, (300,) * 3, content=3000)
    table = make_table(urls)
    with ShardServer(tmp_path, ranges=False) as server:
        stream = FlowShards(server.url("s-{0..2}.tar"), table, window=600, shards_open=3)
        assert sum(1 for _ in stream) == 900
        assert len(server.requests) == 3
        whole = sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
        assert server.bytes_sent <= whole


def test_a_pass_is_left_while_a_server_without_ranges_stands_still(tmp_path, request):
    urls = write_shards(tmp_path, (40,), content=60_000)
    content, table = (tmp_path / "s-0.tar").read_bytes(), make_table(urls)
    in_vain, interrupt = [], partial(os.kill, os.getpid(), signal.SIGINT)
    # Whatever a test before has left in its place.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(partial(signal.signal, signal.SIGINT, before))

    def stalling(connection):
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content))
        connection.send(content[:5000])
        threading.Timer(0.3, interrupt).start()
        if not connection.wait(8):
            in_vain.append("somebody waited for the server")
        connection.hang_up()

    with HostileServer(content, stalling) as server:
        samples = iter(FlowShards([server.url("s-0.tar")], table, epoch_size=60))
        with pytest.raises(KeyboardInterrupt):
            next(samples)
        assert not in_vain


def test_draws_of_a_sample_in_two_windows_do_not_begin_a_compressed_shard_again(tmp_path):
    urls = write_shards(tmp_path, (400,) * 2, mode="w:gz", suffix="tar.gz", content=300)
    index = index_shards(urls, progress=False)
    weights = np.random.default_rng(0).gamma(0.3, size=len(index))
    stream = FlowShards(urls, index, weights, window=20, shards_open=2)
    assert sum(1 for _ in stream) == 800
    assert stream.bytes_read <= 1.2 * index.sizes.sum()


def test_a_window_is_let_go_of_before_the_next_is_read(tmp_path):
    urls = write_shards(tmp_path, (160,) * 2, content=60_000)
    index = index_shards(urls, progress=False)
    stream = FlowShards(urls, index, np.ones(320), window=80, shards_open=2)
    next(iter(stream))
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream) == 320
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.8 * 80 * index.sizes.mean()
