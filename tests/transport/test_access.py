"""Who asks for shards: users, proxies, file systems that fail, and the cache."""

import errno
import os
import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from server import ShardServer

from flowdata import Access, ShardError
from flowdata.tar.indexing import index_shards
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.cache import open_cached
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path


# Who asks


def test_a_user_in_the_url_signs_in_and_is_not_shown(folder):
    with ShardServer(folder) as server:
        url = server.url("a.bin").replace("//", "//me:p%40ss@")
        reader = ShardReader(ShardInfo(url, len(CONTENT), False), Access())
        reader.read(np.array([0]), np.array([10]))
        assert {headers["Authorization"] for headers in server.headers} == {"Basic bWU6cEBzcw=="}
        server.fail_status, server.fails = 401, 1
        with pytest.raises(ShardError, match="HTTP 401; sign in") as caught:
            reader.read(np.array([0]), np.array([10]))
        assert "ss@" not in str(caught.value)


def test_headers_are_sent_but_neither_on_to_other_hosts_nor_shown(folder):
    access = Access(headers={"Authorization": "Bearer secret", "X-Key": "secret"}, retries=0)
    assert "secret" not in repr(access)
    with (
        ShardServer(folder) as other,
        ShardServer(folder, redirect=other.url("a.bin")) as server,
    ):
        reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), access)
        reader.read(np.array([0]), np.array([10]))
        assert {headers["X-Key"] for headers in server.headers} == {"secret"}
        names = ("Authorization", "X-Key")
        assert {headers[name] for headers in other.headers for name in names} == {None}


def test_the_proxy_of_the_environment_is_used(folder, monkeypatch):
    with ShardServer(folder) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url("").replace("//", "//user:secret@"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        shard = ShardInfo("http://shards.invalid/a.bin", len(CONTENT), False)
        reader = ShardReader(shard, Access(retries=0))
        assert bytes(reader.read(np.array([3]), np.array([9]))[0]) == CONTENT[3:12]
        assert proxy.headers[0]["Proxy-Authorization"] == "Basic dXNlcjpzZWNyZXQ="
        count = len(proxy.requests)
        with ShardServer(folder) as direct:
            shard = ShardInfo(direct.url("a.bin"), len(CONTENT), False)
            ShardReader(shard, Access(retries=0)).read(np.array([0]), np.array([10]))
        assert len(proxy.requests) == count
    monkeypatch.setenv("http_proxy", "socks9://user:secret@h:1")
    with pytest.raises(ShardError, match=r"the proxy socks9://h:1") as caught:
        ShardReader(ShardInfo("http://shards.invalid/b", -1, False), Access()).read(
            np.array([0]), np.array([1])
        )
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"retries": 1.5},
        {"timeout": 0},
        {"timeout": None},
        {"cache_size": 0},
        {"cache_size": "10 shards"},
    ],
    ids=str,
)
def test_access_that_makes_no_sense_is_refused(options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        Access(**options)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/a.tar?sig=secret",
        "http://127.0.0.1:99999/a.tar?sig=secret",
        "http:///a.tar?sig=secret",
        "http://127.0.0.1:1/a.tar?sig=secret",
        "nothing://host/a.tar?sig=secret",
        "http://user:secret@[::1/a.tar",
        "http://user:p@secret@127.0.0.1:1/a.tar",
    ],
)
def test_a_url_that_leads_nowhere_is_an_error_without_its_query_or_password(url):
    with pytest.raises(ShardError, match=r"a\.tar") as caught:
        index_shards(url, access=Access(retries=0), progress=False)
    assert "secret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("host", ["[::1", "127.0.0.1:99999", "", "a b", "user:secret@"])
def test_what_can_never_be_a_host_is_refused_before_it_is_asked(host):
    with pytest.raises(ShardError, match=r"^http://.*/a\.tar is no URL") as caught:
        connect(f"http://{host}/a.tar?secret", Access())
    assert "secret" not in str(caught.value)


# File systems


class Failing:
    """Makes a method fail so many times."""

    def __init__(self, monkeypatch, owner, name, error, times):
        self.left, method = times, getattr(owner, name)

        def failing(*arguments, **options):
            if self.left:
                self.left -= 1
                raise error
            return method(*arguments, **options)

        monkeypatch.setattr(owner, name, failing)


@pytest.fixture
def in_memory():
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/a.bin", CONTENT)
    yield ShardInfo("memory://bucket/a.bin", len(CONTENT), False)
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    "error", [OSError("reset"), RuntimeError("what a library raises")], ids=str
)
def test_a_file_system_that_fails_at_times_is_asked_again(in_memory, monkeypatch, error):
    files, far = MemoryFileSystem, (np.array([0, 90_000]), np.array([10, 10]))
    for name in ("cat_file", "info"):
        failing = Failing(monkeypatch, files, name, error, 2)
        views = ShardReader(in_memory, Access()).read(*far)
        assert [bytes(view) for view in views] == [CONTENT[:10], CONTENT[90_000:90_010]]
        assert not failing.left
    Failing(monkeypatch, files, "cat_file", error, 10**9)
    with pytest.raises(ShardError, match=f"a.bin could not be read in 2 attempts.*{error}"):
        ShardReader(in_memory, Access(retries=1)).read(*far)


