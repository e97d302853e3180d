"""ShardReader: the samples of one shard by offset and size, with as few and small reads as pay."""

import contextlib
import errno
import heapq
import math
import threading
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.compression import DAMAGED, decompress
from flowdata.tar.forward import ForwardStream
from flowdata.tar.pieces import Contents, Parts, Piece, Spans
from flowdata.transport.access import Access, NoRangesError, Readable
from flowdata.transport.connect import connect
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Transport
from flowdata.transport.identity import Identity
from flowdata.transport.local import LocalTransport
from flowdata.transport.planner import LARGEST, ON_DISK, plan_requests
from flowdata.transport.pool import Order, Outcome, ReadingPool
from flowdata.transport.speeds import NEARBY, speeds_of
from flowdata.transport.urls import redact


class ShardInfo(NamedTuple):
    """A shard: its URL and what its index knows of it.

    Attributes:
        url: of the shard.
        length: bytes, -1 where it is not known.
        compressed: whether it is.
        version: of its content, see `Identity`.
    """

    url: str
    length: int
    compressed: bool
    version: str = ""

    @classmethod
    def from_index(cls, index: ShardIndex, shard: int, url: str) -> "ShardInfo":
        """That of a shard, by its number in the index."""
        version = index.versions[shard] if index.versions else ""
        return cls(url, int(index.lengths[shard]), bool(index.compressed[shard]), version)


