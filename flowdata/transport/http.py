"""Shards on HTTP and HTTPS servers, by ranges where the server knows them."""

import contextlib
import functools
import io
import os
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from flowdata.errors import ShardError
from flowdata.transport.access import (
    Access,
    BadAnswerError,
    Buffer,
    NoRangesError,
    Readable,
    RefusedError,
    Span,
)
from flowdata.transport.answers import (
    LARGEST_PART_HEADER,
    content_length,
    content_range,
    identity_of,
    refusal,
    require_plain,
    split_multipart,
)
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN, Identity, place_of
from flowdata.transport.pace import holding_sockets, paced_pools
from flowdata.transport.resumed import ResumedStream
from flowdata.transport.retrying import require_complete, retry
from flowdata.transport.urls import redact

# Statuses of a server that does not take several ranges, or so many, in one request.
_MULTIRANGE_REFUSED = frozenset({400, 413, 416, 431})
# Ranges of one request: its header has to stay below what servers take.
_MOST_RANGES = 64
_LARGEST_REQUEST = 1 << 24
# Bytes of an error's text that are read so that its connection can be used again.
_LARGEST_DRAINED = 1 << 16
# What this process knows of hosts, by their names.
_HOST_SUPPORTS_RANGES: dict[str, bool] = {}
_ONE_RANGE_ONLY: set[str] = set()


