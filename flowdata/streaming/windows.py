"""WindowReader: the bytes of drawn samples, window by window, the next one read ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.streaming.order import Window
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.access import Access
from flowdata.transport.retrying import wait_until
from flowdata.transport.urls import is_remote

Content: TypeAlias = memoryview | ShardError
Contents: TypeAlias = dict[int, Content]


class WindowReader:
    """Reads windows in the order they come; of a sample drawn twice in one, mostly one read.

    Where shards are remote, as many threads as shards are open read the next window while this
    one is used: memory is that of two windows of samples, with local shards of one, and of the
    8 MB that a read takes at most.
    """

    def __init__(
        self, index: ShardIndex, urls: Sequence[str], access: Access, *, shards_open: int
    ) -> None:
        self._index, self._urls, self._access = index, urls, access
        self._threads = shards_open if any(map(is_remote, urls)) else 0
        self._readers: dict[int, ShardReader] = {}
        self._group = -1
        self._closed_bytes = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that were read from all shards."""
        return self._closed_bytes + sum(reader.bytes_read for reader in self._readers.values())

    def draws(self, windows: Iterable[tuple[Window, int]]) -> Iterator[tuple[int, Content]]:
        """(row, its bytes, or why they cannot be had) of each draw that is not done yet."""
        with ExitStack() as stack:
            stack.callback(self._close)
            pool = None
            if self._threads:
                stopped = Event()
                pool = ThreadPoolExecutor(
                    self._threads, "flowdata", initializer=wait_until, initargs=(stopped,)
                )
                stack.callback(pool.shutdown, cancel_futures=True)
                # Before that: a server may have asked them to wait for minutes.
                stack.callback(stopped.set)
            todo = ((window, _drawn_rows(window)[done:]) for window, done in windows)
            ahead = self._start(next(todo, None), pool)
            while ahead is not None:
                rows, fetch = ahead
                contents = fetch()
                ahead = self._start(next(todo, None), pool)
                for row in rows:
                    yield row, contents[row]
                # Not with those of the next window.
                contents.clear()

    def _start(
        self, item: tuple[Window, NDArray[np.int64]] | None, pool: ThreadPoolExecutor | None
    ) -> tuple[list[int], Callable[[], Contents]] | None:
        """Start to read a window: its rows as they come out, and what waits for their bytes."""
        if item is None:
            return None
        window, drawn = item
        needed = np.unique(drawn)
        jobs: list[tuple[ShardReader, NDArray[np.int64]]] = []
        for shard, rows in zip(window.shards, window.rows, strict=True):
            first, last = np.searchsorted(needed, (rows[0], rows[-1] + 1))
            if first < last:
                jobs.append((self._reader(window.group, shard), needed[first:last]))
        if pool is None:
            return drawn.tolist(), lambda: _merge(self._read(*job) for job in jobs)
        # All reads of the window before are done: whoever waits for it starts this one.
        futures = deque(pool.submit(self._read, *job) for job in jobs)
        return drawn.tolist(), lambda: _merge(_results(futures))

    def _read(self, reader: ShardReader, rows: NDArray[np.int64]) -> Contents:
        try:
            views: Sequence[Content] = reader.read(
                self._index.offsets[rows], self._index.sizes[rows]
            )
        except ShardError as error:
            reader.close()
            views = [error] * rows.size
        return dict(zip(rows.tolist(), views, strict=True))

    def _reader(self, group: int, shard: int) -> ShardReader:
        # Shards of the group before are read to their end: their files and connections go.
        if group != self._group:
            self._close()
            self._group = group
        if shard not in self._readers:
            self._readers[shard] = ShardReader(
                ShardInfo.from_index(self._index, shard, self._urls[shard]), self._access
            )
        return self._readers[shard]

    def _close(self) -> None:
        for reader in self._readers.values():
            self._closed_bytes += reader.bytes_read
            reader.close()
        self._readers.clear()


def _drawn_rows(window: Window) -> NDArray[np.int64]:
    """The rows of a window as they come out."""
    return np.concatenate(window.rows)[window.order]


def _results(futures: deque[Future[Contents]]) -> Iterator[Contents]:
    while futures:
        yield futures.popleft().result()


def _merge(parts: Iterable[Contents]) -> Contents:
    merged: Contents = {}
    for part in parts:
        merged |= part
    return merged
