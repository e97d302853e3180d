"""Shards on HTTP and HTTPS servers, by ranges where the server knows them."""

import contextlib
import functools
import os
import re
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Buffer, NoRangesError, Readable, RefusedError, Span
from flowdata.transport.resumed import ResumedStream
from flowdata.transport.retrying import require_complete, retry
from flowdata.transport.urls import redact

# Statuses of failures that may pass: time-outs, too many requests, and servers that are in trouble.
_RETRY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# Statuses of a server that does not take several ranges, or so many, in one request.
_MULTIRANGE_REFUSED = frozenset({400, 413, 416, 431})
# Ranges of one request: its header has to stay below what servers take.
_MOST_RANGES = 64
_LARGEST_REQUEST = 1 << 24
_LARGEST_PART_HEADER = 1024
_CONTENT_RANGE = re.compile(rb"\r\ncontent-range: *bytes (\d+)-(\d+)/", re.IGNORECASE)
# What this process knows of hosts, by their names.
_HOST_SUPPORTS_RANGES: dict[str, bool] = {}
_ONE_RANGE_ONLY: set[str] = set()


class HttpTransport:
    """A shard on an HTTP or HTTPS server.

    Several ranges are asked for in one request (RFC 9110, section 15.3.7.2), which costs one
    round trip; a server that does not give them so is asked for one after another from then on.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._url, self._access = url, access
        self._host = _host(url)
        self._request_url = (
            urlsplit(url)._replace(netloc=self._host).geturl() if "@" in url else url
        )
        self._proxy = _proxy(url, self._host)
        # Compressed on the way, byte ranges would be those of the compressed content.
        self._headers = (
            {"Accept-Encoding": "identity"} | _basic_auth_headers(url) | dict(access.headers)
        )
        self._length: int | None = None
        self._supports_ranges = True
        self._full_response: _Response | None = None

    @property
    def supports_ranges(self) -> bool:
        """Whether `read` can be tried."""
        return self._supports_ranges and _HOST_SUPPORTS_RANGES.get(self._host, True)

    def length(self) -> int | None:
        """Bytes of the shard, None if the server does not tell."""
        if self._length is None:
            with contextlib.suppress(ShardError):
                retry(self._ask_length, self._url, self._access)
        return self._length

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        """Exactly these bytes, span by span."""
        if spans and self._host not in _HOST_SUPPORTS_RANGES:
            # One range first, alone: a server without ranges would send its whole shard twice.
            yield self._read_one(*spans[0])
            spans = spans[1:]
        for group in _group_spans(spans):
            contents = None
            if len(group) > 1 and self._host not in _ONE_RANGE_ONLY:
                contents = self._read_multirange(group)
            if contents is None:
                contents = [self._read_one(*span) for span in group]
            yield from contents

    def stream(self) -> Readable:
        """All bytes from the first on."""
        body, self._full_response = self._full_response, None
        return ResumedStream(self._open_at, self._url, self._access, body)

    def close(self) -> None:
        """Leave a body that nobody wants; connections belong to the process."""
        if self._full_response is not None:
            self._full_response.close()
            self._full_response = None

    def _ask_length(self) -> None:
        with contextlib.closing(self._request({}, method="HEAD")) as response:
            size = response.headers.get("Content-Length", "")
            self._length = int(size) if size.isdigit() else None
            if response.headers.get("Accept-Ranges", "").lower() == "bytes":
                _HOST_SUPPORTS_RANGES[self._host] = True

    def _read_one(self, offset: int, size: int) -> Buffer:
        def fetch() -> bytes:
            response = self._request({"Range": f"bytes={offset}-{offset + size - 1}"})
            if response.status == 200:
                # The whole shard is what will be asked for next.
                self._supports_ranges, self._full_response = False, response
                _HOST_SUPPORTS_RANGES.setdefault(self._host, False)
                raise NoRangesError
            with contextlib.closing(response):
                _HOST_SUPPORTS_RANGES[self._host] = True
                total = response.headers.get("Content-Range", "").rpartition("/")[2]
                self._length = int(total) if total.isdigit() else self._length
                return require_complete(response.read(size), size, offset, redact(self._url))

        return retry(fetch, self._url, self._access)

    def _read_multirange(self, spans: Sequence[Span]) -> list[Buffer] | None:
        """The spans by one request; None if the server does not give them one by one."""
        ranges = ",".join(f"{offset}-{offset + size - 1}" for offset, size in spans)
        most = sum(size for _, size in spans) + _LARGEST_PART_HEADER * (len(spans) + 1)

        def fetch() -> list[Buffer] | None:
            try:
                with contextlib.closing(self._request({"Range": f"bytes={ranges}"})) as response:
                    kind = response.headers.get("Content-Type", "")
                    if response.status != 206 or not kind.startswith("multipart/byteranges"):
                        return None
                    content = response.read(most)
            except RefusedError as error:
                if error.status in _MULTIRANGE_REFUSED:
                    return None
                raise
            return _split_multipart(content, spans)

        contents = retry(fetch, self._url, self._access)
        if contents is None:
            _ONE_RANGE_ONLY.add(self._host)
        return contents

    def _open_at(self, offset: int) -> "_Response":
        response = self._request({"Range": f"bytes={offset}-"} if offset else {})
        # A server without ranges begins with the first byte again.
        to_skip = offset if response.status == 200 else 0
        try:
            while to_skip > 0:
                skipped = response.read(min(to_skip, 1 << 20))
                if not skipped:
                    raise EOFError("it ended before the byte where it was cut")
                to_skip -= len(skipped)
        except BaseException:
            response.close()
            raise
        return response

    def _request(self, headers: dict[str, str], *, method: str = "GET") -> "_Response":
        import urllib3

        try:
            response = _connections(os.getpid(), self._proxy).request(
                method,
                self._request_url,
                headers=self._headers | headers,
                preload_content=False,
                timeout=self._access.timeout,
                retries=urllib3.Retry(
                    total=5,
                    connect=0,
                    read=0,
                    status=0,
                    other=0,
                    redirect=5,
                    remove_headers_on_redirect=[
                        *urllib3.Retry.DEFAULT_REMOVE_HEADERS_ON_REDIRECT,
                        *self._access.headers,
                    ],
                ),
            )
        except urllib3.exceptions.MaxRetryError as error:
            # Its message has the whole URL, and with it what may be a secret.
            raise error.reason or EOFError("no answer") from None
        if response.status not in (200, 206):
            response.drain_conn()
            response.release_conn()
            raise _refusal(response.status, response.headers.get("Retry-After", ""))
        return _Response(response)


def _group_spans(spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Spans in the groups in which they are asked for."""
    first, total = 0, 0
    for number, (_, size) in enumerate(spans):
        if number > first and (number - first == _MOST_RANGES or total + size > _LARGEST_REQUEST):
            yield spans[first:number]
            first, total = number, 0
        total += size
    if spans:
        yield spans[first:]


