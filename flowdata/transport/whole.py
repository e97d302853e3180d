"""A whole shard fetched into a file, in ranges side by side."""

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

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
    with _TURNS.setdefault(os.getpid(), threading.Lock()):
        try:
            # Alone: a server without ranges would send its whole shard to each.
            _copy(source.fetch(*spans[0]), spans[0][0], file)
        except NoRangesError:
            return False
        fetches = [source.fetch(*span) for span in spans[1:]]
        with ThreadPoolExecutor(access.connections, "flowdata-whole") as threads:
            futures = [
                threads.submit(_copy, fetch, start, file)
                for fetch, (start, _) in zip(fetches, spans[1:], strict=True)
            ]
            try:
                _wait(futures, url)
            except BaseException:
                for future, fetch in zip(futures, fetches, strict=True):
                    future.cancel()
                    fetch.abandon()
                raise
    return True


def _wait(futures: list[Future[None]], url: str) -> None:
    running = set(futures)
    while running:
        done, running = wait(running, _LOOK, FIRST_EXCEPTION)
        for future in done:
            future.result()
        if running and is_stopped():
            raise ShardError(f"{redact(url)} is wanted no more")


def _copy(fetch: Fetch, start: int, file: int) -> None:
    left = memoryview(fetch.run())
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written
