"""Whole shards fetched into the cache, by several connections and side by side."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import HostileServer, Request

from flowdata import Access, ShardError
from flowdata.transport.cache import open_cached
from flowdata.transport.identity import Identity
from flowdata.transport.retrying import wait_until

LARGE = np.random.default_rng(1).bytes(20_000_000)


def content_of(copy):
    with contextlib.closing(copy.stream()) as stream:
        return b"".join(iter(lambda: stream.read(10**6), b""))


@contextlib.contextmanager
def counting(content, manner=Request.ranged):
    """A server, and how many requests it has side by side at most."""
    lock, now, most = threading.Lock(), [0], [0]

    def serve(request):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        try:
            request.wait(0.05)
            manner(request)
        finally:
            with lock:
                now[0] -= 1

    with HostileServer(content, serve) as server:
        yield server, most


def test_a_large_shard_is_fetched_by_as_many_connections_as_are_allowed(tmp_path):
    with counting(LARGE) as (server, most):
        access = Access(cache_dir=tmp_path / "cache", connections=3)
        assert content_of(open_cached(server.url(), access, Identity(len(LARGE)))) == LARGE
        assert most == [3]
        asked = [request[2].get("range") for request in server.requests]
        assert len(set(asked)) == len(asked) == 5
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".shard"]


def test_a_large_shard_of_a_server_without_ranges_is_asked_for_once(tmp_path):
    with counting(LARGE, Request.whole) as (server, _):
        access = Access(cache_dir=tmp_path / "cache")
        assert content_of(open_cached(server.url(), access, Identity(len(LARGE)))) == LARGE
        assert len(server.requests) == 1


def test_a_large_shard_that_changes_on_the_way_leaves_nothing(tmp_path):
    def changing(request):
        request.ranged({"ETag": f'"{min(request.number, 2)}"'})

    with counting(LARGE, changing) as (server, _):
        access = Access(cache_dir=tmp_path / "cache", connections=2)
        with pytest.raises(ShardError, match=r"a\.tar was changed"):
            open_cached(server.url(), access, Identity(len(LARGE)))
    assert list((tmp_path / "cache").iterdir()) == []


def test_who_wants_a_shard_that_another_is_fetching_waits_for_it(tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    with counting(LARGE) as (server, _), ThreadPoolExecutor(4) as pool:
        found = pool.map(
            lambda _: content_of(open_cached(server.url(), access, Identity(len(LARGE)))), range(4)
        )
        assert all(content == LARGE for content in found)
        assert len(server.requests) == 5


def test_a_copy_that_a_killed_process_began_is_begun_anew(tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    with counting(LARGE) as (server, _):
        path = open_cached(server.url(), access, Identity(len(LARGE))).path
        path.rename(path.with_name(f".{path.stem}.shard.tmp"))
        assert content_of(open_cached(server.url(), access, Identity(len(LARGE)))) == LARGE
    assert list((tmp_path / "cache").iterdir()) == [path]


@pytest.mark.parametrize("begins_at", [0, 1])
def test_nobody_fetches_what_is_wanted_no_more(tmp_path, begins_at):
    access, asked, stopped = Access(cache_dir=tmp_path / "cache"), threading.Event(), []

    def stalling(request):
        if request.spans[0][0] >= begins_at:
            asked.set()
            request.wait(60)
        request.ranged()

    def fetch():
        wait_until(no_more)
        try:
            open_cached(server.url(), access, Identity(len(LARGE)))
        except ShardError as error:
            stopped.append(str(error))

    no_more = threading.Event()
    with HostileServer(LARGE, stalling) as server:
        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        assert asked.wait(30)
        # Python waits at its end for threads that are none, and for those of executors.
        fetching = [other for other in threading.enumerate() if other.name.startswith("flowdata-")]
        assert fetching
        assert all(other.daemon for other in fetching)
        no_more.set()
        thread.join(30)
    assert stopped == [f"{server.url()} is wanted no more"]
    assert list((tmp_path / "cache").iterdir()) == []


# Several shards at a time


def fetched(access, server, name):
    """The content of a shard by this name, by a thread of its own."""
    with contextlib.closing(
        open_cached(server.url(f"a.tar?{name}"), access, Identity(len(LARGE)))
    ) as copy:
        return content_of(copy)


def test_a_server_that_stands_still_holds_up_no_other(tmp_path):
    others_are_there = threading.Event()

    def stalling(request):
        if request.spans[0][0]:
            assert others_are_there.wait(30)
        request.ranged()

    access = Access(cache_dir=tmp_path / "cache")
    with (
        HostileServer(LARGE, stalling) as standing,
        HostileServer(LARGE, Request.ranged) as server,
        ThreadPoolExecutor(3) as pool,
    ):
        still = pool.submit(fetched, access, standing, "a")
        others = [pool.submit(fetched, access, server, name) for name in ("b", "c")]
        assert all(other.result(30) == LARGE for other in others)
        assert not still.done()
        others_are_there.set()
        assert still.result(30) == LARGE


def test_all_shards_together_have_as_many_connections_as_are_allowed(tmp_path):
    access = Access(cache_dir=tmp_path / "cache", connections=3)
    with counting(LARGE) as (server, most), ThreadPoolExecutor(4) as pool:
        contents = pool.map(lambda name: fetched(access, server, name), range(4))
        assert all(content == LARGE for content in contents)
        assert most == [3]
        assert len(server.requests) == 20


def test_the_shard_that_began_first_is_there_first(tmp_path):
    """By one connection: all that was begun before the second one's second request."""
    access, asked = Access(cache_dir=tmp_path / "cache", connections=1), threading.Event()

    def serve(request):
        asked.set()
        request.wait(0.02)
        request.ranged()

    with HostileServer(LARGE, serve) as server, ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetched, access, server, "first")
        assert asked.wait(30)
        second = pool.submit(fetched, access, server, "second")
        assert first.result(30) == second.result(30) == LARGE
        names = [path.rpartition("?")[2] for _, path, _ in server.requests]
    assert names[-4:] == ["second"] * 4


def test_a_server_that_has_ranges_no_more_is_read_from_the_start(tmp_path):
    def forgetful(request):
        (request.whole if request.number > 1 else request.ranged)()

    access = Access(cache_dir=tmp_path / "cache", connections=2)
    with HostileServer(LARGE, forgetful) as server:
        assert content_of(open_cached(server.url(), access, Identity(len(LARGE)))) == LARGE


def test_shards_that_cannot_be_fetched_leave_their_connections_to_others(tmp_path):
    def failing(request):
        if is_failing and request.spans[0][0]:
            request.answer(404, {}, b"")
        else:
            request.ranged()

    access, is_failing = Access(cache_dir=tmp_path / "cache", connections=2), True
    with HostileServer(LARGE, failing) as server:
        for _ in range(4):
            with pytest.raises(ShardError, match=r"a\.tar: .*404"):
                open_cached(server.url(), access, Identity(len(LARGE)))
        is_failing = False
        assert content_of(open_cached(server.url(), access, Identity(len(LARGE)))) == LARGE
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".shard"]
