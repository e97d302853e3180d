"""WindowReader: the bytes of drawn samples, window by window, the next one read ahead."""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.shards.index import ShardIndex
from flowdata.shards.order import Window
from flowdata.shards.reader import ShardReader
from flowdata.shards.transport import Access, is_remote

Content: TypeAlias = memoryview | ShardError
Contents: TypeAlias = dict[int, Content]

# The first pieces of a large window end at an eighth, a quarter and a half of it.
_LARGE, _FIRST = 512, (8, 4, 2)
# Bytes of free memory that glibc is to keep: some batches of decoded images.
_KEPT = 48 << 20


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
        _keep_freed_memory()
        with ExitStack() as stack:
            stack.callback(self._close)
            pool = None
            if self._threads:
                pool = ThreadPoolExecutor(self._threads, thread_name_prefix="flowdata")
                stack.callback(pool.shutdown, cancel_futures=True)
            todo = self._pieces(windows)
            ahead = self._start(next(todo, None), pool)
            while ahead is not None:
                rows, fetch = ahead
                contents = fetch()
                ahead = self._start(next(todo, None), pool)
                for row in rows:
                    yield row, contents[row]
                # Not with those of the next window.
                contents.clear()

    def _pieces(
        self, windows: Iterable[tuple[Window, int]]
    ) -> Iterator[tuple[Window, NDArray[np.int64]]]:
        """The rows that are left of each window, as they come out.

        Those of the first in pieces, so that nobody waits for a whole window before the first
        sample, of an epoch or of what is left of one; unless shards can only be read from their
        beginning on.
        """
        for number, (window, done) in enumerate(windows):
            drawn = np.concatenate(window.rows)[window.order[done:]]
            in_pieces = number == 0 and drawn.size >= _LARGE and self._are_proved(window)
            begin = 0
            for part in _FIRST if in_pieces else ():
                end = drawn.size // part
                if end > begin:
                    yield window, drawn[begin:end]
                    begin = end
            yield window, drawn[begin:]

    def _are_proved(self, window: Window) -> bool:
        return all(self._reader(window.group, shard).proved for shard in window.shards)

    def _start(
        self, item: tuple[Window, NDArray[np.int64]] | None, pool: ThreadPoolExecutor | None
    ) -> tuple[list[int], Callable[[], Contents]] | None:
        """Rows of a window as they come out, and a function that waits for their bytes."""
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
            return drawn.tolist(), lambda: _joined(self._read(*job) for job in jobs)
        # All reads of the window before are done: whoever waits for it starts this one.
        futures = deque(pool.submit(self._read, *job) for job in jobs)
        return drawn.tolist(), lambda: _joined(_results(futures))

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
        if group != self._group:
            self._close()
            self._group = group
        if shard not in self._readers:
            place = self._index.place(shard, self._urls[shard])
            self._readers[shard] = ShardReader(place, self._access)
        return self._readers[shard]

    def _close(self) -> None:
        for reader in self._readers.values():
            self._closed_bytes += reader.bytes_read
            reader.close()
        self._readers.clear()


def _results(futures: deque[Future[Contents]]) -> Iterator[Contents]:
    while futures:
        yield futures.popleft().result()


def _joined(parts: Iterable[Contents]) -> Contents:
    joined: Contents = {}
    for part in parts:
        joined |= part
    return joined


@functools.cache
def _keep_freed_memory() -> None:
    """Have glibc keep what batches free for those that follow; elsewhere nothing happens.

    It gives free memory at the end of the heap back to the kernel, to get it anew, page by page,
    for the next batch: 10 % of the speed. Once a large block was freed, it keeps twice as much
    from then on (`mallopt(3)`, ``M_MMAP_THRESHOLD``). The block itself is never touched.
    """
    np.empty(_KEPT // 2, dtype=np.uint8)
