"""How long an answer is waited for: what servers ask for, and what they drip."""

import io
import threading
import time
from email.utils import formatdate

import numpy as np
import pytest
from hostile import HostileServer, Request, asking_to_wait, drip, times
from shard_files import write_shards

from flowdata import Access, FlowShards, ShardError, index_shards
from flowdata.transport import retrying
from flowdata.transport.answers import refusal
from flowdata.transport.connect import connect

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def waits(monkeypatch):
    """What is slept, instead of sleeping."""
    slept = []
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def read(manner, access):
    with HostileServer(CONTENT, manner) as server:
        stream = connect(server.url(), access).stream()
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("text", "seconds"), [("3", 3), ("120", 120), ("2.5", 2.5), (" 7 ", 7)])
def test_a_server_is_given_the_time_that_it_asks_for(waits, status, text, seconds):
    assert read(asking_to_wait(text, 2, status), Access()) == CONTENT
    assert waits == [seconds] * 2


def test_a_server_that_asks_for_little_time_again_and_again_is_given_more(waits, monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.2)
    assert read(asking_to_wait("1", 5), Access()) == CONTENT
    assert waits == pytest.approx([1.2, 1.4, 1.8, 2.6, 4.2])


def test_a_date_is_counted_from_the_clock_of_the_server(waits):
    def manner(request):
        headers = {"Date": formatdate(1e9, usegmt=True), "Retry-After": formatdate(1e9 + 90)}
        request.answer(503, headers)

    assert read(times(manner, 1), Access()) == CONTENT
    assert waits == [90]
    later = refusal(503, {"Retry-After": formatdate(time.time() + 60, usegmt=True)})
    assert 50 < later.wait <= 61


@pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "nan", "Thu, 99 Foo 2026", "9" * 40])
def test_what_says_nothing_of_use_is_waited_for_as_usual(waits, monkeypatch, text):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.2)
    assert read(asking_to_wait(text, 3), Access()) == CONTENT
    assert waits == pytest.approx([0.2, 0.4, 0.8])


@pytest.mark.parametrize("text", ["301", "86400", "Thu, 01 Jan 2125 00:00:00 GMT"])
def test_who_asks_for_more_time_than_is_given_is_quoted(waits, text):
    with pytest.raises(
        ShardError, match=r"max_wait=300 seconds: .*HTTP (503|429), which asks to wait [\d,]+ s"
    ):
        read(asking_to_wait(text), Access())
    assert waits == []


def test_the_limit_of_waiting_can_be_set(waits):
    assert read(asking_to_wait("3600", 1), Access(max_wait=3600)) == CONTENT
    assert waits == [3600]
    with pytest.raises(ShardError, match="asks to wait 2 s"):
        read(asking_to_wait("2", 1), Access(max_wait=1))
    with pytest.raises(ShardError, match=r"in 1 attempts.*asks to wait 2 s"):
        read(asking_to_wait("2"), Access(retries=0))


def dripping(bytes_at_once, every):
    def manner(request):
        request.send(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(CONTENT))
        file = io.BytesIO(CONTENT)
        while part := file.read(bytes_at_once):
            request.send(part)
            if request.wait(every):
                return

    return manner


def test_a_body_is_a_time_out_only_below_the_lowest_rate():
    # About 10,000 bytes a second.
    manner = dripping(100, 0.01)
    assert read(manner, Access(timeout=1, min_rate=100, retries=0)) == CONTENT
    with pytest.raises(ShardError, match=r"bytes came in [\d.]+ s, fewer than min_rate=1,000,000"):
        read(manner, Access(timeout=1, min_rate=1_000_000, retries=1))


def test_a_reader_that_takes_its_time_is_no_slow_server():
    with HostileServer(CONTENT * 100, Request.whole) as server:
        access = Access(timeout=1, min_rate=5_000_000, retries=0)
        stream, parts = connect(server.url(), access).stream(), []
        while part := stream.read(500_000):
            parts.append(part)
            time.sleep(0.3)
        assert b"".join(parts) == CONTENT * 100


def test_a_server_that_sends_little_and_hangs_up_is_given_up():
    def manner(request):
        first = request.spans[0][0] if request.spans else 0
        found = f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}"
        request.send(
            f"HTTP/1.1 206 X\r\nContent-Range: {found}\r\n"
            f"Content-Length: {len(CONTENT) - first}\r\n\r\n".encode()
        )
        drip(request, request.content[first : first + 3], 0)
        request.hang_up()

    with pytest.raises(ShardError, match="in 4 attempts"):
        read(manner, Access(retries=3))


@pytest.mark.parametrize(
    "options",
    [
        {"min_rate": -1},
        {"max_wait": -1},
        {"max_wait": "5"},
        {"max_expansion": 0.5},
        {"signed_by": "token"},
        {"headers": {"X-Key": "secret\r\nX-Other: 1"}},
        {"headers": {"X Key": "secret"}},
        {"headers": {"X-Key": "secret€"}},
    ],
    ids=str,
)
def test_access_that_makes_no_sense_is_refused_without_its_secrets(options):
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        Access(**options)
    assert "secret" not in str(caught.value)


def in_time(function):
    """The result of a function that must not hang."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for what nobody wants"
    return results[0]


def test_nobody_waits_for_a_server_once_the_loop_is_left(tmp_path):
    urls = write_shards(tmp_path, (20, 20))
    index = index_shards(urls, progress=False)
    contents = [(tmp_path / f"s-{number}.tar").read_bytes() for number in (0, 1)]
    waiting = threading.Event()

    def manner(request):
        _, path, _ = server.requests[-1]
        request.content = contents[int(path[-5])]
        # The shard that is read first is served, and the one that is read ahead is not.
        if path != server.requests[0][1]:
            waiting.set()
            request.answer(503, {"Retry-After": "600"})
        else:
            request.ranged()

    def first_sample():
        url = server.url("s-{0..1}.tar")
        access = Access(max_wait=1000)
        stream = FlowShards(url, index, np.ones(40), window=5, shards_open=1, access=access)
        samples = iter(stream)
        next(samples)
        assert waiting.wait(60)
        samples.close()
        return True

    with HostileServer(max(contents, key=len), manner) as server:
        assert in_time(first_sample)


def test_nobody_waits_for_one_shard_where_another_is_missing():
    waiting = threading.Event()

    def manner(request):
        _, path, _ = server.requests[-1]
        if path == "/a.tar":
            waiting.set()
            request.answer(503, {"Retry-After": "600"})
        else:
            waiting.wait(60)
            request.answer(404, {})

    def error():
        urls = [server.url("a.tar"), server.url("b.tar")]
        with pytest.raises(ShardError) as caught:
            index_shards(urls[::-1], access=Access(max_wait=1000), progress=False)
        return str(caught.value)

    with HostileServer(CONTENT, manner) as server:
        assert "b.tar: HTTP 404" in in_time(error)
