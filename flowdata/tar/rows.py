"""ShardRows: tar shards as a map-style data set, for the scoring pass."""

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from flowdata.table.shard_index import ShardIndex
from flowdata.tar.indexing import index_shards
from flowdata.tar.names import match_all
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.tar.samples import parse_sample
from flowdata.transport.access import Access
from flowdata.transport.urls import Urls, expand_braces, redact

# Shards whose files or connections stay open, the one used longest ago making room.
_OPEN = 8


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
        self._readers: OrderedDict[int, ShardReader] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside {len(self):,} samples")
        shard = int(self.index.shard[row])
        offsets, sizes = self.index.offsets[row : row + 1], self.index.sizes[row : row + 1]
        [content] = self._reader(shard).read(offsets, sizes)
        sample = parse_sample(content, self.index.key(row), redact(self._urls[shard]))
        return sample if self._decode is None else self._decode(sample)

    def _reader(self, shard: int) -> ShardReader:
        if self._process != os.getpid():
            # A forked process shares the read position of files it got.
            self._readers, self._process = OrderedDict(), os.getpid()
        if shard not in self._readers:
            if len(self._readers) == _OPEN:
                self._readers.popitem(last=False)[1].close()
            self._readers[shard] = ShardReader(
                ShardInfo.from_index(self.index, shard, self._urls[shard]), self._access
            )
        self._readers.move_to_end(shard)
        return self._readers[shard]

    def __getstate__(self) -> dict[str, Any]:
        # Open files belong to one process.
        return self.__dict__ | {"_readers": OrderedDict()}
