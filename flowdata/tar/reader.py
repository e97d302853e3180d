"""ShardReader: the samples of one shard by offset and size, with as few and small reads as pay."""

import contextlib
import errno
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.compression import DAMAGED, decompress
from flowdata.tar.forward import ForwardStream
from flowdata.transport.access import Access, NoRangesError, Readable, Transport
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity
from flowdata.transport.urls import redact

# About what the disk and the kernel read ahead anyway; see benchmarks/streaming.py for servers.
GAP = 16_384
"""Bytes between two samples that are read over rather than asked for anew."""
# Bytes of one read, so that a window of neighbouring samples does not become one allocation.
_SPAN = 1 << 23


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
    """

    def __init__(self, shard: ShardInfo, access: Access) -> None:
        self._shard, self._access = shard, access
        self._transport: Transport | None = None
        self._raw: Readable | None = None
        self._stream: ForwardStream | None = None
        # Draws of one sample may be in two reads; a stream would have to be reopened for that.
        self._last_sample: tuple[int, memoryview] | None = None
        self.bytes_read = 0

    def read(self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[memoryview]:
        """The bytes of samples in ascending order.

        Raises:
            ShardError: for a shard that cannot be read or has another length than its index.
        """
        for is_last in (False, True):
            transport = self._connect()
            try:
                if transport.supports_ranges and not self._shard.compressed:
                    with contextlib.suppress(NoRangesError):
                        return self._read_spans(transport, offsets, sizes)
                return self._read_sequentially(transport, offsets, sizes)
            except DAMAGED as error:
                # On a network file system another machine may have replaced or evicted it.
                if getattr(error, "errno", None) == errno.ESTALE and not is_last:
                    self.close()
                    continue
                raise ShardError(
                    f"{redact(self._shard.url)} is cut off or corrupt: {error}; copy it again"
                ) from error
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Let go of the file or process."""
        self._close_stream()
        if self._transport is not None:
            self._transport.close()
        self._transport = self._last_sample = None

    def _connect(self) -> Transport:
        if self._transport is None:
            expected = Identity.parse(self._shard.length, self._shard.version)
            self._transport = connect(self._shard.url, self._access, expected)
        return self._transport

    def _close_stream(self) -> None:
        if self._stream is not None and self._raw is not None:
            self._stream.close()
            self._raw.close()
        self._stream = self._raw = None

    def _read_spans(
        self, transport: Transport, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> list[memoryview]:
        views: list[memoryview] = []
        # Numbers of the samples that begin and end a span, then the bytes of spans.
        firsts = span_starts(offsets, sizes)
        lasts = [*firsts[1:], offsets.size]
        starts = offsets[firsts].tolist()
        ends = (offsets + sizes)[np.array(lasts) - 1].tolist()
        wanted = [(start, end - start) for start, end in zip(starts, ends, strict=True)]
        contents = transport.read(wanted)
        for first, last, start, buffer in zip(firsts, lasts, starts, contents, strict=True):
            content = memoryview(buffer)
            self.bytes_read += len(content)
            for begin, size in zip(
                (offsets[first:last] - start).tolist(), sizes[first:last].tolist(), strict=True
            ):
                views.append(content[begin : begin + size])
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
            unpacked, _ = decompress(self._raw, name, max_expansion=self._access.max_expansion)
            self._stream = ForwardStream(unpacked, name)
        before = self._stream.tell()
        self._stream.seek(offset)
        content = self._stream.read(size)
        self.bytes_read += self._stream.tell() - before
        if len(content) < size:
            raise EOFError(f"it ends at byte {self._stream.tell():,}")
        return memoryview(content)


def span_starts(offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[int]:
    """Numbers of the samples that begin a new read: after a gap wider than `GAP`, and before 8 MB.

    >>> span_starts(np.array([0, 512, 99_328]), np.array([512, 512, 1024]))
    [0, 2]
    """
    ends = offsets + sizes
    wide = np.flatnonzero(offsets[1:] - ends[:-1] > GAP) + 1
    firsts = []
    for first, last in zip([0, *wide.tolist()], [*wide.tolist(), offsets.size], strict=True):
        while first < last:
            firsts.append(first)
            fits = int(np.searchsorted(ends[first:last], offsets[first] + _SPAN, side="right"))
            first += max(fits, 1)
    return firsts
