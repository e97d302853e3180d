"""Transport: an open shard, however it is reached; Fetch: one span of it, read by one thread."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from flowdata.transport.access import AbandonedError, Access, Buffer, Readable, Span
from flowdata.transport.identity import Identity
from flowdata.transport.retrying import retry


class Fetch:
    """One span of a shard; its request is made again as often as `Access` allows.

    `run` is called once, by one thread, and `abandon` at any time, by any.

    Args:
        attempt: makes one request, and returns the bytes; it calls `holds`, and
            `begins`, or `comes` whenever there are bytes.
        url, access: of the shard, for errors and options.

    Attributes:
        first_byte: seconds from the request to the answer's first byte, of the attempt that
            succeeded; nan before, and where a library does not tell.
        body: seconds from then to the last byte; where a library does not tell, of both.
        attempts: that were made.
        last_bytes: when some came last, by `time.monotonic`; nan where a library does not tell.
    """

    def __init__(self, attempt: Callable[["Fetch"], Buffer], url: str, access: Access) -> None:
        self._attempt, self._url, self._access = attempt, url, access
        self._lock = threading.Lock()
        self._abandoned = threading.Event()
        self._let_go: Callable[[], None] | None = None
        self._started = 0.0
        self.first_byte = self.body = self.last_bytes = math.nan
        self.attempts = 0

    def run(self) -> Buffer:
        """Exactly the bytes of the span.

        Raises:
            AbandonedError: after `abandon`, at once, also where it waits for a server.
            NoRangesError: by a server that knows no ranges.
            ShardError: when it failed for good.
        """
        try:
            content = retry(self._timed, self._url, self._access, stopped=self._abandoned)
        except Exception:
            if self._abandoned.is_set():
                raise AbandonedError from None
            raise
        if self._abandoned.is_set():
            # What a connection gives that is being closed is not looked at.
            raise AbandonedError
        return content

    def abandon(self) -> None:
        """Let `run` end now, and close its connection; nothing where it has ended."""
        self._abandoned.set()
        with self._lock:
            if self._let_go is not None:
                self._let_go()

    @property
    def abandoned(self) -> bool:
        """Whether nobody wants it any more."""
        return self._abandoned.is_set()

    def holds(self, let_go: Callable[[], None] | None) -> None:
        """Note what closes the connection that is in use now; None for none."""
        with self._lock:
            self._let_go = let_go
            if let_go is not None and self._abandoned.is_set():
                let_go()

    def begins(self) -> None:
        """Note that the answer has begun."""
        self.first_byte = time.monotonic() - self._started

    def comes(self) -> None:
        """Note that bytes of the answer have come."""
        self.last_bytes = now = time.monotonic()
        if math.isnan(self.first_byte):
            self.first_byte = now - self._started

    def _timed(self) -> Buffer:
        if self._abandoned.is_set():
            raise AbandonedError
        self.attempts += 1
        self.first_byte = self.last_bytes = math.nan
        self._started = time.monotonic()
        content = self._attempt(self)
        taken = time.monotonic() - self._started
        self.body = taken if math.isnan(self.first_byte) else taken - self.first_byte
        return content


class Transport(Protocol):
    """One open shard."""

    @property
    def supports_ranges(self) -> bool:
        """Whether `read` can be asked for any bytes; if not, there is `stream`."""
        ...

    def identity(self) -> Identity:
        """What is known of the shard's content; asked for where nothing is."""
        ...

    def is_whole(self) -> bool:
        """Whether the end of a `stream` that was read to it is known to be that of the shard."""
        ...

    def read(self, spans: Sequence[Span]) -> Iterable[Buffer]:
        """Exactly these bytes, span by span.

        Raises:
            NoRangesError: by a server that knows no ranges: then `supports_ranges` becomes
                False.
        """
        ...

    def fetch(self, offset: int, size: int) -> Fetch:
        """One of these spans, to be read by any thread, side by side with others."""
        ...

    def stream(self) -> Readable:
        """All bytes from the first on."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...
