"""Connections on which an answer that drips is a time-out, not only one that is silent."""

import contextlib
import functools
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

# Any number of "100 Continue" may come before an answer.
_LARGEST_HEAD = 1 << 20


_of_thread = threading.local()


@contextlib.contextmanager
def holding_sockets(hold: Callable[[Callable[[], None] | None], None]) -> Iterator[None]:
    """Tell ``hold`` what shuts the socket that this thread's request uses, None when it has done.

    That may be called by any thread: whoever waits for the socket then finds its end.
    """
    _of_thread.hold = hold
    try:
        yield
    finally:
        _of_thread.hold = None
        hold(None)


def _hold(sock: Any) -> None:
    hold = getattr(_of_thread, "hold", None)
    if hold is not None:
        hold(None if sock is None else functools.partial(_shut, sock))


def _shut(sock: Any) -> None:
    # That of ssl would let another thread read what is encrypted as if it were not; TLS by a proxy
    # of TLS has its socket inside (urllib3 2.6, SSLTransport).
    with contextlib.suppress(OSError):
        socket.socket.shutdown(getattr(sock, "socket", sock), socket.SHUT_RDWR)


class TooSlowError(OSError):
    """An answer whose bytes come, but so slowly that it would never end."""


class _PacedSocket(io.RawIOBase):
    """A socket's file that measures how many bytes come while somebody waits for them."""

    def __init__(self, raw: io.RawIOBase, seconds: float, min_rate: float) -> None:
        self._raw, self._seconds, self._min_rate = raw, seconds, min_rate
        self._waited, self._came = 0.0, 0
        self.head: int | None = _LARGEST_HEAD
        """Bytes that headers may still take; None after them."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        started = time.monotonic()
        count = cast(int, self._raw.readinto(buffer) or 0)
        self._waited += time.monotonic() - started
        self._came += count
        if self._waited > self._seconds:
            if count and self._came < self._min_rate * self._waited:
                raise TooSlowError(
                    f"{self._came:,} bytes came in {self._waited:.1f} s, fewer than "
                    f"min_rate={self._min_rate:,} a second"
                )
            self._waited, self._came = 0.0, 0
        if self.head is not None:
            self.head -= count
            if self.head < 0:
                raise TooSlowError(f"{_LARGEST_HEAD:,} bytes of headers came, and no end of them")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _PacedResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, min_rate: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        # Headers and the sizes of chunks come by this file too (CPython 3.11, http/client.py).
        raw = cast(Any, self.fp).detach()
        self._paced = _PacedSocket(raw, sock.gettimeout() or 1e9, min_rate)
        self.fp = io.BufferedReader(self._paced)

    def begin(self) -> None:
        super().begin()
        self._paced.head = None


class _HeldConnection:
    """Tells of its socket whoever may have to shut it."""

    def connect(self: Any) -> None:
        super().connect()  # type: ignore[misc]
        _hold(self.sock)

    def request(self: Any, *arguments: Any, **options: Any) -> None:
        if self.sock is not None:
            _hold(self.sock)
        super().request(*arguments, **options)  # type: ignore[misc]


class _HoldingPool:
    """Connections that are given back are another's from then on."""

    def _put_conn(self, connection: Any) -> None:
        _hold(None)
        super()._put_conn(connection)  # type: ignore[misc]


def paced_pools(min_rate: float) -> dict[str, Any]:
    """urllib3's connection pools, by scheme, with answers that are measured."""
    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    pools: dict[str, Any] = {}
    for scheme, pool, connection in (
        ("http", HTTPConnectionPool, HTTPConnection),
        ("https", HTTPSConnectionPool, HTTPSConnection),
    ):
        # urllib3 2.6, HTTPConnection.getresponse calls that of http.client, which makes a
        # `response_class`.
        response = staticmethod(functools.partial(_PacedResponse, min_rate=min_rate))
        options = {"response_class": response}
        paced = type(connection.__name__, (_HeldConnection, connection), options)
        pools[scheme] = type(pool.__name__, (_HoldingPool, pool), {"ConnectionCls": paced})
    return pools
