"""Shards on HTTP and HTTPS servers, by ranges where the server knows them."""

import contextlib
import functools
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from flowdata.errors import ShardError
from flowdata.transport import connections, exchange
from flowdata.transport.access import (
    Access,
    BadAnswerError,
    Buffer,
    NoRangesError,
    Readable,
    RefusedError,
    Span,
)
from flowdata.transport.answers import content_range, identity_of
from flowdata.transport.connections import Response
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN, Identity, changed, place_of
from flowdata.transport.pace import Pace
from flowdata.transport.resumed import ResumedStream
from flowdata.transport.retrying import require_complete, retry
from flowdata.transport.urls import redact
from flowdata.version import __version__

# Statuses of an answer to If-Match, and of one that is not the range that was asked for.
_CHANGED, _NO_SUCH_RANGE = 412, 416
# What this process knows of hosts, by their names.
_HOST_SUPPORTS_RANGES: dict[str, bool] = {}


class HttpTransport:
    """A shard on an HTTP or HTTPS server.

    Whatever an answer says of the shard's length and version has to be what is expected, and what
    answers before it said; servers are asked for a range only of that version (If-Match).

    Args:
        url: that is asked.
        access: how.
        expected: what its content has to be.
        name: the URL by which the shard is known, if it is another.
    """

    def __init__(
        self, url: str, access: Access, expected: Identity = UNKNOWN, *, name: str = ""
    ) -> None:
        self._url, self._access = name or url, access
        self._name, self._place = redact(self._url), place_of(self._url)
        self._host = urlsplit(url).netloc.rpartition("@")[2]
        self._request_url = (
            urlsplit(url)._replace(netloc=self._host).geturl() if "@" in url else url
        )
        self._headers = (
            # Compressed on the way, byte ranges would be those of the compressed content.
            {"Accept-Encoding": "identity", "User-Agent": f"flowdata/{__version__}"}
            | connections.basic_auth_headers(url)
            | dict(access.headers)
        )
        self._head = exchange.head_of(self._request_url, self._headers)
        self._idle = connections.IdleConnections(self._request_url, access)
        self._known = expected
        self._when = "it was first read" if expected == UNKNOWN else "it was indexed"
        self._said: tuple[str | None, str | None, int] | None = None
        self._lock = threading.Lock()
        self._takes_if_match = self._is_plain = True
        self._supports_ranges = True
        self._full_response: Response | None = None
        self._stream: ResumedStream | None = None
        self._is_whole = False

    @property
    def supports_ranges(self) -> bool:
        """Whether `read` can be tried."""
        return self._supports_ranges and _HOST_SUPPORTS_RANGES.get(self._host, True)

    @property
    def known(self) -> Identity:
        """What answers said until now."""
        return self._known

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
        """Exactly these bytes, span by span: the first alone, the others side by side."""

        def ask(span: Span) -> Buffer:
            return retry(functools.partial(self.attempt, *span), self._url, self._access)

        # A server without ranges sends its whole shard to each that asks.
        yield from map(ask, spans[:1])
        if len(spans) > 1:
            pool = ThreadPoolExecutor(min(self._access.connections, len(spans) - 1))
            try:
                yield from pool.map(ask, spans[1:])
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, offset: int, size: int) -> Fetch:
        """One of these spans, to be read by any thread."""

        def attempt(fetch: Fetch) -> Buffer:
            with connections.holding_sockets(fetch.holds):
                return self.attempt(offset, size, fetch)

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
            return self._identity(response.headers, length or -1)

    def _identity(self, headers: Mapping[str, str], length: int) -> Identity:
        found = identity_of(headers, self._place, length)
        return found if self._access.check_version else found.without_version()

    def _note(self, headers: Mapping[str, str], length: int) -> None:
        """Compare what an answer says of the whole shard with what is known of it."""
        said = headers.get("ETag"), headers.get("Last-Modified"), length
        if said == self._said:
            return
        found = self._identity(headers, length)
        with self._lock:
            self._known = self._known.joined(found, self._name, when=self._when)
            self._said = said

    def _note_whole(self, response: Response) -> None:
        try:
            self._note(response.headers, response.length)
        except ShardError:
            response.close()
            raise
        self._is_whole = response.is_chunked or self._known.length >= 0

    def attempt(self, offset: int, size: int, fetch: Fetch | None = None) -> Buffer:
        """One request for a span."""
        wanted = {"Range": f"bytes={offset}-{offset + size - 1}"}
        validator = self._known.validator(self._place)
        if self._takes_if_match and validator.startswith('"'):
            wanted["If-Match"] = validator
        begins, comes = (fetch.begins, fetch.comes) if fetch is not None else (_nothing, _nothing)
        try:
            part = self._ask_idle(wanted, size, comes)
            if part is not None:
                self._check_part(part.headers, len(part.body), offset, size)
                return require_complete(part.body, size, offset, self._name)
            if fetch is not None and fetch.abandoned:
                raise EOFError("it was abandoned")
            return self._ask_carefully(wanted, offset, size, begins)
        except RefusedError as error:
            if error.status != _CHANGED or "If-Match" not in wanted:
                raise
            self._takes_if_match = False
        # Asked without, it says which version it has; some have ETags that became weak.
        content = self.attempt(offset, size, fetch)
        if self._said is None or not self._said[0]:
            how = f"the server has none of ETag {validator} as when {self._when} (HTTP {_CHANGED})"
            raise changed(self._name, how)
        return content

    def _ask_idle(
        self, wanted: Mapping[str, str], size: int, comes: Callable[[], None]
    ) -> exchange.Part | None:
        if not self._is_plain:
            return None
        lines = "".join(f"\r\n{name}: {value}" for name, value in wanted.items())
        request = self._head + f"{lines}\r\n\r\n".encode("latin-1")
        timeout = self._access.timeout
        pace = Pace(timeout, self._access.min_rate)
        try:
            return exchange.ask(self._idle, request, size, pace, timeout, comes)
        except exchange.OddAnswerError:
            self._is_plain = False
            return None
        except RefusedError as error:
            self._note_refusal(error)
            raise

    def _ask_carefully(
        self, wanted: dict[str, str], offset: int, size: int, begins: Callable[[], None]
    ) -> Buffer:
        response = self._request(wanted)
        begins()
        if response.status == 200:
            self._note_whole(response)
            self._keep_full(response)
            raise NoRangesError
        with contextlib.closing(response):
            count = self._check_part(response.headers, response.length, offset, size)
            content = response.read(count)
            if response.length < 0 and response.read(1):
                raise BadAnswerError(f"it sent more than the {count:,} bytes that it said")
            return require_complete(content, size, offset, self._name)

    def _check_part(self, headers: Mapping[str, str], length: int, offset: int, size: int) -> int:
        """Bytes of the part that an answer has, if that is what was asked for."""
        first, count, total = content_range(headers.get("Content-Range", ""))
        self._note(headers, total)
        _HOST_SUPPORTS_RANGES[self._host] = True
        if first != offset or count > size or length not in (-1, count):
            raise BadAnswerError(
                f"asked for {size:,} bytes from byte {offset:,} on, it sent "
                f"{max(count, length):,} from byte {first:,} on"
            )
        return count

    def _keep_full(self, response: Response) -> None:
        """The whole shard is what will be asked for next, but once."""
        with self._lock:
            is_first = self._supports_ranges
            if is_first:
                self._supports_ranges, self._full_response = False, response
        _HOST_SUPPORTS_RANGES.setdefault(self._host, False)
        if not is_first:
            response.close()

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
                self._note(response.headers, total)
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

    def _request(self, headers: Mapping[str, str], *, method: str = "GET") -> Response:
        headers = self._headers | dict(headers)
        try:
            return connections.request(method, self._request_url, headers, self._access)
        except RefusedError as error:
            self._note_refusal(error)
            raise

    def _note_refusal(self, error: RefusedError) -> None:
        self._known.joined(Identity(error.length), self._name, when=self._when)


def _nothing() -> None:
    """Nobody wants to know when it begins."""
