"""The cache of whole shards, where many use it at once and where it cannot be used."""

import contextlib
import errno
import fcntl
import io
import os
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import HostileServer, in_chunks
from server import ShardServer
from shard_files import make_table, planned, write_shards
from shard_streams import loader_over, make, one_pass

from flowdata import Access, FlowDataWarning, FlowShards, ShardError, ShardRows, index_shards
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.cache import open_cached
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity
from flowdata.transport.local import LocalTransport

CONTENT = np.random.default_rng(0).bytes(300_000)
LENGTH = Identity(len(CONTENT))


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    with ShardServer(folder) as running:
        yield running


def content_of(copy):
    with contextlib.closing(copy.stream()) as stream:
        return b"".join(iter(lambda: stream.read(10**6), b""))


# Many at once


@pytest.mark.slow
def test_workers_with_a_cache_smaller_than_their_shards_get_every_sample(tmp_path):
    """50 epochs of 4 worker processes, whose cache holds 2 of 8 shards."""
    urls = write_shards(tmp_path, (12,) * 8, content=4000)
    table = make_table(urls)
    size = max(path.stat().st_size for path in tmp_path.glob("*.tar"))
    access = Access(cache_dir=tmp_path / "cache", cache_size=2 * size + 10)
    with ShardServer(tmp_path) as server:
        stream = make(
            server.url("s-{0..7}.tar"), table, access=access, batch_size=8, epoch_size="full"
        )
        loader = loader_over(stream, 4, persistent_workers=True)
        for epoch in range(50):
            expected = planned(table, epoch, seed=3, epoch_size="full")
            assert Counter(one_pass(loader)) == expected
    kept = [path.stat().st_size for path in (tmp_path / "cache").glob("*.shard")]
    assert kept


def test_threads_that_fetch_and_evict_all_read_what_they_asked_for(tmp_path):
    folder, access = tmp_path / "served", Access(cache_dir=tmp_path / "cache", cache_size=25_000)
    folder.mkdir()
    contents = {f"{name}.bin": bytes([name]) * 10_000 for name in range(6)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)

    def read(name):
        # Not `open_cached`: where others fill all the room, it is read through.
        copy = connect(server.url(name), access, Identity(10_000))
        found = content_of(copy), bytes(next(iter(copy.read([(5000, 10)]))))
        copy.close()
        return found == (contents[name], contents[name][5000:5010])

    with ShardServer(folder) as server, ThreadPoolExecutor(8) as pool:
        names = np.random.default_rng(0).choice(list(contents), 200)
        assert all(pool.map(read, names))
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_copy_that_is_removed_while_it_is_open_is_read_on(server, tmp_path):
    copy = open_cached(server.url("a.bin"), Access(cache_dir=tmp_path / "cache"))
    copy.path.unlink()
    assert content_of(copy) == CONTENT
    assert bytes(next(iter(copy.read([(7, 9)])))) == CONTENT[7:16]
    stream = copy.stream()
    copy.close()
    assert stream.read(10) == CONTENT[:10]


def test_a_copy_that_another_machine_removed_is_opened_anew(server, tmp_path, monkeypatch):
    """A network file system says so by an error, also for what is open."""
    access, read = Access(cache_dir=tmp_path / "cache"), LocalTransport.read
    reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), access)
    where = np.array([7]), np.array([9])
    assert bytes(reader.read(*where)[0]) == CONTENT[7:16]
    for fails in (1, 2):
        left = [OSError(errno.ESTALE, "stale")] * fails

        def stale(self, spans, left=left):
            if left:
                raise left.pop()
            return read(self, spans)

        monkeypatch.setattr(LocalTransport, "read", stale)
        if fails == 1:
            assert bytes(reader.read(*where)[0]) == CONTENT[7:16]
        else:
            with pytest.raises(ShardError, match=r"a\.bin is cut off or corrupt: .*stale"):
                reader.read(*where)


# Where it cannot be used


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_shard_that_a_full_or_failing_cache_cannot_keep_is_read_from_its_server(
    tmp_path, monkeypatch, number
):
    urls = write_shards(tmp_path, (5,))
    index = index_shards(urls, progress=False)
    access = Access(cache_dir=tmp_path / "cache")

    def failing(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with ShardServer(tmp_path) as server:
        rows = ShardRows(server.url("s-0.tar"), index=index, access=access)
        with pytest.warns(FlowDataWarning, match=os.strerror(number)):
            assert [row["txt"] for row in (rows[4], rows[0])] == [b"0/4", b"0/0"]
        assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_cache_that_may_not_be_written_is_an_error_that_names_it(
    server, tmp_path, monkeypatch, number
):
    def failing(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(ShardError, match=r"a\.bin cannot be kept in .*cache"):
        open_cached(server.url("a.bin"), Access(cache_dir=tmp_path / "cache"), LENGTH)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_vanishes_is_made_again(server, tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    open_cached(server.url("a.bin"), access).path.unlink()
    (tmp_path / "cache").rmdir()
    assert content_of(open_cached(server.url("a.bin"), access)) == CONTENT


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], CONTENT + b"1"], ids=len)
def test_a_copy_of_another_length_is_fetched_anew(server, tmp_path, damage):
    access = Access(cache_dir=tmp_path / "cache")
    open_cached(server.url("a.bin"), access, LENGTH).path.write_bytes(damage)
    assert content_of(open_cached(server.url("a.bin"), access, LENGTH)) == CONTENT


