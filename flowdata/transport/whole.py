"""A whole shard fetched into a file, in ranges side by side."""

import itertools
import os
import threading
from collections.abc import Callable, Sequence
from functools import partial

from flowdata.errors import ShardError
from flowdata.transport.access import Access, NoRangesError
from flowdata.transport.fetching import Fetch, Transport
from flowdata.transport.retrying import is_stopped
from flowdata.transport.urls import redact

# Large beside the latency of a server, and small beside memory.
_RANGE = 1 << 22
# Seconds between two looks whether the shard is still wanted.
_LOOK = 0.1


class _Slots:
    """As many requests at a time as there may be, and those of the shard that began first first.

    Args:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        self._free, self._waiting = count, list[int]()
        self._news = threading.Condition()
        self.turns = itertools.count()

    def take(self, turn: int, timeout: float) -> bool:
        """Wait for one; False where there is none in this time."""
        with self._news:
            self._waiting.append(turn)
            try:
                taken = self._news.wait_for(lambda: self._is_next(turn), timeout)
                self._free -= taken
            finally:
                self._waiting.remove(turn)
                self._news.notify_all()
        return taken

    def give_back(self) -> None:
        """Let another have it."""
        with self._news:
            self._free += 1
            self._news.notify_all()

    def _is_next(self, turn: int) -> bool:
        return self._free > 0 and turn == min(self._waiting)


# By process and connections: what is held when another is forked stays held there for ever.
_SLOTS: dict[tuple[int, int], _Slots] = {}


def fetch_whole(source: Transport, length: int, file: int, url: str, access: Access) -> bool:
    """Write a shard of this length to a file; False for a server without ranges.

    Several are fetched side by side, so that none waits for the latency of another. All together
    have as many requests at a time as `Access` allows connections, and the shard that began first
    has its own before the next one.

    Raises:
        ShardError: for what cannot be read, or is wanted no more.
    """
    key = os.getpid(), access.connections
    slots = _SLOTS.setdefault(key, _Slots(access.connections))
    spans = [(start, min(_RANGE, length - start)) for start in range(0, length, _RANGE)]
    parts = [(start, source.fetch(start, size)) for start, size in spans]
    copy = _Copy(file, url, slots)
    try:
        # Alone: a server without ranges would send its whole shard to each.
        copy.of(parts[:1])
        copy.of(parts[1:])
    except NoRangesError:
        return False
    return True


class _Copy:
    """Ranges of one shard on their way to a file, each by a thread and one of the slots."""

    def __init__(self, file: int, url: str, slots: _Slots) -> None:
        self._file, self._url = file, url
        self._slots, self._turn = slots, next(slots.turns)
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def of(self, parts: Sequence[tuple[int, Fetch]]) -> None:
        """Write what these fetch, each where it starts."""
        try:
            for start, fetch in parts:
                self._wait(partial(self._slots.take, self._turn))
                self._begin(start, fetch)
            for thread in self._threads:
                self._wait(_ended(thread))
            self._check()
        finally:
            for _, fetch in parts:
                fetch.abandon()
            # The file is closed then.
            for thread in self._threads:
                if thread.ident is not None:
                    thread.join()

    def _begin(self, start: int, fetch: Fetch) -> None:
        """Run a fetch in a thread, with the slot that is held."""

        def serve() -> None:
            try:
                _write(fetch, self._file, start)
            except Exception as error:
                self._errors.append(error)
            finally:
                self._slots.give_back()

        # A daemon: a server that stands still keeps no process from its end.
        name = f"flowdata-whole-{len(self._threads)}"
        thread = threading.Thread(target=serve, name=name, daemon=True)
        self._threads.append(thread)
        try:
            thread.start()
        except RuntimeError:
            self._slots.give_back()
            raise

    def _wait(self, done: Callable[..., bool]) -> None:
        """Wait for something, while nothing failed and the shard is wanted."""
        self._check()
        while not done(timeout=_LOOK):
            self._check()

    def _check(self) -> None:
        if self._errors:
            raise self._errors[0]
        if is_stopped():
            raise ShardError(f"{redact(self._url)} is wanted no more")


def _ended(thread: threading.Thread) -> Callable[..., bool]:
    def ended(timeout: float) -> bool:
        thread.join(timeout)
        return not thread.is_alive()

    return ended


def _write(fetch: Fetch, file: int, start: int) -> None:
    """Write what is fetched where it starts."""
    left = memoryview(fetch.run())
    while left:
        written = os.pwrite(file, left, start)
        left, start = left[written:], start + written
