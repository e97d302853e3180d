"""One range by a connection that is open: where it is small, half of what it costs by urllib3.

Only what servers mostly answer is understood here; whoever answers anything else is asked by
`connections.request`.
"""

import mmap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from flowdata.transport.answers import content_length, refusal, require_plain
from flowdata.transport.connections import IdleConnections
from flowdata.transport.pace import Pace

# Others that come twice, as Vary, say nothing here.
_ONCE = frozenset(
    {"content-length", "content-range", "content-encoding", "etag", "last-modified", "retry-after"}
)
# Bytes that the headers of an answer may take.
_ROOM = 8192
# From so many bytes on, memory is a piece of its own.
_LARGE = 1 << 20


class OddAnswerError(Exception):
    """An answer that may be right, but is not understood here: a redirect, chunks, the whole."""


class Headers(dict[str, str]):
    """Headers of an answer, by any spelling of their names."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of one."""
        return super().get(name.lower(), default)


class Part(NamedTuple):
    """An answer that has a part of the content, and nothing more."""

    headers: Headers
    body: memoryview


def head_of(url: str, headers: Mapping[str, str]) -> bytes:
    """The first lines of requests for a URL, without the last."""
    from urllib3.util import parse_url

    parsed = parse_url(url)
    host = parsed.host or ""
    if parsed.port not in (None, {"http": 80, "https": 443}.get(parsed.scheme or "")):
        host = f"{host}:{parsed.port}"
    lines = [f"GET {parsed.request_uri} HTTP/1.1"]
    if "host" not in {name.lower() for name in headers}:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1")


def ask(
    idle: IdleConnections,
    request: bytes,
    size: int,
    pace: Pace,
    timeout: float,
    comes: Callable[[], None],
) -> Part | None:
    """The answer to a request for so many bytes; None where no connection is open.

    Raises:
        OddAnswerError: for one that is not understood.
        RefusedError: by a server that does not give it.
        OSError: by a connection that is lost on the way, or too slow.
    """
    connection = idle.take()
    if connection is None:
        return None
    is_open = False
    try:
        connection.sock.settimeout(timeout)
        try:
            connection.sock.sendall(request)
            buffer = _room_for(size + _ROOM)
            count = pace.receive(connection.sock.recv_into, buffer)
        except ConnectionError:
            count = 0
        if not count:
            # A server may close what was idle for long.
            return None
        comes()
        answer = _Answer(connection.sock, pace, buffer, count, comes)
        part = answer.part()
        is_open = answer.is_whole
        return part
    finally:
        if not is_open:
            connection.close()
        idle.give(connection)


def _room_for(size: int) -> memoryview:
    """Memory for so many bytes, which goes back to the system as soon as nobody has it."""
    # What the C library frees of that size it mostly keeps.
    if size < _LARGE:
        return np.empty(size, np.uint8).data
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class _Answer:
    """What a connection gives, in one buffer."""

    def __init__(
        self, sock: Any, pace: Pace, buffer: memoryview, count: int, comes: Callable[[], None]
    ) -> None:
        self._sock, self._pace, self._buffer, self._count = sock, pace, buffer, count
        self._comes = comes
        self.is_whole = False

    def part(self) -> Part:
        start = self._end_of_head()
        status, headers = _parse(bytes(self._buffer[:start]))
        length = content_length(headers)
        end = start + length
        fits = length >= 0 and end <= len(self._buffer)
        if fits:
            self._receive_to(end)
            keeps = "close" not in headers.get("Connection", "").lower()
            self.is_whole = self._count == end and keeps
        if status >= 400:
            raise refusal(status, headers)
        if status != 206 or not fits:
            raise OddAnswerError
        require_plain(headers)
        if self._count < end:
            raise EOFError(f"its answer ended after {self._count - start:,} of {length:,} bytes")
        return Part(headers, self._buffer[start:end])

    def _end_of_head(self) -> int:
        """Where the body starts; 0 for a head that is too long, or cut."""
        while True:
            found = bytes(self._buffer[: min(self._count, _ROOM)]).find(b"\r\n\r\n")
            if found >= 0:
                return found + 4
            if self._count >= _ROOM or not self._receive():
                return 0

    def _receive_to(self, end: int) -> None:
        while self._count < end and self._receive():
            pass

    def _receive(self) -> int:
        count = self._pace.receive(self._sock.recv_into, self._buffer[self._count :])
        self._count += count
        self._comes()
        return count


def _parse(head: bytes) -> tuple[int, Headers]:
    """Status and headers of plain HTTP/1.1."""
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if version != "HTTP/1.1" or not (status.isascii() and status.isdigit()) or rest[3:4].strip():
        raise OddAnswerError
    headers = Headers()
    for line in lines:
        name, colon, value = line.partition(":")
        key = name.lower()
        if not colon or not name or name != name.strip() or (key in headers and key in _ONCE):
            raise OddAnswerError
        headers[key] = value.strip()
    if "transfer-encoding" in headers:
        raise OddAnswerError
    return int(status), headers
