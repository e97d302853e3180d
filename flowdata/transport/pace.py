"""Connections on which an answer that drips is a time-out, not only one that is silent."""

import functools
import http.client
import io
import time
from typing import Any, cast


class TooSlowError(OSError):
    """An answer whose bytes come, but so slowly that it would never end."""


class _PacedSocket(io.RawIOBase):
    """A socket's file that measures how many bytes come while somebody waits for them."""

    def __init__(self, raw: io.RawIOBase, seconds: float, min_rate: float) -> None:
        self._raw, self._seconds, self._min_rate = raw, seconds, min_rate
        self._waited, self._came = 0.0, 0

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
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _paced_response(sock: Any, *arguments: Any, min_rate: float, **options: Any) -> Any:
    response = http.client.HTTPResponse(sock, *arguments, **options)
    # Headers and the sizes of chunks come by this file too (CPython 3.11, http/client.py).
    raw = response.fp.detach()
    response.fp = io.BufferedReader(_PacedSocket(raw, sock.gettimeout() or 1e9, min_rate))
    return response


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
        response = staticmethod(functools.partial(_paced_response, min_rate=min_rate))
        paced = type("Paced", (connection,), {"response_class": response})
        pools[scheme] = type("PacedPool", (pool,), {"ConnectionCls": paced})
    return pools
