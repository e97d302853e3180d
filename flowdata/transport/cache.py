"""Whole remote shards kept in a local folder of limited size."""

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import xxhash

from flowdata.errors import ShardError, warn
from flowdata.files import move_into_place
from flowdata.transport.access import Access, Readable
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Transport
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.local import LocalTransport
from flowdata.transport.remote import open_remote
from flowdata.transport.retrying import sleep
from flowdata.transport.urls import address, redact
from flowdata.transport.whole import fetch_whole

_CHUNK = 1 << 20
_SUFFIX = ".shard"
# Seconds after which a copy that is not finished may be that of a killed process: it is if nobody
# holds its lock, and where a file system knows no locks, after a longer time.
_MAYBE_ABANDONED = 60.0
_ABANDONED = 3600.0
# Seconds between two looks whether another has fetched a copy.
_LOOK = 0.05
# Folders that can never hold a copy, unlike those that are full today.
_UNUSABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP}
)


def open_cached(
    url: str,
    access: Access,
    expected: Identity = UNKNOWN,
    share: float = 1.0,
    counts: Counts | None = None,
) -> LocalTransport | None:
    """Open the local copy of a shard, fetched if that pays; None if not, or if there is no room.

    A copy appears under its name only when it is complete. Its name is a hash of the whole URL,
    but for signatures, and of the length and version of the content; without an index the server
    is asked for these, and a copy of which nothing is known is not used again. Copies used longest
    ago are removed until the folder is within its limit; a copy is opened before anyone can
    remove it, and what is open is read on.

    Args:
        url: of the shard.
        access: how it is reached, with the folder.
        expected: what its content has to be.
        share: of its bytes that are wanted; below `Access.cache_from` only a copy that is there
            is opened.
        counts: what is told how much was fetched.

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
        if share < access.cache_from:
            return None
        if (limit := access.most_cached) is not None and not 0 <= sought.length <= limit:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        remote = source or open_remote(url, access, expected)
        length = max(sought.length, 0)
        return _download(remote, folder, url, access, expected, length, counts or Counts())
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
    source: Transport,
    folder: Path,
    url: str,
    access: Access,
    expected: Identity,
    length: int,
    counts: Counts,
) -> LocalTransport | None:
    """Fetch a copy and open it; None if there is no room, or nobody can know whether it is whole.

    Where its name is known before, one of those who want it at once fetches it for all.
    """
    path = _path(folder, url, access, expected) if expected.length >= 0 else None
    temporary = folder / f".{path.stem if path else secrets.token_hex(8)}{_SUFFIX}.tmp"
    with contextlib.ExitStack() as stack:
        temporary, file = _open_alone(temporary, url)
        stack.callback(file.close)
        if path is not None and (copy := _open_copy(folder, url, access, expected)) is not None:
            stack.callback(temporary.unlink, missing_ok=True)
            return copy
        try:
            with _one_at_a_time(folder):
                # As long as it will be: who makes room for another counts all of it.
                file.truncate(length)
                if not _make_room(folder, access.most_cached):
                    temporary.unlink()
                    return None
            if not _fetch(source, file, url, access, expected):
                temporary.unlink()
                return None
            fetched = os.fstat(file.fileno()).st_size
            counts.add(bytes_kept=fetched)
            identity = expected if expected.length >= 0 else source.identity()
            identity = identity.joined(Identity(fetched), redact(url))
            os.fsync(file.fileno())
            path = _path(folder, url, access, identity)
            move_into_place(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        # Open from now on: nobody can take it away, whatever becomes of its name.
        stack.pop_all()
    return LocalTransport(path, file, identity)


def _open_alone(path: Path, url: str) -> tuple[Path, BinaryIO]:
    """Open a file that nobody else writes, emptied; wait for who does."""
    while True:
        file = cast(BinaryIO, os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", 0))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            if not sleep(_LOOK):
                raise ShardError(f"{redact(url)} is wanted no more") from None
            continue
        except OSError:
            # No locks here: it is written by each under a name of its own.
            file.close()
            path.unlink(missing_ok=True)
            path = path.with_name(f".{secrets.token_hex(8)}{_SUFFIX}.tmp")
            return path, cast(BinaryIO, path.open("x+b", buffering=0))
        # Who had it may have given it its name meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                return path, file
        file.close()


def _fetch(source: Transport, file: BinaryIO, url: str, access: Access, expected: Identity) -> bool:
    """Write a shard to a file, if its end can be known."""
    if (
        expected.length > 0
        and source.supports_ranges
        and fetch_whole(source, expected.length, file.fileno(), url, access)
    ):
        return True
    with contextlib.closing(source.stream()) as stream:
        first = stream.read(_CHUNK)
        if not source.is_whole():
            return False
        _copy(first, stream, file)
    file.truncate()
    return True


def _copy(first: bytes, stream: Readable, file: BinaryIO) -> None:
    """Write a stream to a file."""
    chunk = first
    while chunk:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]
        chunk = stream.read(_CHUNK)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait for others who make room, where the file system knows locks of folders."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        # Closing it would not do where a process was forked meanwhile.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _make_room(folder: Path, limit: int | None) -> bool:
    """Remove copies used longest ago; whether the folder is within its limit then."""
    kept = []
    total = 0
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