def _split_multipart(content: bytes, spans: Sequence[Span]) -> list[Buffer] | None:
    """The bodies of a multipart response, if they are these spans in this order."""
    view, start = memoryview(content), 0
    bodies: list[Buffer] = []
    for offset, size in spans:
        end = content.find(b"\r\n\r\n", start, start + _LARGEST_PART_HEADER)
        header = _CONTENT_RANGE.search(content[start : end + 2])
        if end < 0 or header is None:
            raise EOFError(f"only {len(bodies)} of {len(spans)} ranges came")
        if (int(header[1]), int(header[2])) != (offset, offset + size - 1):
            return None
        start = end + 4 + size
        if start > len(content):
            raise EOFError(f"only {len(bodies)} of {len(spans)} ranges came whole")
        bodies.append(view[end + 4 : start])
    return bodies


def _refusal(status: int, retry_after: str) -> RefusedError:
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    hint = ""
    if status == 401:
        hint = '; sign in by Access(headers={"Authorization": ...}), or user:password@ in the URL'
    return RefusedError(
        f"HTTP {status}{hint}", status, permanent=status not in _RETRY_STATUSES, wait=wait
    )


class _Response:
    """A response whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers = response.headers

    def read(self, size: int) -> bytes:
        content: bytes = self._response.read(size)
        return content

    def close(self) -> None:
        if not self._response.isclosed() and self._response.length_remaining != 0:
            self._response.close()
        self._response.release_conn()


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _basic_auth_headers(url: str) -> dict[str, str]:
    import urllib3

    user = urlsplit(url).netloc.rpartition("@")[0]
    return urllib3.make_headers(basic_auth=unquote(user)) if user else {}


def _proxy(url: str, host: str) -> str:
    """The proxy that the environment names for this host, empty for none."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(urlsplit(url).scheme) or proxies.get("all") or ""
    if not proxy or urllib.request.proxy_bypass(host):
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


@functools.cache
def _connections(process: int, proxy: str) -> Any:  # noqa: ARG001
    """The connection pools of this process: sockets must not be shared with a forked one."""
    import urllib3

    if not proxy:
        return urllib3.PoolManager(maxsize=64)
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    headers = urllib3.make_headers(proxy_basic_auth=unquote(user)) if user else None
    try:
        return urllib3.ProxyManager(proxy, maxsize=64, proxy_headers=headers)
    except ValueError as error:
        raise ShardError(
            f"the proxy {redact(proxy)} of the environment cannot be used: {error}"
        ) from error
