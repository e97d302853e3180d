"""One span by one thread, which another may abandon."""

import math
import threading
import time

import fsspec
import pytest
from certificates import certificate, served_by
from hostile import HostileServer, Request, asking_to_wait, silent, times

from flowdata import Access, ShardError
from flowdata.transport.access import AbandonedError, NoRangesError
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

CONTENT = bytes(range(256)) * 1000


class Running(threading.Thread):
    """Runs a fetch, and keeps what became of it."""

    def __init__(self, fetch):
        super().__init__(daemon=True)
        self.fetch, self.result = fetch, None
        self.start()

    def run(self):
        try:
            self.result = bytes(self.fetch.run())
        except Exception as error:
            self.result = error

    def ended(self):
        self.join(30)
        assert not self.is_alive(), "it waits for what nobody wants"
        return self.result


def stopping_after(count):
    def manner(request):
        [(first, last)] = request.spans
        head = f"HTTP/1.1 206 X\r\nContent-Range: bytes {first}-{last}/{len(CONTENT)}\r\n"
        request.send(f"{head}Content-Length: {last + 1 - first}\r\n\r\n".encode())
        request.send(request.content[first : first + count])
        request.wait(60)

    return manner


STALLS = {
    "no answer": silent,
    "no body": stopping_after(0),
    "half a body": stopping_after(500),
    "busy": asking_to_wait("600"),
}


@pytest.mark.parametrize("encrypted", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("stall", STALLS)
def test_a_request_that_nobody_wants_ends_at_once_and_others_go_on(
    stall, encrypted, tmp_path, monkeypatch
):
    context = None
    if encrypted:
        path = certificate(tmp_path)
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        context = served_by(path)
    came = threading.Event()

    def manner(request):
        if request.spans == [(7, 1006)]:
            came.set()
            STALLS[stall](request)
        else:
            request.ranged()

    with HostileServer(CONTENT, manner, context) as server:
        transport = connect(server.url(), Access(timeout=50, max_wait=1000))
        stalled = Running(transport.fetch(7, 1000))
        assert came.wait(30)
        time.sleep(0.05)
        others = [Running(transport.fetch(start, 5000)) for start in range(0, 50_000, 5000)]
        stalled.fetch.abandon()
        assert isinstance(stalled.ended(), AbandonedError)
        assert b"".join(other.ended() for other in others) == CONTENT[:50_000]
        assert bytes(transport.fetch(0, 9).run()) == CONTENT[:9]


def test_what_was_abandoned_before_it_ran_asks_nobody_and_after_it_ended_nothing_happens():
    with HostileServer(CONTENT, Request.ranged) as server:
        transport = connect(server.url(), Access())
        fetch = transport.fetch(0, 10)
        fetch.abandon()
        with pytest.raises(AbandonedError):
            fetch.run()
        assert server.requests == []
        done = transport.fetch(0, 10)
        assert bytes(done.run()) == CONTENT[:10]
        done.abandon()
        # Its connection was given back, and is used again.
        ports = len(server.connections)
        assert bytes(transport.fetch(5, 10).run()) == CONTENT[5:15]
        assert len(server.connections) == ports


def test_a_fetch_tells_how_long_its_answer_took_and_how_often_it_was_made():
    def late(request):
        request.wait(0.2)
        request.ranged()

    with HostileServer(CONTENT, times(lambda request: request.answer(503, {}), 1, late)) as server:
        fetch = connect(server.url(), Access()).fetch(3, 100)
        assert math.isnan(fetch.first_byte)
        assert bytes(fetch.run()) == CONTENT[3:103]
        assert fetch.attempts == 2
        assert 0.2 <= fetch.first_byte < 20
        assert 0 <= fetch.body < 20


def test_a_server_without_ranges_is_told_to_all_who_ask_side_by_side():
    with HostileServer(CONTENT, Request.whole) as server:
        transport = connect(server.url(), Access())
        running = [Running(transport.fetch(start, 10)) for start in range(8)]
        assert {type(each.ended()) for each in running} == {NoRangesError}
        assert not transport.supports_ranges
        assert transport.stream().read(1000) == CONTENT[:1000]


def test_a_server_that_sends_on_to_another_is_asked_twice_only_once_more():
    with HostileServer(CONTENT, Request.ranged) as other:
        away = {"Location": other.url("x.tar")}
        with HostileServer(CONTENT, lambda request: request.answer(302, away)) as server:
            transport = connect(server.url(), Access())
            for start in range(10):
                assert bytes(transport.fetch(start, 10).run()) == CONTENT[start : start + 10]
            assert (len(server.requests), len(other.requests)) == (11, 10)


def test_a_connection_that_a_server_closed_while_it_was_idle_costs_no_attempt():
    def once(request):
        request.ranged()
        request.hang_up()

    with HostileServer(CONTENT, once) as server:
        transport = connect(server.url(), Access(retries=0))
        for start in range(5):
            assert bytes(transport.fetch(start, 10).run()) == CONTENT[start : start + 10]


def test_https_is_asked_with_the_certificates_of_the_machine(tmp_path, monkeypatch):
    path = certificate(tmp_path)
    with HostileServer(CONTENT, Request.ranged, served_by(path)) as server:
        url = server.url()
        with pytest.raises(ShardError, match=r"a\.tar could not be read .*CERTIFICATE_VERIFY"):
            connect(url, Access(retries=0)).fetch(0, 10).run()
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        transport = connect(url, Access(retries=0))
        running = [Running(transport.fetch(start, 10_000)) for start in range(0, 80_000, 10_000)]
        assert b"".join(each.ended() for each in running) == CONTENT[:80_000]
        assert bytes(transport.fetch(5, 9).run()) == CONTENT[5:14]


def test_a_fetch_that_fails_for_good_names_its_shard():
    with HostileServer(CONTENT, lambda request: request.answer(404, {})) as server:
        fetch = connect(server.url("b.tar?secret"), Access()).fetch(0, 10)
        with pytest.raises(ShardError, match=r"b\.tar: HTTP 404"):
            fetch.run()


def test_file_systems_and_local_files_fetch_too(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    fsspec.filesystem("memory").pipe_file("/bucket/fetched.tar", CONTENT)
    for url in (str(tmp_path / "a.tar"), "memory://bucket/fetched.tar"):
        transport = connect(url, Access(retries=0), Identity(len(CONTENT)))
        running = [Running(transport.fetch(start, 1000)) for start in range(0, 50_000, 1000)]
        assert b"".join(each.ended() for each in running) == CONTENT[:50_000]
        fetch = transport.fetch(len(CONTENT) - 5, 10)
        with pytest.raises(ShardError, match=r"has 5 of 10 bytes"):
            fetch.run()
    fsspec.filesystem("memory").rm("/bucket/fetched.tar")
