"""The lock by which one call at a time scores into a table."""

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from flowdata.errors import TableFileError, warn

LOCK_NAME = "lock"

# For a name that is no file but a pipe; Windows has neither.
_NOT_WAITING = getattr(os, "O_NONBLOCK", 0)

# A record lock belongs to the process: it does not keep its threads from each other.
_LOCKED_HERE: set[Path] = set()
_LOCKED_HERE_GUARD = threading.Lock()

# What fcntl(2) says on file systems without record locks: FUSE, Lustre without -o flock, 9p, NFS
# whose server has no lock manager.
_NO_LOCKS = {
    *(errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOTTY),
    *(errno.EPERM, errno.EPROTONOSUPPORT),
}


@contextlib.contextmanager
def lock_folder(
    folder: Path, unwritable: Callable[[OSError], TableFileError], name: str = LOCK_NAME
) -> Iterator[None]:
    """Make a folder, and hold it against everyone else; a killed process lets go by itself.

    Where there are no locks, on Windows or on some network disks, calls are not kept from each
    other: parts have names of their own, so that this costs work, but no score.

    Args:
        folder: the folder.
        unwritable: the error of a folder that cannot be made or written.
        name: of the file that is locked: who has another one is not kept out.

    Raises:
        TableFileError: when someone else holds it, or it cannot be written.
    """
    place = Path(os.path.realpath(folder)) / name
    with _LOCKED_HERE_GUARD:
        if place in _LOCKED_HERE:
            raise _locked_error(folder, "another call in this process")
        _LOCKED_HERE.add(place)
    try:
        try:
            handle = _open_locked(folder, name)
        except OSError as error:
            raise unwritable(error) from error
        try:
            # For people and for `_locked_error`: the lock itself says nothing of its holder.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            with contextlib.suppress(OSError):
                os.close(handle)
    finally:
        _LOCKED_HERE.discard(place)


def _open_locked(folder: Path, name: str) -> int:
    """The lock file, locked."""
    path = folder / name
    while True:
        folder.mkdir(exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NOT_WAITING, 0o666)
        try:
            _lock(handle)
            # Who held the lock before may have removed the folder with it: then this is the lock
            # of a file that no other process will ever see.
            if _is_same_file(path, handle):
                return handle
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warn(
                    f"the file system of {folder} has no locks ({error.strerror}): take care that "
                    "no other call scores into this output meanwhile"
                )
                return handle
            holder = b""
            with contextlib.suppress(OSError):
                holder = os.read(handle, 200)
            os.close(handle)
            if isinstance(error, BlockingIOError | PermissionError):
                found = holder.decode(errors="replace") or "another process"
                raise _locked_error(folder, found) from error
            raise
        os.close(handle)


def _lock(handle: int) -> None:
    """Take the lock of a file or raise, where the system has record locks (not on Windows).

    Not flock: loader workers would inherit that, and hold it on for a while after this process
    was killed. A record lock goes with the first handle of the file that this process closes.
    """
    with contextlib.suppress(ModuleNotFoundError):
        import fcntl

        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_same_file(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _locked_error(folder: Path, holder: str) -> TableFileError:
    return TableFileError(
        f"{holder} is scoring into {folder} now; wait for it, stop it, or choose another output"
    )