class HttpTransport:
    """A shard on an HTTP or HTTPS server.

    Several ranges are asked for in one request (RFC 9110, section 15.3.7.2), which costs one
    round trip; a server that does not give them so is asked for one after another from then on.
    Whatever an answer says of the shard's length and version has to be what is expected, and what
    answers before it said.
    """

    def __init__(self, url: str, access: Access, expected: Identity = UNKNOWN) -> None:
        self._url, self._access, self._name = url, access, redact(url)
        self._host, self._place = _host(url), place_of(url)
        self._request_url = (
            urlsplit(url)._replace(netloc=self._host).geturl() if "@" in url else url
        )
        self._proxy = _proxy(url, self._host)
        # Compressed on the way, byte ranges would be those of the compressed content.
        self._headers = (
            {"Accept-Encoding": "identity"} | _basic_auth_headers(url) | dict(access.headers)
        )
        self._known = expected
        self._when = "it was first read" if expected == UNKNOWN else "it was indexed"
        self._lock = threading.Lock()
        self._supports_ranges = True
        self._full_response: _Response | None = None
        self._stream: ResumedStream | None = None
        self._is_whole = False

    @property
    def supports_ranges(self) -> bool:
        """Whether `read` can be tried."""
        return self._supports_ranges and _HOST_SUPPORTS_RANGES.get(self._host, True)

    def identity(self) -> Identity:
        """What answers said, or are asked to say now where there was none; it may be nothing."""
        if self._stream is not None and self._stream.ended:
            return self._known.with_length(self._stream.tell())
        if self._known == UNKNOWN:
            for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
                found = UNKNOWN
                with contextlib.suppress(ShardError):
                    found = retry(
                        functools.partial(self._ask, method, headers), self._url, self._access
                    )
                if found.length >= 0:
                    return found
        return self._known

    def is_whole(self) -> bool:
        """Whether the last body had a length, or chunks that say which is the last."""
        return self._is_whole

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

    def fetch(self, offset: int, size: int) -> Fetch:
        """One of these spans, to be read by any thread."""

        def attempt(fetch: Fetch) -> Buffer:
            with holding_sockets(fetch.holds):
                return self._attempt(offset, size, fetch)

        return Fetch(attempt, self._url, self._access)

    def stream(self) -> Readable:
        """All bytes from the first on."""
        body, self._full_response = self._full_response, None
        self._stream = ResumedStream(
            self._open_at, self._url, self._access, body, length=lambda: self._known.length
        )
        return self._stream

    def close(self) -> None:
        """Leave a body that nobody wants; connections belong to the process."""
        if self._full_response is not None:
            self._full_response.close()
            self._full_response = None

    def _ask(self, method: str, headers: dict[str, str]) -> Identity:
        with contextlib.closing(self._request(headers, method=method)) as response:
            if response.headers.get("Accept-Ranges", "").lower() == "bytes":
                _HOST_SUPPORTS_RANGES[self._host] = True
            length = response.length
            if response.status == 206:
                length = content_range(response.headers.get("Content-Range", ""))[2]
            # Servers without an answer to HEAD say 0.
            return self._identity(response, length or -1)

    def _identity(self, response: "_Response", length: int) -> Identity:
        found = identity_of(response.headers, self._place, length)
        return found if self._access.check_version else found.without_version()

    def _note(self, response: "_Response", length: int) -> None:
        """Compare what an answer says of the whole shard with what is known of it."""
        found = self._identity(response, length)
        try:
            with self._lock:
                self._known = self._known.joined(found, self._name, when=self._when)
        except ShardError:
            response.close()
            raise

    def _note_whole(self, response: "_Response") -> None:
        self._note(response, response.length)
        self._is_whole = response.is_chunked or self._known.length >= 0

    def _read_one(self, offset: int, size: int) -> Buffer:
        return retry(lambda: self._attempt(offset, size), self._url, self._access)

    def _attempt(self, offset: int, size: int, fetch: Fetch | None = None) -> bytes:
        response = self._request({"Range": f"bytes={offset}-{offset + size - 1}"})
        if fetch is not None:
            fetch.begins()
        if response.status == 200:
            self._note_whole(response)
            self._keep_full(response)
            raise NoRangesError
        with contextlib.closing(response):
            first, count, total = content_range(response.headers.get("Content-Range", ""))
            self._note(response, total)
            _HOST_SUPPORTS_RANGES[self._host] = True
            if first != offset or count > size or response.length not in (-1, count):
                raise BadAnswerError(
                    f"asked for {size:,} bytes from byte {offset:,} on, it sent "
                    f"{max(count, response.length):,} from byte {first:,} on"
                )
            content = response.read(count)
            if response.length < 0 and response.read(1):
                raise BadAnswerError(f"it sent more than the {count:,} bytes that it said")
            return require_complete(content, size, offset, self._name)

    def _keep_full(self, response: "_Response") -> None:
        """The whole shard is what will be asked for next, but once."""
        with self._lock:
            is_first = self._supports_ranges
            if is_first:
                self._supports_ranges, self._full_response = False, response
        _HOST_SUPPORTS_RANGES.setdefault(self._host, False)
        if not is_first:
            response.close()

    def _read_multirange(self, spans: Sequence[Span]) -> list[Buffer] | None:
        """The spans by one request; None if the server does not give them one by one."""
        ranges = ",".join(f"{offset}-{offset + size - 1}" for offset, size in spans)
        most = sum(size for _, size in spans) + LARGEST_PART_HEADER * (len(spans) + 1)

        def fetch() -> list[Buffer] | None:
            try:
                with contextlib.closing(self._request({"Range": f"bytes={ranges}"})) as response:
                    kind = response.headers.get("Content-Type", "")
                    if response.status != 206 or not kind.startswith("multipart/byteranges"):
                        return None
                    self._note(response, -1)
                    content = response.read(most)
            except RefusedError as error:
                if error.status in _MULTIRANGE_REFUSED:
                    return None
                raise
            return split_multipart(content, kind, spans, self._known.length)

        contents = retry(fetch, self._url, self._access)
        if contents is None:
            _ONE_RANGE_ONLY.add(self._host)
        return contents

    def _open_at(self, offset: int) -> Readable:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and (validator := self._known.validator(self._place)):
            headers["If-Range"] = validator
        try:
            response = self._request(headers)
        except RefusedError as error:
            # The connection was lost after the last byte.
            if error.status == 416 and error.length == offset:
                self._is_whole = True
                return io.BytesIO()
            raise
        try:
            # A server without ranges begins with the first byte again.
            to_skip = offset
            if response.status == 206:
                first, _, total = content_range(response.headers.get("Content-Range", ""))
                self._note(response, total)
                self._is_whole = self._known.length >= 0
                if first != offset:
                    raise BadAnswerError(f"asked for byte {offset:,} on, it sent {first:,} on")
                to_skip = 0
            else:
                self._note_whole(response)
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
            response = _connections(os.getpid(), self._proxy, self._access.min_rate).request(
                method,
                self._request_url,
                headers=self._headers | headers,
                preload_content=False,
                decode_content=False,
                timeout=self._access.timeout,
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
                        *self._access.headers,
                    ],
                ),
            )
        except urllib3.exceptions.MaxRetryError as error:
            # Its message has the whole URL, and with it what may be a secret.
            raise error.reason or EOFError("no answer") from None
        answer = _Response(response)
        try:
            answer.length = content_length(response.headers)
            if response.status in (200, 206):
                require_plain(response.headers)
                return answer
            if 0 <= answer.length <= _LARGEST_DRAINED:
                response.drain_conn()
        except BaseException:
            answer.close()
            raise
        answer.close()
        refused = refusal(response.status, response.headers)
        self._known.joined(Identity(refused.length), self._name, when=self._when)
        raise refused


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


class _Response:
    """A response whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, response: Any) -> None:
        self._response = response
        self.status: int = response.status
        self.headers = response.headers
        self.length = -1
        """Bytes of the body, -1 where that is not said."""
        self.is_chunked = bool(response.chunked)

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
def _connections(process: int, proxy: str, min_rate: float) -> Any:  # noqa: ARG001
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
    pools.pool_classes_by_scheme = paced_pools(min_rate)
    return pools
