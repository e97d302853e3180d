"""Whole remote shards kept in a local folder of limited size."""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from pathlib import Path
from typing import BinaryIO, cast

import xxhash

from flowdata.errors import ShardError, warn
from flowdata.files import move_into_place
from flowdata.transport.access import Access, Readable, Transport
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.local import LocalTransport
from flowdata.transport.remote import open_remote
from flowdata.transport.urls import address, redact

_CHUNK = 1 << 20
_SUFFIX = ".shard"
# Seconds after which a copy that is not finished may be that of a killed process: it is if nobody
# holds its lock, and where a file system knows no locks, after a longer time.
_MAYBE_ABANDONED = 60.0
_ABANDONED = 3600.0
# Folders that can never hold a copy, unlike those that are full today.
_UNUSABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
)


def open_cached(url: str, access: Access, expected: Identity = UNKNOWN) -> LocalTransport | None:
    """Open the local copy of a shard, fetched if need be; None if the cache cannot hold it.

    A copy appears under its name only when it is complete. Its name is a hash of the whole URL,
    but for signatures, and of the length and version of the content; without an index the server
    is asked for these, and a copy of which nothing is known is not used again. Copies used longest
    ago are removed until the folder is within its limit; a copy is opened before anyone can
    remove it, and what is open is read on.

    Args:
        url: of the shard.
        access: how it is reached, with the folder.
        expected: what its content has to be.

    Raises:
        ShardError: for a shard that has changed, or that cannot be fetched, or for a folder that
            cannot be written.
    """
    assert access.cache_dir is not None
    folder = Path(access.cache_dir)
    source = open_remote(url, access, expected) if expected.length < 0 else None
    # What the server said a moment ago only finds a copy: what it sends now is not held to it.
    sought = expected if source is None else source.identity()
    try:
        if sought.length >= 0 and (copy := _open_copy(folder, url, access, sought)) is not None:
            return copy
        if access.cache_size is not None and not 0 <= sought.length <= access.cache_size:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        if not _make_room(folder, access.cache_size, max(sought.length, 0)):
            return None
        remote = source or open_remote(url, access, expected)
        return _download(remote, folder, url, access, expected)
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise ShardError(f"{redact(url)} cannot be kept in {folder}: {error}") from error
        warn(
            f"the cache {folder} cannot keep a shard ({error.strerror or error}): it is read from "
            "its server, here and until there is room"
        )
        return None
    finally:
        if source is not None:
            source.close()


def _path(folder: Path, url: str, access: Access, identity: Identity) -> Path:
    whole = f"{redact(url)}?{address(url, access.signed_by)}"
    text = f"{whole}\n{identity.length}\n{identity.etag or identity.modified}"
    return folder / (xxhash.xxh3_128_hexdigest(text.encode()) + _SUFFIX)


def _open_copy(folder: Path, url: str, access: Access, identity: Identity) -> LocalTransport | None:
    """Open a copy that is there, and note that it is used now; remove a damaged one."""
    path = _path(folder, url, access, identity)
    try:
        file = cast(BinaryIO, path.open("rb", buffering=0))
    except OSError:
        return None
    if os.fstat(file.fileno()).st_size != identity.length:
        file.close()
        path.unlink(missing_ok=True)
        return None
    # The time of a copy is when it was used last, by which the cache makes room.
    with contextlib.suppress(OSError):
        os.utime(path)
    return LocalTransport(path, file, identity)


def _download(
    source: Transport, folder: Path, url: str, access: Access, expected: Identity
) -> LocalTransport | None:
    """Fetch a copy and open it; None where nobody can know whether it is whole."""
    with contextlib.closing(source.stream()) as stream:
        first = stream.read(_CHUNK)
        if not source.is_whole():
            return None
        temporary = folder / f".{secrets.token_hex(8)}{_SUFFIX}.tmp"
        # Open from now on: nobody can take it away, whatever becomes of its name.
        file = cast(BinaryIO, temporary.open("x+b", buffering=0))
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fetched = _copy(first, stream, file)
            identity = expected if expected.length >= 0 else source.identity()
            identity = identity.joined(Identity(fetched), redact(url))
            os.fsync(file.fileno())
            path = _path(folder, url, access, identity)
            move_into_place(temporary, path)
        except BaseException:
            file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    return LocalTransport(path, file, identity)


def _copy(first: bytes, stream: Readable, file: BinaryIO) -> int:
    """Write a stream to a file, and return the number of its bytes."""
    fetched, chunk = 0, first
    while chunk:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]
        fetched += len(chunk)
        chunk = stream.read(_CHUNK)
    return fetched


def _make_room(folder: Path, limit: int | None, needed: int) -> bool:
    """Remove copies used longest ago; whether there is room for so many bytes then."""
    kept = []
    total = needed
    for path in folder.glob(f"*{_SUFFIX}*"):
        # Others remove copies too.
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.suffix == _SUFFIX:
                kept.append((status.st_mtime_ns, status.st_size, path))
            elif _is_abandoned(path, time.time() - status.st_mtime):
                path.unlink()
                continue
            total += status.st_size
    for _, size, path in sorted(kept):
        if limit is None or total <= limit:
            break
        # That of another user may have to stay.
        with contextlib.suppress(PermissionError):
            path.unlink(missing_ok=True)
            total -= size
    return limit is None or total <= limit


def _is_abandoned(path: Path, age: float) -> bool:
    """Whether the process that wrote a copy this long ago is gone."""
    if age < _MAYBE_ABANDONED:
        return False
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return age > _ABANDONED
    return True
