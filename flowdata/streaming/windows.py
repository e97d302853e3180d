"""WindowReader: the bytes of drawn samples, window by window; from servers some windows ahead."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import ShardError
from flowdata.streaming.order import Window
from flowdata.table.shard_index import ShardIndex, ShardSamples, plain_keys
from flowdata.tar.pieces import Content, Contents, Piece
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.access import Access
from flowdata.transport.counts import Counts
from flowdata.transport.pool import ReadingPool
from flowdata.transport.urls import is_remote

# Draws that are read first of a window that is gone on with: some batches.
_FIRST_DRAWS = 128


class Drawn(NamedTuple):
    """One drawn sample: its row, shard and key, and its bytes, or why they cannot be had."""

    row: int
    shard: int
    key: str
    content: Content


class _OpenShard(NamedTuple):
    """A shard of the group whose windows begin now."""

    number: int
    reader: ShardReader
    samples: ShardSamples


class _Wanted(NamedTuple):
    """What a window wants of one shard: places in it, ascending, and the pool's piece of these."""

    shard: _OpenShard
    places: NDArray[np.int64]
    piece: Piece | None


class _Place(NamedTuple):
    """Where the bytes of a sample are, or will be."""

    shard: int
    key: str
    contents: Sequence[Content | None]
    place: int
    piece: Piece | None


class _Part(NamedTuple):
    """A window, and which of its draws are read together, by their places in its order."""

    window: Window
    start: int
    stop: int


class _Begun(NamedTuple):
    """A window that is being read: its rows as they come out, and what they lie in."""

    drawn: NDArray[np.int64]
    wanted: list[_Wanted]

    @property
    def size(self) -> int:
        """Bytes that are read for it."""
        return sum(wanted.piece.size for wanted in self.wanted if wanted.piece is not None)

    def can_begin(self) -> bool:
        """Whether a pool has read the first sample."""
        row = int(self.drawn[0])
        (_, _, inside), places, piece = self.with_row(row)
        return piece is None or piece.has(int(np.searchsorted(places, row - inside.first)))

    def with_row(self, row: int) -> _Wanted:
        """What has the sample of a row."""
        return next(
            wanted
            for wanted in self.wanted
            if 0 <= row - wanted.shard.samples.first < len(wanted.shard.samples.keys)
        )


