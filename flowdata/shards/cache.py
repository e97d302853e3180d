"""Whole remote shards kept in a local folder of limited size."""

import contextlib
import os
from pathlib import Path

import xxhash

from flowdata.errors import ShardError
from flowdata.files import replacing
from flowdata.shards.transport import Access, remote, retrying
from flowdata.shards.urls import shown

_PART = 1 << 20
_SUFFIX = ".shard"


def cached(url: str, access: Access) -> Path | None:
    """The local copy of a shard, fetched if need be; None for one that the cache cannot hold.

    A copy appears under its name only when it is complete. Copies used longest ago are removed
    until the folder is within its limit; a process that has one open reads on.
    """
    assert access.cache_dir is not None
    folder = access.cache_dir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (xxhash.xxh3_128_hexdigest(url.encode()) + _SUFFIX)
    if path.is_file():
        with contextlib.suppress(OSError):
            os.utime(path)
        return path
    source = remote(url, access)
    length = source.length()
    if access.cache_size is not None and (length is None or length > access.cache_size):
        return None
    _make_room(folder, access.cache_size, length or 0)

    def fetch() -> None:
        stream = source.stream()
        fetched = 0
        with replacing(path) as temporary, temporary.open("wb") as file:
            while part := stream.read(_PART):
                fetched += file.write(part)
            if length is not None and fetched != length:
                raise EOFError(f"{fetched:,} of {length:,} bytes came")
        stream.close()

    try:
        retrying(fetch, url, access)
    except OSError as error:
        raise ShardError(f"{shown(url)} cannot be kept in {folder}: {error}") from error
    return path


def _make_room(folder: Path, limit: int | None, needed: int) -> None:
    if limit is None:
        return
    kept = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            kept.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in kept) + needed
    for _, size, path in sorted(kept):
        if total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
