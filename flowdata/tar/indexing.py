"""index_shards: where the samples of shards lie, found by walking through their headers."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowdata.errors import ShardError
from flowdata.table.columns import compact_texts
from flowdata.table.keys import escaped_key
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.compression import DAMAGED, decompress
from flowdata.tar.names import shard_names
from flowdata.tar.samples import TarSample, walk
from flowdata.transport.access import Access, Readable
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity
from flowdata.transport.retrying import wait_until
from flowdata.transport.urls import Urls, expand_braces, is_remote, redact

# Remote shards that are read side by side.
_THREADS = 8


def index_shards(urls: Urls, *, access: Access | None = None, progress: bool = True) -> ShardIndex:
    """Where the samples of shards lie; of local shards only the headers are read.

    Args:
        urls: paths or URLs, or one with braces, ``"data-{000..009}.tar"``.
        access: how remote shards are reached.
        progress: show a progress bar.

    Raises:
        ShardError: for no shards or samples, a shard that cannot be read, a key twice in one.
    """
    every = expand_braces(urls)
    access = access or Access()
    names = shard_names(every, access.signed_by)
    # Headers of local shards keep a processor busy, servers keep it waiting.
    threads = _THREADS if any(map(is_remote, every)) else 1
    stopped = threading.Event()
    with ThreadPoolExecutor(threads, initializer=wait_until, initargs=(stopped,)) as pool:
        parts = pool.map(partial(_index_shard, access=access), every)
        bar = tqdm(parts, desc="indexing", unit="shards", total=len(every), disable=not progress)
        try:
            return _join(names, list(bar))
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Part:
    """The samples of one shard: their keys, and (first byte, bytes) of each."""

    keys: Any
    spans: NDArray[np.int64]
    identity: Identity
    compressed: bool


def _join(names: tuple[str, ...], parts: Sequence[_Part]) -> ShardIndex:
    import pyarrow as pa

    counts = [part.spans.shape[0] for part in parts]
    if not sum(counts):
        raise ShardError(f"there is no sample in {names[0]} and {len(parts) - 1} other shards")
    offsets, sizes = np.concatenate([part.spans for part in parts]).T.copy()
    return ShardIndex(
        names,
        np.repeat(np.arange(len(parts), dtype=np.int32), counts),
        compact_texts(pa.concat_arrays([part.keys for part in parts])),
        offsets,
        sizes,
        np.array([part.identity.length for part in parts], dtype=np.int64),
        np.array([part.compressed for part in parts], dtype=np.bool_),
        tuple(part.identity.version for part in parts),
    )


def _index_shard(url: str, access: Access) -> _Part:
    import pyarrow as pa

    name = redact(url)
    transport = connect(url, access)
    try:
        with contextlib.closing(transport.stream()) as raw:
            content, compressed = decompress(raw, name, max_expansion=access.max_expansion)
            keys: list[str] = []
            spans: list[tuple[int, int]] = []
            samples = walk(content, name, is_whole=transport.is_whole)
            for sample in _refuse_duplicates(samples, name):
                keys.append(sample.key if sample.key.isascii() else escaped_key(sample.key))
                spans.append((sample.offset, sample.size))
            # The checksum of a gzip stream comes after its last byte.
            if compressed:
                _read_to_the_end(content, name)
        identity = transport.identity()
    finally:
        transport.close()
    return _Part(
        pa.array(keys, type=pa.large_string()),
        np.array(spans, dtype=np.int64).reshape(-1, 2),
        identity,
        compressed,
    )


def _read_to_the_end(content: Readable, name: str) -> None:
    """Let the decompressor come to its checksum."""
    try:
        while content.read(1 << 20):
            pass
    except DAMAGED as error:
        raise ShardError(f"{name} is corrupt: {error}; copy it again") from error


def _refuse_duplicates(samples: Iterator[TarSample], name: str) -> Iterator[TarSample]:
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise ShardError(
                f"{name} has the key {sample.key!r} twice: members of a sample must be "
                "neighbours, and each sample needs a key of its own"
            )
        seen.add(sample.key)
        yield sample
