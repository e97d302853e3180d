"""Whole remote shards kept in a local folder of limited size."""

import contextlib
import os
import time
from pathlib import Path

import xxhash

from flowdata.errors import ShardError
from flowdata.files import replacing
from flowdata.transport.access import Access, Transport
from flowdata.transport.remote import open_remote
from flowdata.transport.urls import redact

_CHUNK = 1 << 20
_SUFFIX = ".shard"
# Seconds after which a copy that nobody finished is taken for that of a killed process.
_ABANDONED = 3600.0


def fetch_to_cache(url: str, access: Access, length: int = -1) -> Path | None:
    """Return the local copy of a shard, fetched if need be; None if the cache cannot hold it.

    A copy appears under its name only when it is complete. It goes by the URL without its query,
    which may hold a signature, and by the length; copies of another length are fetched anew.
    Copies used longest ago are removed until the folder is within its limit; a process that has
    one open reads on.

    Args:
        url: of the shard.
        access: how it is reached, with the folder.
        length: of the shard, -1 if it is not known.

    Raises:
        ShardError: for a shard that has another length, or that cannot be fetched or kept.
    """
    assert access.cache_dir is not None
    folder = Path(access.cache_dir)
    source = open_remote(url, access)
    if length < 0:
        length = found if (found := source.length()) is not None else -1
    path = folder / (xxhash.xxh3_128_hexdigest(f"{redact(url)} {length}".encode()) + _SUFFIX)
    try:
        if _use_copy(path, length):
            return path
        if access.cache_size is not None and not 0 <= length <= access.cache_size:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, access.cache_size, max(length, 0))
        _download(source, path, length, redact(url))
    except OSError as error:
        raise ShardError(f"{redact(url)} cannot be kept in {folder}: {error}") from error
    return path


def _use_copy(path: Path, length: int) -> bool:
    """Return whether a copy is there, and note that it is used now; remove a damaged one."""
    if not path.is_file():
        return False
    if length >= 0 and path.stat().st_size != length:
        path.unlink(missing_ok=True)
        return False
    # The time of a copy is when it was used last, by which the cache makes room.
    with contextlib.suppress(OSError):
        os.utime(path)
    return True


def _download(source: Transport, path: Path, length: int, name: str) -> None:
    with (
        contextlib.closing(source.stream()) as stream,
        replacing(path) as temporary,
        temporary.open("wb") as file,
    ):
        fetched = 0
        while chunk := stream.read(_CHUNK):
            fetched += file.write(chunk)
        if length not in (-1, fetched):
            raise ShardError(
                f"{name} has {fetched:,} bytes, but {length:,} when it was indexed, as it was "
                f"fetched to the cache {path.parent}: restore the shard, or score it again"
            )


def _make_room(folder: Path, limit: int | None, needed: int) -> None:
    kept = []
    total = needed
    for path in folder.glob(f"*{_SUFFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.suffix == _SUFFIX:
                kept.append((status.st_mtime_ns, status.st_size, path))
            elif time.time() - status.st_mtime > _ABANDONED:
                # Of a process that was killed.
                path.unlink()
                continue
            total += status.st_size
    for _, size, path in sorted(kept):
        if limit is None or total <= limit:
            return
        path.unlink(missing_ok=True)
        total -= size
