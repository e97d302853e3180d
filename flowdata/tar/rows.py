"""ShardRows: tar shards as a map-style data set, for the scoring pass."""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from flowdata.errors import ShardError
from flowdata.table.shard_index import ShardIndex, ShardSamples, plain_keys
from flowdata.tar.indexing import index_shards
from flowdata.tar.names import match_all
from flowdata.tar.pieces import Contents
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.tar.samples import parse_sample
from flowdata.transport.access import Access
from flowdata.transport.counts import Counts
from flowdata.transport.pool import ReadingPool
from flowdata.transport.urls import Urls, expand_braces, is_remote, redact

# Shards whose files or connections stay open, the one used longest ago making room.
_OPEN = 8


class _Part(NamedTuple):
    """Some rows of one shard, by their places in it."""

    shard: int
    reader: ShardReader
    samples: ShardSamples
    places: NDArray[np.int64]

    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First byte and bytes of each."""
        return self.samples.offsets[self.places], self.samples.sizes[self.places]


class ShardRows(Dataset[Any]):
    """Samples of tar shards by row number.

    A sample is what WebDataset makes of it, ``{"__key__": ..., "__url__": ..., "jpg": bytes}``,
    given to ``decode``. Nothing is decoded, and nothing unpickled, unless ``decode`` does. A
    loss table scored over it holds shard, key, offset and size of each row, which is all that
    `FlowShards` and `resample` need.

    Any row can be read at once from local files and from servers that know ranges. Compressed
    shards and pipes are read from their start: in the order of the rows, as a scoring pass of
    one process without workers does, that is one pass; otherwise it is slow.

    Args:
        shards: paths or URLs, or one with braces, ``"data-{000..009}.tar"``.
        decode: makes an item of a raw sample; default the raw sample.
        index: where the samples lie, if that is known already, or the file of an index or of a
            loss table that says so; by default the headers are read.
        access: how remote shards are reached, see `Access`.
        progress: show a progress bar while the headers are read.

    Raises:
        MismatchError: for an index of other shards.
        ShardError: for shards that cannot be read, or a key twice in one.
        TableFileError: for a file that has no index.
    """

    def __init__(
        self,
        shards: Urls,
        *,
        decode: Callable[[dict[str, Any]], Any] | None = None,
        index: ShardIndex | str | os.PathLike[str] | None = None,
        access: Access | None = None,
        progress: bool = True,
    ) -> None:
        self._access = access or Access()
        if index is None:
            index = index_shards(shards, access=self._access, progress=progress)
        self.index = index if isinstance(index, ShardIndex) else ShardIndex.load(index)
        self._urls = match_all(expand_braces(shards), self.index.shards, self._access.signed_by)
        self._decode = decode
        self._bounds = self.index.bounds()
        self._open: OrderedDict[int, tuple[ShardReader, ShardSamples]] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Any]:
        """Items of many rows, as torch's loaders ask for them; side by side from servers."""
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"row {row} is outside {len(self):,} samples")
        samples = {}
        for part, contents in self._read(np.unique(np.asarray(rows, dtype=np.int64))):
            url, inside = redact(self._urls[part.shard]), part.samples
            keys = plain_keys(inside.keys.take(part.places))
            for place, key, content in zip(part.places.tolist(), keys, contents, strict=True):
                samples[inside.first + place] = parse_sample(content, key, url)
        # Each a dict of its own, which `decode` may change.
        items = [dict(samples[row]) for row in rows]
        return items if self._decode is None else [self._decode(item) for item in items]

    def _read(self, rows: NDArray[np.int64]) -> Iterator[tuple["_Part", list[memoryview]]]:
        """The bytes of ascending rows, by the shards they are in."""
        if not rows.size:
            return
        shards = np.searchsorted(self._bounds, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        split = np.split(rows, cuts)
        parts = [
            self._part(shard, inside, so_many=len(split))
            for shard, inside in zip(shards[np.append(0, cuts)].tolist(), split, strict=True)
        ]
        if rows.size == 1 or not any(is_remote(self._urls[part.shard]) for part in parts):
            for part in parts:
                yield part, part.reader.read(*part.spans())
            return
        with contextlib.closing(ReadingPool(self._access.connections, Counts())) as pool:
            connections = self._access.connections / len(parts)
            pieces = [
                part.reader.submit(pool, (0, 0), *part.spans(), connections=connections)
                for part in parts
            ]
            try:
                pool.wait(lambda: all(piece.is_there() for piece in pieces))
            except BaseException:
                # Of an interrupt: they wait for what this pool will not read.
                self._open.clear()
                raise
        for part, piece in zip(parts, pieces, strict=True):
            contents = cast(Contents, piece.contents)
            for content in contents:
                if isinstance(content, ShardError):
                    raise content
            yield part, cast(list[memoryview], contents)

    def _part(self, shard: int, rows: NDArray[np.int64], *, so_many: int) -> "_Part":
        """Rows of a shard, which is opened; the last ones, or so many, stay open."""
        if self._process != os.getpid():
            # A forked process shares the read position of files it got.
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            while len(self._open) >= max(_OPEN, so_many):
                self._open.popitem(last=False)[1][0].close()
            info = ShardInfo.from_index(self.index, shard, self._urls[shard])
            self._open[shard] = ShardReader(info, self._access), self.index.of_shard(shard)
        self._open.move_to_end(shard)
        reader, samples = self._open[shard]
        return _Part(shard, reader, samples, rows - samples.first)

    def __getstate__(self) -> dict[str, Any]:
        # Open files belong to one process.
        return self.__dict__ | {"_open": OrderedDict()}
