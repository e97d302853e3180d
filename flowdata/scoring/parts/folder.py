"""Parts of an unfinished scoring pass, in a folder beside the table they will become.

A part counts where it carries the identity of the pass, whoever wrote it and wherever it comes
from: ranks of this call, of one that was killed, or of another machine. So no part of another
model or other data is ever merged, be it copied here or written by a rank that outlived its pass.
Parts of earlier versions carry none: those that lie in the folder when it is first met count by
the folder's identity, and are listed; what comes later without one does not count.

The table may be an object of a store, and so are the parts then. A store has no locks: calls that
score into one table at the same time do the work more than once, and none of it is lost.
"""

import contextlib
import errno
import json
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError, warn
from flowdata.files import (
    Place,
    move_into_place,
    names_in,
    place_of,
    reason_of,
    replacing,
    set_aside,
)
from flowdata.scoring.parts.checks import require_agreement, why_foreign
from flowdata.scoring.parts.lock import LOCK_NAME, lock_folder
from flowdata.scoring.parts.row_blocks import Worker
from flowdata.table.checks import require_same_pass
from flowdata.table.loss_table import LossTable
from flowdata.table.merging import (
    PART,
    PARTS,
    is_beside_parts,
    name_of_done,
    name_of_rows,
    part_names,
    save_rows,
)
from flowdata.table.parquet import DamagedFileError, unreadable
from flowdata.table.part_file import Part, read_part, write_part
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.scored_rows import ScoredRows
from flowdata.table.shard_index import ShardIndex

_IDENTITY = "identity.json"
_WITHOUT_IDENTITY = "without_identity.json"
_MERGED = "merged"

ADVICE = "Use the same model, data and options to go on, or choose another output, or delete it"


