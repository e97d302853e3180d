"""Parts of an unfinished scoring pass, in a folder beside the table they will become."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError, TableFileError, warn
from flowdata.files import replacing
from flowdata.scoring.scores import Scores

_IDENTITY = "identity.json"
_LOCK = "lock"


class Parts:
    """The folder ``<table>.parts``: the run's identity, a lock, and scores of rows done so far."""

    def __init__(self, table: Path) -> None:
        self.folder = table.with_name(f"{table.name}.parts")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against other processes; a killed process lets go by itself.

        Raises:
            TableFileError: when another process scores into this table, or it cannot be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            try:
                # A record lock, because loader workers would inherit one of flock and hold it on
                # for a while after this process was killed.
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = os.pread(handle, 200, 0).decode()
                raise TableFileError(
                    f"{holder or 'another process'} is scoring into {self.folder} now; wait for "
                    "it, stop it, or choose another output"
                ) from error
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            yield
        finally:
            os.close(handle)

    def claim(self, identity: dict[str, Any]) -> None:
        """Begin a pass, or go on with the one that was begun with the same identity.

        Raises:
            MismatchError: saying what differs from the pass that was begun.
            TableFileError: when the identity cannot be written.
        """
        path = self.folder / _IDENTITY
        if not path.exists():
            try:
                with replacing(path) as temporary:
                    temporary.write_text(json.dumps(identity, indent=1))
            except OSError as error:
                raise self._unwritable(error) from error
        refuse_other(identity, json.loads(path.read_text()), f"the unfinished pass {self.folder}")

    def add(self, scores: Scores) -> None:
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

    def load(self) -> list[Scores]:
        """All readable parts; one that is damaged is named in a warning and scored again."""
        parts = []
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                parts.append(Scores.load(path))
            except (OSError, ValueError, KeyError) as error:
                warn(
                    f"the part {path} cannot be read ({error}); its rows are scored again",
                )
                path.unlink()
        return parts

    def remove(self) -> None:
        """Delete the folder, once the table is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _unwritable(self, error: OSError) -> TableFileError:
        return TableFileError(
            f"cannot write {self.folder}: {error.strerror or error}; the parts of an unfinished "
            "pass lie beside its output, in an existing, writable directory with free space"
        )


def undone(rows: int, parts: list[Scores]) -> NDArray[np.int64]:
    """Row numbers that no part holds."""
    left = np.ones(rows, dtype=np.bool_)
    for part in parts:
        left[part.rows] = False
    return np.flatnonzero(left)


def refuse_other(identity: dict[str, Any], found: dict[str, Any], what: str) -> None:
    """Raise a MismatchError that lists what differs between two identities."""
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in identity.items()
        if found.get(name) != value
    ]
    if differences:
        raise MismatchError(
            f"{what} is another one: {'; '.join(differences)}. Score with the same model, data "
            "and options to go on, or choose another output, or delete it"
        )