@pytest.mark.parametrize(
    "error", [OSError("reset"), RuntimeError("what a library raises")], ids=str
)
def test_a_stream_of_a_file_system_goes_on_after_a_failure(in_memory, monkeypatch, error):
    stream = connect(in_memory.url, Access()).stream()
    assert stream.read(1000) == CONTENT[:1000]
    for name, offset in (("read", 5000), ("seek", 9000)):
        failing = Failing(monkeypatch, MemoryFile, name, error, 2)
        stream.seek(offset)
        assert stream.read(1000) == CONTENT[offset : offset + 1000]
        assert not failing.left
    Failing(monkeypatch, MemoryFile, "read", error, 10**9)
    with pytest.raises(ShardError, match=f"6 attempts.*{error}"):
        stream.read(1)


def test_a_file_that_is_not_there_is_not_asked_for_again(in_memory):
    with pytest.raises(ShardError, match="there is no shard memory://bucket/b"):
        index_shards("memory://bucket/b.tar", progress=False)


# The cache


def fetch_to_cache(url, access, length=-1):
    """The path of a copy; None if there is none."""
    copy = open_cached(url, access, Identity(length))
    if copy is None:
        return None
    copy.close()
    return copy.path


def test_a_cached_shard_is_whole_and_is_fetched_once(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    with ShardServer(folder, cut_after=1000, cuts=2) as server:
        path = fetch_to_cache(server.url("a.bin"), access)
        assert path is not None
        assert path.read_bytes() == CONTENT
        asked = len(server.requests)
        assert fetch_to_cache(server.url("a.bin"), access) == path
        assert len(server.requests) == asked
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name]


def test_the_cache_makes_room_for_what_is_new(folder, tmp_path):
    for name in "bcd":
        (folder / f"{name}.bin").write_bytes(CONTENT)
    access = Access(cache_dir=tmp_path / "cache", cache_size=2 * len(CONTENT) + 10)
    with ShardServer(folder) as server:
        first, second = (fetch_to_cache(server.url(f"{name}.bin"), access) for name in "ab")
        os.utime(second, (1, 1))
        fetch_to_cache(server.url("a.bin"), access)
        third = fetch_to_cache(server.url("c.bin"), access)
        assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_shards_that_are_fetched_at_once_keep_to_the_limit_together(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache", cache_size="0.7MB")
    with ShardServer(folder) as server, ThreadPoolExecutor(6) as pool:
        urls = [server.url(f"a.bin?v={number}") for number in range(6)]
        list(pool.map(lambda url: fetch_to_cache(url, access, len(CONTENT)), urls))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").iterdir()]
    assert sizes in ([len(CONTENT)], [len(CONTENT)] * 2)


def test_a_copy_that_may_not_be_removed_leaves_no_room(folder, tmp_path, monkeypatch):
    access = Access(cache_dir=tmp_path / "cache", cache_size=len(CONTENT) + 10)
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == kept:
            raise PermissionError(errno.EPERM, "of another user")
        unlink(path, missing_ok)

    with ShardServer(folder) as server:
        kept = fetch_to_cache(server.url("a.bin?v=1"), access)
        monkeypatch.setattr(Path, "unlink", refuse)
        assert fetch_to_cache(server.url("a.bin?v=2"), access) is None
    assert kept.exists()


def test_a_shard_larger_than_the_cache_is_read_through(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache", cache_size=1000)
    with ShardServer(folder) as server:
        assert fetch_to_cache(server.url("a.bin"), access) is None
        reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), access)
        assert bytes(reader.read(np.array([5]), np.array([7]))[0]) == CONTENT[5:12]