class Parts:
    """The folder ``<table>.parts``: the pass's identity, a lock, and the rows scored so far."""

    def __init__(self, table: str | PathLike[str]) -> None:
        self.table: Place = place_of(table, "loss table")
        if not self.table.name:
            raise TableFileError(f"{self.table} is a folder: give the name of a loss table in it")
        self.folder: Place = self.table.with_name(f"{self.table.name}{PARTS}")

    @property
    def is_finished(self) -> bool:
        """Whether the table is there.

        Raises:
            TableFileError: when that cannot be told.
        """
        try:
            if not isinstance(self.table, Path):
                return self.table.is_file()
            self.table.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise unreadable(self.table, "loss table", error) from error
        return True

    @contextlib.contextmanager
    def locked(self, job: Worker | None = None) -> Iterator[None]:
        """Hold the folder against everyone else; a killed process lets go by itself.

        A store has no locks.

        Args:
            job: of an array, whose jobs score into the folder together: it is held against
                another run of this job alone.

        Raises:
            TableFileError: when someone else scores into this table, or it cannot be written.
        """
        if not isinstance(self.folder, Path):
            yield
            return
        try:
            self._require_place()
        except OSError as error:
            raise self._unwritable_error(error) from error
        name = LOCK_NAME if job is None else f"{LOCK_NAME}-{job.number}-of-{job.of}"
        with lock_folder(self.folder, self._unwritable_error, name):
            yield

    def _require_place(self) -> None:
        """Find out before scoring that the table could not be written after it."""
        place = Path(os.path.realpath(self.table)).parent
        if not stat.S_ISDIR(place.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Begin a pass, or go on with the one that was begun with the same identity.

        A pass that has no part yet is begun anew, whatever it was.

        Raises:
            MismatchError: saying what differs from the pass that was begun.
            TableFileError: when the identity cannot be written, or told.
        """
        paths = self._paths()
        begun = self._read_json(_IDENTITY, dict)
        if paths:
            found = begun or self._identity_of(paths)
            what = f"the unfinished pass {self.folder}"
            require_same_pass(identity, found, what=what, advice=ADVICE)
        if not paths or self._read_json(_WITHOUT_IDENTITY, list) is None:
            self._write_json(_WITHOUT_IDENTITY, self._without_identity(paths) if begun else [])
        # One that was begun by an earlier version is known by all its rows from now on.
        if not paths or not begun or not begun.keys() >= identity.keys():
            self._write_json(_IDENTITY, identity)

    def keep_rows(
        self, provenance: Provenance, index: ShardIndex | None, keys: RowKeys | None
    ) -> str | None:
        """Keep what a table has of its rows beside scores, so that parts can be merged anywhere.

        Returns:
            The name of the file that has it.

        Raises:
            TableFileError: when it cannot be written.
        """
        if (name := name_of_rows(index, keys)) is not None:
            try:
                save_rows(self.folder, name, provenance, index, keys)
            except OSError as error:
                raise self._unwritable_error(error) from error
        return name

    def mark_done(self, job: Worker, identity: Mapping[str, Any]) -> None:
        """Leave word that a job of an array has scored its share of a pass.

        Raises:
            TableFileError: when that cannot be written.
        """
        self._write_json(name_of_done(job), identity)

    def _identity_of(self, paths: Sequence[Place]) -> dict[str, Any]:
        """The identity of a pass whose folder has none that can be read: that of its parts."""
        for part in map(self._read, paths):
            if part is not None and part.identity is not None:
                return part.identity
        raise TableFileError(
            f"{self.folder / _IDENTITY} is missing or damaged, so it cannot be told which model "
            f"and data its parts are of: restore it, or delete {self.folder} to score all rows "
            "again"
        )

    def _without_identity(self, paths: Sequence[Place]) -> list[str]:
        parts = map(self._read, paths)
        return [part.path.name for part in parts if part is not None and part.identity is None]

    @property
    def is_empty(self) -> bool:
        """Whether no scores were saved yet."""
        return not self._paths()

    @contextlib.contextmanager
    def removed_if_empty(self) -> Iterator[None]:
        """Leave no folder behind where a pass fails before its first part."""
        try:
            yield
        except BaseException:
            # The error is what matters, not that of a disk that cannot even be listed.
            with contextlib.suppress(OSError, TableFileError):
                if self.is_empty:
                    self._remove(())
            raise

    def add(
        self,
        scores: ScoredRows,
        identity: Mapping[str, Any],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a part of a pass under a new name.

        Args:
            scores: its rows.
            identity: of the pass.
            about: what else it says of itself, see `merging.notes`.

        Raises:
            TableFileError: when it cannot be written; the parts before it are safe.
        """
        try:
            job = (about or {}).get("job")
            name = f"{'' if job is None else _prefix(job)}{uuid.uuid4().hex}{PART}"
            write_part(self.folder / name, scores, identity, about)
        except OSError as error:
            raise TableFileError(
                f"cannot write the scores of {len(scores):,} rows to {self.folder}: "
                f"{reason_of(error)}; what was saved before is kept, and the same call "
                "goes on from there"
            ) from error

    def load(self, identity: Mapping[str, Any], job: Worker | None = None) -> list[Part]:
        """All parts of a pass, or those that one job of an array wrote.

        Whatever else is in the folder is named in a warning and left alone: the rows of a damaged
        part, which is given another name, are scored again.

        Raises:
            TableFileError: for a part that cannot be read now, or contradicts another.
        """
        adopted = self._read_json(_WITHOUT_IDENTITY, list) or []
        own: list[Part] = []
        for path in self._paths():
            if job is not None and not path.name.startswith(_prefix(job)):
                continue
            part = self._read(path)
            if part is None:
                continue
            if foreign := why_foreign(part, identity, adopted):
                warn(foreign)
            else:
                own.append(part)
        require_agreement(own, identity["rows"])
        return own

    def _read(self, path: Place) -> Part | None:
        """A part; None for one that is damaged, which is set aside."""
        try:
            return read_part(path)
        except DamagedFileError as error:
            # So that the next call does not warn of rows that were scored again.
            kept = set_aside(path).name
            warn(f"the part {path} cannot be read ({error}); it is kept as {kept}")
            return None

    def finish(self, table: LossTable) -> None:
        """Make the merged table the output.

        Raises:
            TableFileError: when it cannot be written; all parts are safe.
        """
        merged = self.folder / _MERGED
        try:
            if isinstance(merged, Path) and isinstance(self.table, Path):
                # Inside the folder: what a kill leaves of a half-written table goes with that.
                table.save(merged)
                move_into_place(merged, self.table)
            else:
                table.save(self.table)
        except (OSError, TableFileError) as error:
            cause = error.__cause__ or error
            why = reason_of(cause) if isinstance(cause, OSError) else cause
            raise TableFileError(
                f"cannot write the loss table {self.table}: {why}; all {len(table):,} rows are "
                f"kept in {self.folder}: make room, and the same call writes it without scoring "
                "again"
            ) from error

    def remove(self, identity: Mapping[str, Any], merged: Sequence[Part] = ()) -> None:
        """Delete the folder once the table is written, but nothing that is not of its pass.

        Args:
            identity: of the pass.
            merged: parts that are known to be of it.
        """
        adopted = self._read_json(_WITHOUT_IDENTITY, list) or []
        own = [part.path for part in merged]
        for path in sorted({*self._paths()} - {*own}):
            part = self._read(path)
            if part is not None and not why_foreign(part, identity, adopted):
                own.append(path)
        self._remove(own)

    def _remove(self, own: Sequence[Place]) -> None:
        names = {_IDENTITY, _WITHOUT_IDENTITY, _MERGED, *(path.name for path in own)}
        for name in names_in(self.folder) if self.folder.is_dir() else ():
            # What a kill leaves of a half-written file has a name of `replacing`.
            left = name.startswith(".") and name.endswith(".tmp")
            if left or name in names or is_beside_parts(name) or _is_lock(name):
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()
        # It stays where something is left in it, or where it is a link to a folder elsewhere.
        if isinstance(self.folder, Path):
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _paths(self) -> list[Place]:
        """The files of parts, in the order of their names.

        Raises:
            TableFileError: when the folder cannot be listed: it is not empty for that.
        """
        try:
            return [self.folder / name for name in part_names(self.folder)]
        except OSError as error:
            raise unreadable(self.folder, "folder of parts", error) from error

    def _read_json(self, name: str, kind: type, absent: Any = None) -> Any:
        """What a file of the folder holds; None where it is damaged or another kind of value."""
        path = self.folder / name
        try:
            if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):
                return kind()
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            return absent
        except OSError as error:
            raise unreadable(path, "file", error) from error
        except (ValueError, RecursionError):
            return kind()
        return found if isinstance(found, kind) else kind()

    def _write_json(self, name: str, value: Any) -> None:
        try:
            with replacing(self.folder / name) as temporary:
                temporary.write_text(json.dumps(value, indent=1))
        except OSError as error:
            raise self._unwritable_error(error) from error

    def _unwritable_error(self, error: OSError) -> TableFileError:
        where = "in an existing, writable directory with free space"
        if not isinstance(self.folder, Path):
            where = "in a store that exists and may be written, listed and read"
        return TableFileError(
            f"cannot write {self.folder}: {reason_of(error)}; the parts of an unfinished "
            f"pass lie beside its output, {where}"
        )


def _prefix(job: tuple[int, int]) -> str:
    # So that a job finds its own among those of thousands.
    return f"job-{job[0]}-of-{job[1]}-"


def _is_lock(name: str) -> bool:
    return name == LOCK_NAME or name.startswith(f"{LOCK_NAME}-")


def find_unscored_rows(
    rows: int, parts: Sequence[Part], known: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Row numbers that no part holds, and that are not known."""
    left = np.ones(rows, dtype=np.bool_)
    if known is not None:
        left[known] = False
    for part in parts:
        left[part.scores.rows] = False
    return np.flatnonzero(left)
