"""Parts of an unfinished scoring pass, in a folder beside the table they will become."""

import contextlib
import json
import os
import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import require_same
from flowdata.errors import TableFileError, warn
from flowdata.files import move_into_place, replacing
from flowdata.scoring.scored_rows import ScoredRows
from flowdata.table.loss_table import LossTable

_IDENTITY = "identity.json"
_LOCK = "lock"
_MERGED = "merged"

ADVICE = (
    "Score with the same model, data and options to go on, or choose another output, or delete it"
)

# A record lock belongs to the process: it does not keep its threads from each other.
_LOCKED_HERE: set[Path] = set()
_LOCKED_HERE_GUARD = threading.Lock()


class Parts:
    """The folder ``<table>.parts``: the pass's identity, a lock, and the rows scored so far."""

    def __init__(self, table: Path) -> None:
        self.table = table
        self.folder = table.with_name(f"{table.name}.parts")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against everyone else; a killed process lets go by itself.

        Raises:
            TableFileError: when someone else scores into this table, or it cannot be written.
        """
        folder = self.folder.resolve()
        with _LOCKED_HERE_GUARD:
            if folder in _LOCKED_HERE:
                raise self._locked_error("another call in this process")
            _LOCKED_HERE.add(folder)
        try:
            handle = self._open_lock()
            try:
                # For people and for `_locked_error`: the lock itself says nothing of its holder.
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                yield
            finally:
                os.close(handle)
        finally:
            _LOCKED_HERE.discard(folder)

    def _open_lock(self) -> int:
        """The lock file, locked."""
        path = self.folder / _LOCK
        while True:
            try:
                self.folder.mkdir(exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise self._unwritable_error(error) from error
            try:
                _lock(handle)
                # Who held the lock before may have removed the folder with it: then this is the
                # lock of a file that no other process will ever see.
                if _is_same_file(path, handle):
                    return handle
            except (BlockingIOError, PermissionError) as error:
                holder = os.read(handle, 200).decode()
                os.close(handle)
                raise self._locked_error(holder or "another process") from error
            os.close(handle)

    def claim(self, identity: dict[str, Any]) -> None:
        """Begin a pass, or go on with the one that was begun with the same identity.

        A pass that has no part yet is begun anew, whatever it was.

        Raises:
            MismatchError: saying what differs from the pass that was begun.
            TableFileError: when the identity cannot be written.
        """
        path = self.folder / _IDENTITY
        if self.is_empty:
            try:
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(identity, indent=1))
            except OSError as error:
                raise self._unwritable_error(error) from error
        require_same(
            identity,
            json.loads(path.read_text()),
            what=f"the unfinished pass {self.folder}",
            advice=ADVICE,
        )

    @property
    def is_empty(self) -> bool:
        """Whether no scores were saved yet."""
        return next(self.folder.glob("*.parquet"), None) is None

    @contextlib.contextmanager
    def removed_if_empty(self) -> Iterator[None]:
        """Leave no folder behind where a pass fails before its first part."""
        try:
            yield
        except BaseException:
            if self.is_empty:
                self.remove()
            raise

    def add(self, scores: ScoredRows) -> None:
        """Write a part under a new name.

        Raises:
            TableFileError: when it cannot be written; the parts before it are safe.
        """
        try:
            scores.save(self.folder / f"{uuid.uuid4().hex}.parquet")
        except OSError as error:
            raise TableFileError(
                f"cannot write the scores of {len(scores):,} rows to {self.folder}: "
                f"{error.strerror or error}; what was saved before is kept, and the same call "
                "goes on from there"
            ) from error

    def load(self) -> list[ScoredRows]:
        """All readable parts; one that is damaged is named in a warning and scored again."""
        parts = []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                parts.append(ScoredRows.load(path))
            except (OSError, ValueError, KeyError) as error:
                warn(
                    f"the part {path} cannot be read ({error}); its rows are scored again",
                )
                # So that the next call does not warn of rows that were scored again.
                path.unlink()
        return parts

    def finish(self, table: LossTable) -> None:
        """Make the merged table the output.

        Raises:
            TableFileError: when it cannot be written; all parts are safe.
        """
        merged = self.folder / _MERGED
        try:
            # Inside the folder: what a kill leaves of a half-written table goes with the folder.
            table.save(merged)
            move_into_place(merged, self.table)
        except (OSError, TableFileError) as error:
            cause = error.__cause__ or error
            raise TableFileError(
                f"cannot write the loss table {self.table}: "
                f"{getattr(cause, 'strerror', None) or cause}; all {len(table):,} rows are kept "
                f"in {self.folder}: make room, and the same call writes it without scoring again"
            ) from error

    def remove(self) -> None:
        """Delete the folder, once the table is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _locked_error(self, holder: str) -> TableFileError:
        return TableFileError(
            f"{holder} is scoring into {self.folder} now; wait for it, stop it, or choose "
            "another output"
        )

    def _unwritable_error(self, error: OSError) -> TableFileError:
        return TableFileError(
            f"cannot write {self.folder}: {error.strerror or error}; the parts of an unfinished "
            "pass lie beside its output, in an existing, writable directory with free space"
        )


def find_unscored_rows(rows: int, parts: list[ScoredRows]) -> NDArray[np.int64]:
    """Row numbers that no part holds."""
    left = np.ones(rows, dtype=np.bool_)
    for part in parts:
        left[part.rows] = False
    return np.flatnonzero(left)


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