class ShardReader:
    """One shard, opened at the first read.

    Where any bytes can be asked for, only spans of wanted samples are. Compressed shards, pipes and
    servers without ranges are read from the start; going back reopens them.

    Args:
        shard, access: which, and how it is reached.
        counts: what is added to.
        share: of its bytes that will be read, about.
    """

    def __init__(
        self,
        shard: ShardInfo,
        access: Access,
        counts: Counts | None = None,
        *,
        share: float = 1.0,
    ) -> None:
        self._shard, self._access, self._share = shard, access, share
        self._counts = counts or Counts()
        self._transport: Transport | None = None
        self._raw: Readable | None = None
        self._stream: ForwardStream | None = None
        # Draws of one sample may be in two reads; a stream would have to be reopened for that.
        self._last_sample: tuple[int, memoryview] | None = None
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        self._is_busy = self._is_retired = self._is_running = self._is_left = False
        self._unfinished = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that were read, also by others that add to the same counts."""
        return self._counts.bytes_read

    def read(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[memoryview]:
        """The bytes of samples in ascending order.

        Raises:
            ShardError: for a shard that cannot be read or has another length than its index.
        """
        for is_last in (False, True):
            try:
                transport = self._connect()
                if self._has_ranges(transport):
                    with contextlib.suppress(NoRangesError):
                        return self._read_spans(transport, offsets, sizes)
                return self._read_sequentially(transport, offsets, sizes)
            except DAMAGED as error:
                # On a network file system another machine may have replaced or evicted it.
                if getattr(error, "errno", None) == errno.ESTALE and not is_last:
                    self.close()
                    continue
                raise self._damaged(error) from error
        raise AssertionError("unreachable")

    def submit(
        self,
        pool: ReadingPool,
        order: Order,
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
        *,
        connections: float,
        turns: NDArray[np.int64] | None = None,
    ) -> Piece:
        """Have a pool read samples in ascending order; it tells when the piece has its contents.

        What is opened, and read from its start, is so for one piece after another, in their order.

        Args:
            pool: whose threads read.
            order: when.
            offsets, sizes: of the samples.
            connections: that this piece can have, about.
            turns: when each sample is needed: where there are many requests, they are made so.
        """
        piece = Piece(order, offsets, sizes, connections, turns)
        most = sizes.sum() * self._access.most_overread
        piece.size = int(min(offsets[-1] + sizes[-1] - offsets[0], most))
        with self._lock:
            self._unfinished += 1
        self._enqueue(pool, piece)
        return piece

    def retire(self) -> None:
        """Close it when all pieces that were submitted are there: no others will be."""
        with self._lock:
            self._is_retired = True
            is_idle = not self._unfinished
        if is_idle:
            self.close()

    def leave(self) -> None:
        """Close it, also while a thread of a pool that has ended waits for bytes: by that thread.

        What it waits for is locked, and a server that stands still would hold up whoever leaves.
        """
        # Without the lock, which may stay held in a forked process that forgets a pass.
        self._is_left = True
        if not self._is_running:
            self.close()

    def _enqueue(self, pool: ReadingPool, piece: Piece) -> None:
        with self._lock:
            heapq.heappush(self._pieces, piece)
            is_busy, self._is_busy = self._is_busy, True
        if not is_busy:
            pool.submit(piece.order, partial(self._begin_next, pool))

    def _begin_next(self, pool: ReadingPool) -> None:
        """Read the first piece that waits, or plan its requests; then let the next one begin."""
        with self._lock:
            piece = heapq.heappop(self._pieces)
            self._is_running = True
        try:
            self._begin(pool, piece)
        except Exception as error:
            self.close()
            self._end(pool, piece, [self._as_shard_error(error)] * piece.sizes.size)
        finally:
            self._is_running = False
            if self._is_left:
                self.close()
        with self._lock:
            self._is_busy = bool(self._pieces)
            following = self._pieces[0].order if self._pieces else None
        if following is not None:
            pool.submit(following, partial(self._begin_next, pool))

    def _begin(self, pool: ReadingPool, piece: Piece) -> None:
        transport = self._connect()
        if self._has_ranges(transport) and not piece.in_sequence:
            if not isinstance(transport, LocalTransport):
                with contextlib.suppress(NoRangesError):
                    self._request(pool, transport, piece)
                    return
            else:
                self._end(pool, piece, self._read_spans(transport, piece.offsets, piece.sizes))
                return
        self._end(pool, piece, self._read_sequentially(transport, piece.offsets, piece.sizes))

    def _request(self, pool: ReadingPool, transport: Transport, piece: Piece) -> None:
        """Plan and make the requests of a piece."""
        speeds = speeds_of(self._shard.url)
        offsets, sizes = piece.offsets, piece.sizes

        def probe(count: int) -> None:
            fetch = partial(transport.fetch, int(offsets[0]), count)
            self._counts.add(requests=1, bytes_read=len(pool.run(fetch, count, speeds)))

        # A server of which nothing is known is asked for one range alone. Then it is known how long
        # it takes; and one without ranges sends its shard once.
        speeds.probe(probe, int(sizes[0]))
        firsts = plan_requests(
            offsets,
            sizes,
            speeds.speed,
            connections=piece.connections,
            most_overread=self._access.most_overread,
        )
        spans = Spans.of_samples(offsets, sizes, firsts)
        piece.size = sum(size for _, size in spans.wanted)
        parts = Parts(piece, spans, firsts)
        window, _ = piece.order
        # The longest first: a short one that has to wait for its turn is soon done.
        turns = [max(LARGEST - size, 0) for _, size in spans.wanted]
        if piece.turns is not None and speeds.speed.latency < NEARBY:
            turns = np.minimum.reduceat(piece.turns, firsts).tolist()
        # A thread that has nothing to do takes the first that is there.
        for number in sorted(range(len(turns)), key=turns.__getitem__):
            start, size = spans.wanted[number]
            end = pool.fetch(
                (window, turns[number] + 1),
                partial(transport.fetch, start, size),
                size,
                speeds,
                partial(self._take, pool, piece, parts, number),
            )
            parts.ended_by(end)

    def _take(
        self, pool: ReadingPool, piece: Piece, parts: Parts, number: int, outcome: Outcome
    ) -> None:
        """Take the answer to one request of a piece."""
        if isinstance(outcome, NoRangesError):
            if parts.end():
                piece.in_sequence = True
                self._enqueue(pool, piece)
            return
        if isinstance(outcome, Exception):
            # The samples of the other requests may be there all the same.
            outcome = self._as_shard_error(outcome)
        else:
            self._counts.add(requests=1, bytes_read=len(outcome))
        is_awaited, is_last = parts.add(number, outcome)
        if is_last:
            self._end(pool, piece)
        elif is_awaited:
            pool.tell()

    def _as_shard_error(self, error: Exception) -> ShardError:
        """What an error is for the samples that were to be read."""
        if isinstance(error, ShardError):
            return error
        if isinstance(error, DAMAGED):
            return self._damaged(error)
        raise error

    def _end(self, pool: ReadingPool, piece: Piece, contents: Contents = ()) -> None:
        piece.put(contents)
        piece.end()
        pool.tell()
        with self._lock:
            self._unfinished -= 1
            is_last = self._is_retired and not self._unfinished
        if is_last:
            self.close()

    @property
    def is_compressed(self) -> bool:
        """Whether it can be read in sequence only."""
        return self._shard.compressed

    def _has_ranges(self, transport: Transport) -> bool:
        return transport.supports_ranges and not self.is_compressed

    def _damaged(self, error: Exception) -> ShardError:
        damaged = ShardError(
            f"{redact(self._shard.url)} is cut off or corrupt: {error}; copy it again"
        )
        damaged.__cause__ = error
        return damaged

    def close(self) -> None:
        """Let go of the file or process."""
        self._close_stream()
        if self._transport is not None:
            self._transport.close()
        self._transport = self._last_sample = None

    def _connect(self) -> Transport:
        if self._transport is None:
            expected = Identity.parse(self._shard.length, self._shard.version)
            self._transport = connect(
                self._shard.url, self._access, expected, share=self._share, counts=self._counts
            )
        return self._transport

    def _close_stream(self) -> None:
        # What the first of these would be made of is open before.
        for opened in (self._stream, self._raw):
            if opened is not None:
                opened.close()
        self._stream = self._raw = None

    def _read_spans(
        self, transport: Transport, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> list[memoryview]:
        firsts = plan_requests(offsets, sizes, ON_DISK, connections=1, most_overread=math.inf)
        spans = Spans.of_samples(offsets, sizes, firsts)
        views: list[memoryview] = []
        for number, buffer in enumerate(transport.read(spans.wanted)):
            self._counts.add(requests=1, bytes_read=len(buffer))
            views += spans.views(number, buffer)
        return views

    def _read_sequentially(
        self, transport: Transport, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> list[memoryview]:
        views = []
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            if self._last_sample is None or self._last_sample[0] != offset:
                self._last_sample = offset, self._read_next(transport, offset, size)
            views.append(self._last_sample[1])
        return views

    def _read_next(self, transport: Transport, offset: int, size: int) -> memoryview:
        if self._stream is None or self._stream.tell() > offset:
            self._close_stream()
            name = redact(self._shard.url)
            self._raw = transport.stream()
            self._counts.add(requests=1)
            unpacked, _ = decompress(self._raw, name, max_expansion=self._access.max_expansion)
            self._stream = ForwardStream(unpacked, name)
        before = self._stream.tell()
        self._stream.seek(offset)
        content = self._stream.read(size)
        self._counts.add(bytes_read=self._stream.tell() - before)
        if len(content) < size:
            raise EOFError(f"it ends at byte {self._stream.tell():,}")
        return memoryview(content)
