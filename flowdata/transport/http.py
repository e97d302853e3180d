"""Shards behind HTTP and HTTPS, by ranges where the server knows them."""

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
from flowdata.transport.retrying import retrying, whole
from flowdata.transport.urls import shown

# What may pass: time-outs, too many requests, and servers that are in trouble.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# What a server answers to a header with more ranges than it takes.
_NOT_TOGETHER = frozenset({400, 413, 416, 431})
# Ranges of one request: its header has to stay below what servers take.
_RANGES = 64
_REQUESTED = 1 << 24
_PART_HEADER = 1024
_CONTENT_RANGE = re.compile(rb"\r\ncontent-range: *bytes (\d+)-(\d+)/", re.IGNORECASE)
# What this process knows of hosts.
_RANGED: dict[str, bool] = {}
_ONE_RANGE_ONLY: set[str] = set()


class HttpTransport:
    """A shard behind HTTP or HTTPS.

    Several ranges are asked for in one request (RFC 9110, section 15.3.7.2), which costs one
    round trip; a server that does not give them so is asked for one after another from then on.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._url, self._access = url, access
        self._host = _host(url)
        self._asked = urlsplit(url)._replace(netloc=self._host).geturl() if "@" in url else url
        self._proxy = _proxy(url, self._host)
        # Compressed on the way, byte ranges would be those of the compressed content.
        self._headers = {"Accept-Encoding": "identity"} | _sign_in(url) | dict(access.headers)
        self._length: int | None = None
        self._ranged = True
        self._whole: _Answer | None = None

    @property
    def ranged(self) -> bool:
        """Whether `read` can be tried."""
        return self._ranged and _RANGED.get(self._host, True)

    def length(self) -> int | None:
        """Bytes of the shard, None if the server does not tell."""
        if self._length is None:
            with contextlib.suppress(ShardError):
                retrying(self._ask_length, self._url, self._access)
        return self._length

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        """Exactly these bytes, span by span."""
        if spans and self._host not in _RANGED:
            # One range first, alone: a server without ranges would send its whole shard twice.
            yield self._read_one(*spans[0])
            spans = spans[1:]
        for together in _requests(spans):
            contents = None
            if len(together) > 1 and self._host not in _ONE_RANGE_ONLY:
                contents = self._read_together(together)
            if contents is None:
                contents = [self._read_one(*span) for span in together]
            yield from contents

    def stream(self) -> Readable:
        """All bytes from the first on."""
        body, self._whole = self._whole, None
        return ResumedStream(self._open_at, self._url, self._access, body)

    def close(self) -> None:
        """Leave a body that nobody wants; connections belong to the process."""
        if self._whole is not None:
            self._whole.close()
            self._whole = None

    def _ask_length(self) -> None:
        with contextlib.closing(self._answer({}, method="HEAD")) as answer:
            size = answer.headers.get("Content-Length", "")
            self._length = int(size) if size.isdigit() else None
            if answer.headers.get("Accept-Ranges", "").lower() == "bytes":
                _RANGED[self._host] = True

    def _read_one(self, offset: int, size: int) -> Buffer:
        def fetch() -> bytes:
            answer = self._answer({"Range": f"bytes={offset}-{offset + size - 1}"})
            if answer.status == 200:
                # The whole shard is what will be asked for next.
                self._ranged, self._whole = False, answer
                _RANGED.setdefault(self._host, False)
                raise NoRangesError
            with contextlib.closing(answer):
                _RANGED[self._host] = True
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                self._length = int(total) if total.isdigit() else self._length
                return whole(answer.read(size), size, offset, shown(self._url))

        return retrying(fetch, self._url, self._access)

    def _read_together(self, spans: Sequence[Span]) -> list[Buffer] | None:
        """The spans by one request; None if the server does not give them one by one."""
        ranges = ",".join(f"{offset}-{offset + size - 1}" for offset, size in spans)
        most = sum(size for _, size in spans) + _PART_HEADER * (len(spans) + 1)

        def fetch() -> list[Buffer] | None:
            try:
                with contextlib.closing(self._answer({"Range": f"bytes={ranges}"})) as answer:
                    kind = answer.headers.get("Content-Type", "")
                    if answer.status != 206 or not kind.startswith("multipart/byteranges"):
                        return None
                    content = answer.read(most)
            except RefusedError as error:
                if error.status in _NOT_TOGETHER:
                    return None
                raise
            return _parts(content, spans)

        contents = retrying(fetch, self._url, self._access)
        if contents is None:
            _ONE_RANGE_ONLY.add(self._host)
        return contents

    def _open_at(self, position: int) -> "_Answer":
        answer = self._answer({"Range": f"bytes={position}-"} if position else {})
        behind = position if answer.status == 200 else 0
        try:
            while behind > 0:
                skipped = answer.read(min(behind, 1 << 20))
                if not skipped:
                    raise EOFError("it ended before the byte where it was cut")
                behind -= len(skipped)
        except BaseException:
            answer.close()
            raise
        return answer

    def _answer(self, headers: dict[str, str], *, method: str = "GET") -> "_Answer":
        import urllib3

        try:
            answer = _connections(os.getpid(), self._proxy).request(
                method,
                self._asked,
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
        if answer.status not in (200, 206):
            answer.drain_conn()
            answer.release_conn()
            raise _refused(answer.status, answer.headers.get("Retry-After", ""))
        return _Answer(answer)


def _requests(spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
    """Spans in the groups in which they are asked for."""
    first, bytes_ = 0, 0
    for number, (_, size) in enumerate(spans):
        if number > first and (number - first == _RANGES or bytes_ + size > _REQUESTED):
            yield spans[first:number]
            first, bytes_ = number, 0
        bytes_ += size
    if spans:
        yield spans[first:]


def _parts(content: bytes, spans: Sequence[Span]) -> list[Buffer] | None:
    """The bodies of a multipart answer, if they are these spans in this order."""
    view, position = memoryview(content), 0
    bodies: list[Buffer] = []
    for offset, size in spans:
        end = content.find(b"\r\n\r\n", position, position + _PART_HEADER)
        header = _CONTENT_RANGE.search(content[position : end + 2])
        if end < 0 or header is None:
            raise EOFError(f"only {len(bodies)} of {len(spans)} ranges came")
        if (int(header[1]), int(header[2])) != (offset, offset + size - 1):
            return None
        position = end + 4 + size
        if position > len(content):
            raise EOFError(f"only {len(bodies)} of {len(spans)} ranges came whole")
        bodies.append(view[end + 4 : position])
    return bodies


def _refused(status: int, retry_after: str) -> RefusedError:
    wait = float(retry_after) if retry_after.isdigit() else 0.0
    hint = ""
    if status == 401:
        hint = '; sign in by Access(headers={"Authorization": ...}), or user:password@ in the URL'
    return RefusedError(f"HTTP {status}{hint}", status, for_good=status not in _AGAIN, wait=wait)


class _Answer:
    """An answer whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.status: int = answer.status
        self.headers = answer.headers

    def read(self, size: int) -> bytes:
        content: bytes = self._answer.read(size)
        return content

    def close(self) -> None:
        if not self._answer.isclosed() and self._answer.length_remaining != 0:
            self._answer.close()
        self._answer.release_conn()


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _sign_in(url: str) -> dict[str, str]:
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
            f"the proxy {shown(proxy)} of the environment cannot be used: {error}"
        ) from error
