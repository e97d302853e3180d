"""Atomic files: whoever reads the final name sees the old content or the new, never half."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from flowdata.errors import TableFileError
from flowdata.objects import ObjectPath, StoreError

Place: TypeAlias = Path | ObjectPath
"""A file or a folder of this machine, or of what fsspec opens."""

# Also as pathlib leaves it, with one slash. A letter alone is a drive of Windows.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def place_of(path: str | PathLike[str], what: str) -> Place:
    """A path of this machine's file systems, or a URL that fsspec opens.

    Args:
        path: what a user gave.
        what: what it is of, for the error.

    Raises:
        TableFileError: for what is neither.
    """
    text = os.fspath(path)
    found = _URL.match(text)
    if not found or "\0" in text or os.path.isdir(f"{found[1]}:"):
        return local_path(path, what)
    if found[1].lower() == "file":
        return Path(f"/{text[found.end() :].lstrip('/')}")
    return ObjectPath(text)


def names_in(folder: Place) -> list[str]:
    """The names of all that is in a folder.

    Raises:
        OSError: when it cannot be listed.
    """
    return os.listdir(folder) if isinstance(folder, Path) else folder.names()


def local_path(path: str | PathLike[str], what: str) -> Path:
    """A path of this machine's file systems.

    Args:
        path: what a user gave.
        what: what it is of, for the error.

    Raises:
        TableFileError: for the URL of something else, or what is no path.
    """
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise TableFileError(f"{os.fspath(path)!r} is no path: give that of a {what}")
    found = _URL.match(os.fspath(path))
    if found and not os.path.isdir(f"{found[1]}:"):
        raise TableFileError(
            f"{os.fspath(path)} is a URL, and a {what} is a local file: give a path, of a mounted "
            "or a local disk, and copy the file between there and the object store"
        )
    return Path(path)


def reason_of(error: OSError) -> str:
    """Why a file cannot be used, as the system says it: pyarrow adds its own words to that."""
    if isinstance(error, StoreError):
        return error.text
    return str(error) if error.errno is None else os.strerror(error.errno)


def set_aside(path: Place) -> Place:
    """Give a damaged file a name by which nobody reads it again, if it can be; the new name."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.damaged")
    with contextlib.suppress(OSError):
        path.rename(aside)  # type: ignore[arg-type]
    return aside


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success sync it and rename it to ``path``.

    What is put into a store is a temporary file of this machine before.

    On an error the temporary file is removed and ``path`` stays as it was. A link is followed. A
    folder that cannot be synced (some network file systems refuse it) is none: the new content is
    in place.
    """
    if not isinstance(path, Path):
        with path.replacing() as temporary:
            yield temporary
        return
    path = _followed(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        # Some file systems have no permissions to set.
        with contextlib.suppress(OSError):
            temporary.chmod(0o666 & ~_umask())
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path)


def move_into_place(source: Path, path: Path) -> None:
    """Give a file that is written and synced its final name, also on another file system."""
    try:
        source.replace(_followed(path))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with replacing(path) as temporary:
            shutil.copyfile(source, temporary)
        source.unlink()
    else:
        _sync_folder(path)


def _followed(path: Path) -> Path:
    """What a link leads to, also one that leads nowhere yet: the link stays a link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


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