def test_a_download_that_fails_leaves_nothing(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache", retries=1)
    with (
        ShardServer(folder, cut_after=1000, cuts=10**9) as server,
        pytest.raises(ShardError, match="2 attempts"),
    ):
        fetch_to_cache(server.url("a.bin"), access)
    assert list((tmp_path / "cache").iterdir()) == []


def test_urls_that_are_signed_anew_share_a_copy(folder, tmp_path):
    access = Access(cache_dir=str(tmp_path / "cache"))
    with ShardServer(folder) as server:
        paths = {
            fetch_to_cache(server.url(f"a.bin?signature={n}"), access, len(CONTENT)) for n in "ab"
        }
        assert len(paths) == len(server.requests) == 1


def test_a_copy_that_was_damaged_is_fetched_again_and_another_shard_is_told(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    with ShardServer(folder) as server:
        path = fetch_to_cache(server.url("a.bin"), access, len(CONTENT))
        path.write_bytes(b"damaged")
        assert fetch_to_cache(server.url("a.bin"), access, len(CONTENT)).read_bytes() == CONTENT
        (folder / "a.bin").write_bytes(CONTENT * 2)
        assert fetch_to_cache(server.url("a.bin"), access, 2 * len(CONTENT)) != path
        reader = ShardReader(ShardInfo(server.url("a.bin"), 17, False), access)
        with pytest.raises(ShardError, match=r"has 600,000 bytes, but 17 when it was"):
            reader.read(np.array([0]), np.array([10]))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_what_killed_processes_left_is_counted_and_in_time_removed(folder, tmp_path):
    cache = tmp_path / "cache"
    access = Access(cache_dir=cache, cache_size=2 * len(CONTENT) + 10)
    (folder / "b.bin").write_bytes(CONTENT)
    with ShardServer(folder) as server:
        first = fetch_to_cache(server.url("a.bin"), access)
        left = cache / f".{first.name}.xyz.tmp"
        left.write_bytes(CONTENT)
        second = fetch_to_cache(server.url("b.bin"), access)
        assert (first.exists(), left.exists()) == (False, True)
        os.utime(left, (1, 1))
        fetch_to_cache(server.url("a.bin"), access)
        assert (first.exists(), second.exists(), left.exists()) == (True, True, False)


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file")
    with (
        ShardServer(folder) as server,
        pytest.raises(ShardError, match=r"cannot be kept in .*cache"),
    ):
        fetch_to_cache(server.url("a.bin"), Access(cache_dir=tmp_path / "cache"))


@pytest.mark.slow
def test_processes_that_fetch_the_same_shard_do_not_disturb_each_other(folder, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from flowdata import Access\n"
        "from flowdata.transport.cache import open_cached\n"
        "copy = open_cached(sys.argv[1], Access(cache_dir=pathlib.Path(sys.argv[2])))\n"
        "print(len(copy.path.read_bytes()))"
    )
    with ShardServer(folder) as server:
        command = [sys.executable, "-c", code, server.url("a.bin"), str(tmp_path / "cache")]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[0].strip() for process in running] == ["300000"] * 3