class WindowReader:
    """Reads windows in the order they come; of a sample drawn twice in one, mostly one read.

    Where shards are on servers, so many threads as `Access` allows connections read ahead: as many
    windows as stay within its bytes, and one at least. Memory is that and the window that is used;
    of local shards, which are read when a window is asked for, it is that of one.

    Args:
        index, urls: of the shards.
        access: how they are reached.

    Attributes:
        reading: what was read so far.
    """

    def __init__(self, index: ShardIndex, urls: Sequence[str], access: Access) -> None:
        self._index, self._urls, self._access = index, urls, access
        self.reading = Counts()
        self._pool: ReadingPool | None = None
        if any(map(is_remote, urls)):
            self._pool = ReadingPool(access.connections, self.reading)
        self._open: dict[int, _OpenShard] = {}
        self._group = self._windows = 0

    @property
    def bytes_read(self) -> int:
        """Bytes that were read of all shards, headers and gaps included."""
        return self.reading.bytes_read

    def draws(self, windows: Iterable[tuple[Window, int]]) -> Iterator[Drawn]:
        """Each draw that is not done yet."""
        todo, ahead = self._parts(windows), deque[_Begun]()
        with ExitStack() as stack:
            stack.callback(self._close, ahead)
            if self._pool is not None:
                stack.callback(self._pool.close)
            while ahead or self._begin_more(ahead, todo):
                self._begin_others(ahead, todo)
                places: dict[int, _Place] = {}
                for row in ahead[0].drawn.tolist():
                    if row not in places:
                        places |= self._places(ahead[0].with_row(row))
                    yield self._drawn(row, places[row])
                # Not with those of the next window.
                places.clear()
                ahead.popleft()

    def _parts(self, windows: Iterable[tuple[Window, int]]) -> Iterator[_Part]:
        """The windows; one that is gone on with in two parts, if it is read from servers.

        Its draws are all over its shards, and the first ones shall not wait for all of these.
        """
        for window, done in windows:
            in_ranges = self._pool is not None and not self._index.compressed[window.shards].any()
            end = window.order.size
            if done and in_ranges and end - done > 2 * _FIRST_DRAWS:
                yield _Part(window, done, done + _FIRST_DRAWS)
                done += _FIRST_DRAWS
            yield _Part(window, done, end)

    def _begin_more(self, ahead: deque[_Begun], todo: Iterator[_Part]) -> bool:
        """Begin to read one more window where there is room; False where it is not."""
        if ahead and (self._pool is None or not self._has_room(ahead)):
            return False
        item = next(todo, None)
        if item is not None:
            ahead.append(self._begin(*item))
        return item is not None

    def _has_room(self, ahead: deque[_Begun]) -> bool:
        """Whether another window may be read while the first of these is used."""
        sizes = [begun.size for begun in ahead]
        return len(sizes) < 2 or sum(sizes[1:]) + sizes[-1] <= self._access.bytes_ahead

    def _begin(self, window: Window, start: int, stop: int) -> _Begun:
        if window.group != self._group:
            # Those of the group before are read to their end.
            for shard in self._open.values():
                shard.reader.retire()
            self._open.clear()
            self._group = window.group
        drawn = np.concatenate(window.rows)[window.order[start:stop]]
        needed, turns = np.unique(drawn, return_index=True)
        parts = []
        for number, rows, share in zip(window.shards, window.rows, window.shares, strict=True):
            first, last = np.searchsorted(needed, (rows[0], rows[-1] + 1))
            if first < last:
                shard = self._shard(number, share)
                parts.append((shard, needed[first:last] - shard.samples.first, turns[first:last]))
        wanted = [
            _Wanted(shard, places, self._submit(shard, places, turns, len(parts)))
            for shard, places, turns in parts
        ]
        self._windows += 1
        return _Begun(drawn, wanted)

    def _submit(
        self,
        shard: _OpenShard,
        places: NDArray[np.int64],
        turns: NDArray[np.int64],
        shards: int,
    ) -> Piece | None:
        samples = shard.samples
        offsets, sizes = samples.offsets[places], samples.sizes[places]
        self.reading.add(bytes_owed=int(sizes.sum()))
        if self._pool is None:
            return None
        return shard.reader.submit(
            self._pool,
            (self._windows, 0),
            offsets,
            sizes,
            # Behind the first window there is enough to do for all of them.
            connections=1 if self._windows else self._access.connections / shards,
            turns=None if self._windows else turns,
        )

    def _begin_others(self, ahead: deque[_Begun], todo: Iterator[_Part]) -> None:
        """Begin to read windows that come after the first one."""
        if self._pool is not None:
            # One at least is read while that one is used, and each time one more than before.
            self._begin_more(ahead, todo)
            while self._begin_more(ahead, todo) and not ahead[0].can_begin():
                pass

    def _places(self, wanted: _Wanted) -> dict[int, _Place]:
        """Those of the samples of one shard, by their rows; what is on the disk is read."""
        (number, reader, inside), places, piece = wanted
        contents: Sequence[Content | None]
        if piece is None:
            started = time.monotonic()
            contents = _read(reader, inside, places)
            self.reading.add(seconds_waited=time.monotonic() - started)
        else:
            contents = piece.contents
        keys = plain_keys(inside.keys.take(places))
        rows = (places + inside.first).tolist()
        return {
            row: _Place(number, key, contents, place, piece)
            for place, (row, key) in enumerate(zip(rows, keys, strict=True))
        }

    def _drawn(self, row: int, lies: _Place) -> Drawn:
        """A sample, when its bytes are there."""
        shard, key, contents, place, piece = lies
        if contents[place] is None:
            assert self._pool is not None
            assert piece is not None
            started = time.monotonic()
            if piece.turns is None:
                self._pool.wait(piece.is_there)
            else:
                # The first batch waits for no more than it needs; to be woken each time costs.
                piece.awaited = place
                self._pool.wait(partial(piece.has, place))
            self.reading.add(seconds_waited=time.monotonic() - started)
        return Drawn(row, shard, key, cast(Content, contents[place]))

    def _shard(self, number: int, share: float) -> _OpenShard:
        if number not in self._open:
            info = ShardInfo.from_index(self._index, number, self._urls[number])
            reader = ShardReader(info, self._access, self.reading, share=share)
            self._open[number] = _OpenShard(number, reader, self._index.of_shard(number))
        return self._open[number]

    def _close(self, ahead: Iterable[_Begun]) -> None:
        for shard in [
            *self._open.values(),
            *(wanted.shard for begun in ahead for wanted in begun.wanted),
        ]:
            shard.reader.leave()
        self._open.clear()


def _read(reader: ShardReader, samples: ShardSamples, places: NDArray[np.int64]) -> Contents:
    """The bytes of samples, each by itself where they cannot be had together."""
    try:
        return reader.read(samples.offsets[places], samples.sizes[places])
    except ShardError as error:
        reader.close()
        # What is compressed would be unpacked anew for each, up to where it fails.
        if places.size == 1 or reader.is_compressed:
            return [error] * places.size
    single = (_read(reader, samples, places[place : place + 1]) for place in range(places.size))
    return [content for contents in single for content in contents]
