"""Atomic files: whoever reads the final name sees the old content or the new, never half."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success sync it and rename it to ``path``.

    On an error the temporary file is removed and ``path`` stays as it was. A folder that cannot
    be synced (some network file systems refuse it) is none: the new content is in place.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path)


def move_into_place(source: Path, path: Path) -> None:
    """Give a file that is written and synced its final name, on the same file system."""
    source.replace(path)
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    # A rename is in the folder: without this a power cut may undo it.
    with contextlib.suppress(OSError):
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
