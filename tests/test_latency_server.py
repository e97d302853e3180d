"""The server by which benchmarks and tests stand in for an object store has its manners."""

import http.client

import pytest
from shard_places import serving

CONTENT = bytes(range(256)) * 64
FIRSTS = range(0, 12000, 1500)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "a.tar").write_bytes(CONTENT)
    (folder / "in").mkdir()
    (folder / "in" / "b c.tar").write_bytes(b"b")
    (folder.parent / "secret").write_bytes(b"secret")
    with serving(folder) as made:
        yield made


@pytest.fixture(autouse=True)
def _as_by_default(server):
    server.answer()
    server.reset()


def ask(server, path="/a.tar", method="GET", **headers):
    """Status, headers and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, headers=named)
    answer = connection.getresponse()
    try:
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("5-9", 5, 9), ("16000-", 16000, 16383), ("-7", 16377, 16383), ("16380-99999", 16380, 16383)],
)
def test_one_range_is_answered_with_these_bytes(server, asked, first, last):
    status, headers, body = ask(server, Range=f"bytes={asked}")
    assert (status, body) == (206, CONTENT[first : last + 1])
    assert headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert server.log() == [["/a.tar", [first, last]]]
    assert server.stats()["bytes"] == last + 1 - first


def test_several_ranges_are_the_whole_object_or_parts_and_no_manners_know_none(server):
    assert ask(server, Range="bytes=0-1,5-6")[::2] == (200, CONTENT)
    server.answer(ranges="none")
    status, headers, body = ask(server, Range="bytes=0-1")
    assert (status, headers["Accept-Ranges"], body) == (200, "none", CONTENT)
    server.answer(ranges="multi")
    status, headers, body = ask(server, Range="bytes=0-1,5-6")
    assert status == 206
    assert headers["Content-Type"].startswith("multipart/byteranges")
    assert len(body) == int(headers["Content-Length"])
    assert body.count(b"Content-Range: bytes ") == 2
    assert b"bytes 5-6/16384\r\n\r\n\x05\x06\r\n" in body


def test_an_object_is_that_of_its_etag_or_is_not_sent(server):
    tag = ask(server, method="HEAD")[1]["ETag"]
    assert ask(server, If_Match=tag)[0] == 200
    assert ask(server, If_Match='"other"')[::2] == (412, b"")
    assert ask(server, If_Range=tag, Range="bytes=0-1")[0] == 206
    assert ask(server, If_Range='"other"', Range="bytes=0-1")[::2] == (200, CONTENT)


def test_what_is_not_there_or_not_below_the_folder_is_not_found(server):
    assert ask(server, "/in/b%20c.tar?signature=1")[::2] == (200, b"b")
    for path in ("/none.tar", "/in", "/../secret", "/%2e%2e/secret"):
        assert ask(server, path)[0] == 404
    assert ask(server, Range="bytes=20000-")[0] == 416
    assert ask(server, method="PUT")[0] == 405


def test_head_has_the_length_and_no_body(server):
    status, headers, body = ask(server, method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(CONTENT)), b"")
    stats = server.stats()
    assert (stats["requests"], stats["heads"], stats["bytes"]) == (1, 1, 0)


def test_requests_of_one_connection_follow_one_another_even_if_sent_at_once(server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.connect()
    request = b"GET /a.tar HTTP/1.1\r\nHost: x\r\nRange: bytes=%d-%d\r\n\r\n"
    connection.sock.sendall(b"".join(request % (place, place) for place in range(5)))
    received = b""
    while received.count(b"\r\n\r\n") < 5 or not received.endswith(b"\r\n\r\n\x04"):
        received += connection.sock.recv(65536)
    connection.close()
    assert [line[-1] for line in received.split(b"HTTP/1.1 206")[1:]] == [0, 1, 2, 3, 4]
    assert server.stats()["connections"] == 1


def test_what_goes_wrong_is_what_was_asked_for(server):
    server.answer(refuse=1, retry_after=2, refuse_status=429)
    status, headers, _ = ask(server)
    assert (status, headers["Retry-After"]) == (429, "2")
    server.answer(short=1)
    with pytest.raises(http.client.IncompleteRead):
        ask(server)
    server.answer(reset=1)
    with pytest.raises(ConnectionResetError):
        ask(server)
    server.answer(stall=1, stall_seconds=0.01)
    assert ask(server)[2] == CONTENT
    server.answer(stall=1, stall_seconds=0.01, stall_body=True)
    assert ask(server)[2] == CONTENT
    assert server.stats()["faults"] == 5


def test_the_same_requests_go_wrong_again(server):
    def statuses(**conditions):
        server.answer(refuse=0.3, **conditions)
        return [ask(server, method="HEAD")[0] for _ in range(40)]

    first, again, other = statuses(seed=1), statuses(seed=1), statuses(seed=2)
    assert first == again
    assert first != other
    # 12 of 40 are expected; fewer than 3 or more than 25 come less often than once in 10,000.
    assert 3 <= first.count(503) <= 25


def test_slow_answers_come_whole_and_side_by_side(server):
    server.answer(latency=0.001, bandwidth=2e6, connect=0.001)
    spans = [f"bytes={first}-{first + 4000}" for first in FIRSTS]
    connections = []
    for span in spans:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/a.tar", headers={"Range": span})
        connections.append(connection)
    bodies = [connection.getresponse().read() for connection in connections]
    for connection in connections:
        connection.close()
    assert bodies == [CONTENT[first : first + 4001] for first in FIRSTS]
    stats = server.stats()
    assert stats["connections"] == stats["most_connections"] == len(spans)
    assert sorted(answer[1] for answer in server.log()) == [
        [first, first + 4000] for first in FIRSTS
    ]


def test_a_condition_that_is_none_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="did not start"), serving(tmp_path, ranges="some"):
        pass
