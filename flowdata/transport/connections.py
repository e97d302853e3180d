"""Connections to HTTP servers: urllib3's, which are measured, and which any thread may shut."""

import contextlib
import functools
import http.client
import io
import os
import queue
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from flowdata.errors import ShardError
from flowdata.transport.access import Access
from flowdata.transport.answers import content_length, refusal, require_plain
from flowdata.transport.pace import Pace, PacedFile
from flowdata.transport.urls import redact

# Bytes of an error's text that are read so that its connection can be used again.
_LARGEST_DRAINED = 1 << 16
_of_thread = threading.local()


class Response:
    """A response whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self.length = -1
        """Bytes of the body, -1 where that is not said."""
        self.is_chunked = bool(response.chunked)

    def read(self, size: int) -> bytes:
        """The next bytes of the body."""
        content: bytes = self._response.read(size)
        return content

    def drain(self) -> None:
        """Read the rest."""
        self._response.drain_conn()

    def close(self) -> None:
        """Let go of the connection."""
        if not self._response.isclosed() and self._response.length_remaining != 0:
            self._response.close()
        self._response.release_conn()


def request(method: str, url: str, headers: Mapping[str, str], access: Access) -> Response:
    """The answer of a server that has the content, after redirects.

    Raises:
        RefusedError: for any other answer.
        Exception: whatever urllib3 raises where there is none.
    """
    import urllib3

    try:
        response = _pools(os.getpid(), proxy_of(url), access.min_rate).request(
            method,
            url,
            headers=headers,
            preload_content=False,
            decode_content=False,
            timeout=access.timeout,
            retries=urllib3.Retry(
                total=5,
                connect=0,
                read=0,
                status=0,
                other=0,
                redirect=5,
                # Waiting is not for urllib3, which does not tell why it gave up.
                respect_retry_after_header=False,
                remove_headers_on_redirect=[
                    *urllib3.Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT,
                    *access.headers,
                ],
            ),
        )
    except urllib3.exceptions.MaxRetryError as error:
        # Its message has the whole URL, and with it what may be a secret.
        raise error.reason or EOFError("no answer") from None
    answer = Response(response)
    try:
        answer.length = content_length(answer.headers)
        if answer.status in (200, 206):
            require_plain(answer.headers)
            return answer
        if 0 <= answer.length <= _LARGEST_DRAINED:
            answer.drain()
    except BaseException:
        answer.close()
        raise
    answer.close()
    raise refusal(answer.status, answer.headers)


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


class IdleConnections:
    """The connections to a server that are open, and that no request uses now."""

    def __init__(self, url: str, access: Access) -> None:
        self._url, self._min_rate, self._proxy = url, access.min_rate, proxy_of(url)
        self._process, self._pool = -1, cast(Any, None)

    def take(self) -> Any | None:
        """One of them, if there is any; not where there is a proxy, which is asked differently."""
        if self._proxy:
            return None
        if self._process != os.getpid():
            self._process = os.getpid()
            self._pool = _pools(self._process, "", self._min_rate).connection_from_url(self._url)
        return self._pool.take()

    def give(self, connection: Any) -> None:
        """Give one back, open or closed."""
        self._pool.give(connection)


def basic_auth_headers(url: str) -> dict[str, str]:
    """The headers of the user in a URL."""
    import urllib3

    user = urlsplit(url).netloc.rpartition("@")[0]
    return urllib3.make_headers(basic_auth=unquote(user)) if user else {}


def proxy_of(url: str) -> str:
    """The proxy that the environment names for a URL's host, empty for none."""
    proxies = urllib.request.getproxies()
    parts = urlsplit(url)
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.cache
def _pools(process: int, proxy: str, min_rate: float) -> Any:  # noqa: ARG001
    """The connection pools of this process: sockets must not be shared with a forked one."""
    import urllib3

    user = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
    try:
        pools = (
            urllib3.ProxyManager(proxy, maxsize=64, proxy_headers=headers)
            if proxy
            else urllib3.PoolManager(maxsize=64)
        )
    except ValueError as error:
        raise ShardError(
            f"the proxy {redact(proxy)} of the environment cannot be used: {error}"
        ) from error
    pools.pool_classes_by_scheme = _measured_pools(min_rate)
    return pools


class _MeasuredResponse(http.client.HTTPResponse):
    def __init__(self, sock: Any, *arguments: Any, min_rate: float, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        # Headers and the sizes of chunks come by this file too (CPython 3.11, http/client.py).
        raw = cast(Any, self.fp).detach()
        self._file = PacedFile(raw, Pace(sock.gettimeout() or 1e9, min_rate))
        self.fp = io.BufferedReader(self._file)

    def begin(self) -> None:
        super().begin()
        self._file.head = None


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

    def take(self: Any) -> Any | None:
        try:
            connection = self.pool.get_nowait()
        except (queue.Empty, AttributeError):
            return None
        if connection is not None and connection.is_connected:
            _hold(connection.sock)
            return connection
        if connection is not None:
            connection.close()
        self.give(connection)
        return None

    def give(self, connection: Any) -> None:
        self._put_conn(connection)

    def _put_conn(self, connection: Any) -> None:
        _hold(None)
        super()._put_conn(connection)  # type: ignore[misc]


def _measured_pools(min_rate: float) -> dict[str, Any]:
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
        response = staticmethod(functools.partial(_MeasuredResponse, min_rate=min_rate))
        options = {"response_class": response}
        measured = type(connection.__name__, (_HeldConnection, connection), options)
        pools[scheme] = type(pool.__name__, (_HoldingPool, pool), {"ConnectionCls": measured})
    return pools
