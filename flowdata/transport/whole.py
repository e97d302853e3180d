"""A whole shard fetched into a file, in ranges side by side."""

import contextlib
import os
import threading
from collections import deque
from queue import Empty, SimpleQueue

from flowdata.errors import ShardError
from flowdata.transport.access import Access, NoRangesError
from flowdata.transport.fetching import Fetch, Transport
from flowdata.transport.retrying import is_stopped
from flowdata.transport.urls import redact

# Large beside the latency of a server, and small beside memory.
_RANGE = 1 << 22
# Seconds between two looks whether the shard is still wanted.
_LOOK = 0.1
# By process: what is held when another is forked stays held there for ever.
_TURNS: dict[int, threading.Lock] = {}


def fetch_whole(source: Transport, length: int, file: int, url: str, access: Access) -> bool:
    """Write a shard of this length to a file; False for a server without ranges.

    One shard at a time in a process, by as many connections as `Access` allows.

    Raises:
        ShardError: for what cannot be read, or is wanted no more.
    """
    spans = [(start, min(_RANGE, length - start)) for start in range(0, length, _RANGE)]
    parts = [(start, source.fetch(start, size)) for start, size in spans]
    with _TURNS.setdefault(os.getpid(), threading.Lock()):
        try:
            # Alone: a server without ranges would send its whole shard to each.
            _copy(parts[:1], 1, file, url)
        except NoRangesError:
            return False
        _copy(parts[1:], access.connections, file, url)
    return True


def _copy(parts: list[tuple[int, Fetch]], threads: int, file: int, url: str) -> None:
    """Write what these fetch to a file, each where it starts."""
    left, outcomes = deque(parts), SimpleQueue[Exception | None]()

    def serve() -> None:
        with contextlib.suppress(IndexError):
            while True:
                outcomes.put(_outcome(*left.popleft(), file))

    # Daemons, unlike an executor's: a server that stands still keeps no process from its end.
    serving = [
        threading.Thread(target=serve, name=f"flowdata-whole-{number}", daemon=True)
        for number in range(min(threads, len(parts)))
    ]
    try:
        for thread in serving:
            thread.start()
        for _ in parts:
            if (error := _next(outcomes, url)) is not None:
                raise error
    finally:
        left.clear()
        for _, fetch in parts:
            fetch.abandon()
        # The file is closed then.
        for thread in serving:
            if thread.ident is not None:
                thread.join()


def _outcome(start: int, fetch: Fetch, file: int) -> Exception | None:
    """Write what is fetched, and return what kept it from that."""
    try:
        left = memoryview(fetch.run())
        while left:
            written = os.pwrite(file, left, start)
            left, start = left[written:], start + written
    except Exception as error:
        return error
    return None


def _next(outcomes: SimpleQueue[Exception | None], url: str) -> Exception | None:
    while not is_stopped():
        with contextlib.suppress(Empty):
            return outcomes.get(timeout=_LOOK)
    raise ShardError(f"{redact(url)} is wanted no more")