def test_a_copy_is_never_made_of_a_body_that_may_be_cut(tmp_path):
    def without_length(request):
        request.answer(200, {}, CONTENT[:1000], sized=False)

    access = Access(cache_dir=tmp_path / "cache")
    with HostileServer(CONTENT, without_length) as server:
        assert open_cached(server.url(), access) is None
        with pytest.raises(ShardError, match="ended at byte 1,000 of 300,000"):
            open_cached(server.url(), access, LENGTH)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_copy_of_which_nothing_is_known_is_not_used_again(tmp_path):
    """The end of chunks is known, but no length and no version to find a copy by."""
    access = Access(cache_dir=tmp_path / "cache")
    with HostileServer(CONTENT, in_chunks()) as server:
        assert content_of(open_cached(server.url(), access)) == CONTENT
        server.content = CONTENT[::-1]
        assert content_of(open_cached(server.url(), access)) == CONTENT[::-1]


# Which shard a copy is of


def tar(text):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("0.txt")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    return file.getvalue()


@pytest.mark.parametrize("cached", [True, False])
def test_shards_that_differ_in_the_query_of_their_urls_are_different(tmp_path, cached):
    """Equal lengths, one ETag: servers make it of size and second."""
    contents = {"en": tar(b"english"), "de": tar(b"deutsch")}
    access = Access(cache_dir=tmp_path / "cache" if cached else None)

    def serve(request):
        _, path, _ = server.requests[-1]
        request.content = contents[path[-2:]]
        request.ranged({"ETag": '"5f3b-2800"'})

    with HostileServer(contents["en"], serve) as server:
        urls = [server.url(f"download?file={name}") for name in contents]
        index = index_shards(urls, access=access, progress=False)
        assert len(set(index.shards)) == 2
        for given in (urls, urls[::-1]):
            rows = ShardRows(given, index=index, access=access)
            assert [rows[row]["txt"] for row in (0, 1)] == [b"english", b"deutsch"]
        for url, text in zip(urls, (b"english", b"deutsch"), strict=True):
            alone = index_shards(url, access=access, progress=False)
            [sample] = FlowShards(url, alone, np.ones(1), access=access)
            assert sample["txt"] == text
            index.save(tmp_path / "index.parquet")
            assert b"english" not in (tmp_path / "index.parquet").read_bytes()


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_process_left_is_removed_in_time(server, tmp_path, monkeypatch, locks):
    access = Access(cache_dir=tmp_path / "cache")
    open_cached(server.url("a.bin"), access)
    ages = {"just now": 10, "minutes ago": 600, "hours ago": 9000, "by one that lives": 600}
    left = {name: tmp_path / "cache" / f".{name}.shard.tmp" for name in ages}
    for name, age in ages.items():
        left[name].write_bytes(b"1")
        os.utime(left[name], (time.time() - age,) * 2)

    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    with left["by one that lives"].open("rb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        if not locks:
            monkeypatch.setattr(fcntl, "flock", no_locks)
        open_cached(server.url("a.bin?other"), access)
        kept = {name for name, path in left.items() if path.exists()}
    assert kept == {"just now", "by one that lives"} | (set() if locks else {"minutes ago"})


# What is kept


@pytest.mark.parametrize(("share", "kept"), [(0.2, False), (0.7, True)])
def test_a_shard_of_which_little_is_wanted_is_not_kept_unless_that_is_asked_for(
    server, tmp_path, share, kept
):
    def read(cache, share, **options):
        access = Access(cache_dir=tmp_path / cache, **options)
        transport = connect(server.url("a.bin"), access, LENGTH, share=share)
        assert bytes(transport.fetch(9, 100).run()) == CONTENT[9:109]
        transport.close()
        return isinstance(transport, LocalTransport)

    assert read("a", share) is kept
    assert read("b", share, cache_from=0)
    assert not read("c", share, cache_from=2)
    # A copy that is there is used.
    assert read("a", 1.0)
    assert read("a", share)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_keeps_the_shards_that_it_draws_much_of(tmp_path, workers):
    urls = write_shards(tmp_path, (40, 40, 40), content=4000)
    table = make_table(urls)
    losses = np.where(np.arange(120) < 80, 1.0, np.where(np.arange(120) % 10, 1e3, 1.0))
    table = type(table).from_losses(losses, index=table.index)
    access = Access(cache_dir=tmp_path / "cache")
    with ShardServer(tmp_path) as server:
        stream = make(server.url("s-{0..2}.tar"), table, access=access, epoch_size=200)
        drawn = Counter(one_pass(loader_over(stream, workers)))
    assert drawn == planned(table, seed=3, epoch_size=200)
    # Of the third shard an epoch draws 4 of 40 samples.
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    whole = [(tmp_path / f"s-{number}.tar").stat().st_size for number in (0, 1)]
    assert sorted(sizes) == sorted(whole)
    assert any(name != "s-2.tar" or spans for name, spans in server.requests)
