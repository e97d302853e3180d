"""Shards behind HTTP and HTTPS, by ranges where the server knows them."""

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from flowdata.errors import ShardError
from flowdata.shards.forward import Readable
from flowdata.shards.transport import (
    Access,
    Buffer,
    NoRangesError,
    RefusedError,
    Span,
    retrying,
    whole,
)
from flowdata.shards.urls import shown

_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
# Ranges of one request: its header has to stay below what servers take.
_RANGES = 64
_REQUESTED = 1 << 24
_PART_HEADER = 1024
_CONTENT_RANGE = re.compile(rb"\r\ncontent-range: *bytes (\d+)-(\d+)/", re.IGNORECASE)
_ONE_RANGE_ONLY: set[str] = set()


class HttpTransport:
    """A shard behind HTTP or HTTPS.

    Several ranges are asked for in one request (RFC 9110, section 15.3.7.2), which costs one
    round trip; a server that does not give them so is asked for one after another from then on.
    """

    def __init__(self, url: str, access: Access) -> None:
        self._url, self._access = url, access
        self._host = urlsplit(url).netloc
        self._length: int | None = None
        self.ranged = True

    def length(self) -> int | None:
        """Bytes of the shard, None if the server does not tell."""
        if self._length is None:

            def ask() -> None:
                with self._answer({}, method="HEAD") as answer:
                    size = answer.headers.get("Content-Length", "")
                    self._length = int(size) if size.isdigit() else None

            with contextlib.suppress(ShardError):
                retrying(ask, self._url, self._access)
        return self._length

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        """Exactly these bytes, span by span."""
        for together in _requests(spans):
            contents = None
            if len(together) > 1 and self._host not in _ONE_RANGE_ONLY:
                contents = self._read_together(together)
            if contents is None:
                contents = [self._read_one(*span) for span in together]
            yield from contents

    def stream(self) -> Readable:
        """All bytes from the first on."""
        return _HttpStream(self._url, self._access, self._answer)

    def close(self) -> None:
        """Connections belong to the process."""

    def _read_one(self, offset: int, size: int) -> Buffer:
        def fetch() -> bytes:
            with self._answer({"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
                if answer.status == 200:
                    self.ranged = False
                    raise NoRangesError
                total = answer.headers.get("Content-Range", "").rpartition("/")[2]
                self._length = int(total) if total.isdigit() else self._length
                content: bytes = answer.read(size)
                return whole(content, size, offset, shown(self._url))

        return retrying(fetch, self._url, self._access)

    def _read_together(self, spans: Sequence[Span]) -> list[Buffer] | None:
        """The spans by one request; None if the server does not give them one by one."""
        ranges = ",".join(f"{offset}-{offset + size - 1}" for offset, size in spans)
        most = sum(size for _, size in spans) + _PART_HEADER * (len(spans) + 1)

        def fetch() -> list[Buffer] | None:
            try:
                with self._answer({"Range": f"bytes={ranges}"}) as answer:
                    kind = answer.headers.get("Content-Type", "")
                    if answer.status != 206 or not kind.startswith("multipart/byteranges"):
                        return None
                    content: bytes = answer.read(most)
            except RefusedError as error:
                if error.for_good:
                    return None
                raise
            return _parts(content, spans)

        contents = retrying(fetch, self._url, self._access)
        if contents is None:
            _ONE_RANGE_ONLY.add(self._host)
        return contents

    def _answer(self, headers: dict[str, str], *, method: str = "GET") -> "_Answer":
        import urllib3

        try:
            answer = _connections(os.getpid()).request(
                method,
                self._url,
                headers={"Accept-Encoding": "identity"} | headers,
                preload_content=False,
                timeout=self._access.timeout,
                retries=urllib3.Retry(total=5, connect=0, read=0, status=0, other=0, redirect=5),
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
    return RefusedError(f"HTTP {status}", for_good=status not in _AGAIN, wait=wait)


class _Answer:
    """An answer whose connection goes back to the pool only if it was read to its end."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __enter__(self) -> Any:
        return self._answer

    def __exit__(self, *error: object) -> None:
        if not self._answer.isclosed() and self._answer.length_remaining != 0:
            self._answer.close()
        self._answer.release_conn()


class _HttpStream:
    """A body that goes on where it was when the connection is lost."""

    def __init__(self, url: str, access: Access, ask: Callable[[dict[str, str]], _Answer]) -> None:
        self._url, self._access, self._ask = url, access, ask
        self._position = 0
        self._answer: _Answer | None = None

    def read(self, size: int) -> bytes:
        return retrying(lambda: self._read(size), self._url, self._access)

    def _read(self, size: int) -> bytes:
        try:
            body = (self._answer or self._open()).__enter__()
            content: bytes = body.read(size)
        except BaseException:
            self.close()
            raise
        self._position += len(content)
        return content

    def _open(self) -> _Answer:
        start = {"Range": f"bytes={self._position}-"} if self._position else {}
        self._answer = self._ask(start)
        body = self._answer.__enter__()
        behind = self._position if body.status == 200 else 0
        while behind > 0:
            skipped = body.read(min(behind, 1 << 20))
            if not skipped:
                raise EOFError("it ended before the byte where it was cut")
            behind -= len(skipped)
        return self._answer

    def close(self) -> None:
        if self._answer is not None:
            self._answer.__exit__()
            self._answer = None


@functools.cache
def _connections(process: int) -> Any:  # noqa: ARG001
    """The connection pools of this process: sockets must not be shared with a forked one."""
    import urllib3

    return urllib3.PoolManager(maxsize=64)
