"""Features of an unfinished probe, in a folder beside the table they are for.

Files are written once, under names of their own, by whoever has run the model over some rows:
ranks, jobs of an array, a call that was killed. Each says of which call it is. The checksums are
those of zip files.
"""

import contextlib
import itertools
import json
import tempfile
import time
import uuid
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError, TableFileError, warn
from flowdata.files import Place, names_in, reason_of, replacing, set_aside
from flowdata.scoring.parts.folder import ADVICE
from flowdata.scoring.probe.features import Features, concatenate_features
from flowdata.table.checks import require_same_pass
from flowdata.table.parquet import unreadable

FOLDER = ".features"
_END = ".npz"
_IDENTITY = "identity"
_MOST_BYTES = 1 << 27
"""Features that are in memory before they are written, whatever time it is."""


class FeatureParts:
    """The folder ``<table>.features``."""

    def __init__(self, table: Place) -> None:
        self.folder: Place = table.with_name(f"{table.name}{FOLDER}")
        # Of this call for sure; a file is never written again.
        self._own: set[Place] = set()

    def rows_there(self, identity: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Which rows have features, shape (rows,).

        Raises:
            MismatchError: for those of another call, saying what differs.
            TableFileError: for files that cannot be read now.
        """
        there = np.zeros(identity["rows"], dtype=np.bool_)
        for _, columns in self._files(identity, ["rows"]):
            there[columns["rows"]] = True
        return there

    def save_regularly(
        self, found: Iterable[Features], identity: Mapping[str, Any], every: float
    ) -> None:
        """Write features as they come: now and then, when they are many, and at the end.

        Args:
            found: features of some rows after another.
            identity: of the call.
            every: seconds after which they are written.

        Raises:
            TableFileError: when they cannot be written; those before are safe.
        """
        unsaved: list[Features] = []
        saved, size = time.monotonic(), 0
        try:
            for some in found:
                unsaved.append(some)
                size += some.features.nbytes
                if time.monotonic() - saved >= every or size >= _MOST_BYTES:
                    self._add(concatenate_features(unsaved), identity)
                    unsaved, saved, size = [], time.monotonic(), 0
        # Also after an error or Ctrl-C.
        finally:
            if unsaved:
                self._add(concatenate_features(unsaved), identity)

    def _add(self, found: Features, identity: Mapping[str, Any]) -> None:
        try:
            if isinstance(self.folder, Path):
                self.folder.mkdir(exist_ok=True)
            path = self.folder / f"{uuid.uuid4().hex}{_END}"
            with replacing(path) as temporary, temporary.open("wb") as file:
                said = np.frombuffer(json.dumps(identity).encode(), dtype=np.uint8)
                columns: dict[str, Any] = {_IDENTITY: said, **vars(found)}
                np.savez(file, **columns)
            self._own.add(path)
        except OSError as error:
            raise TableFileError(
                f"cannot write the features of {len(found):,} rows to {self.folder}: "
                f"{reason_of(error)}; what was saved before is kept, and the same call goes on "
                "from there"
            ) from error

    @contextlib.contextmanager
    def assembled(self, identity: Mapping[str, Any]) -> Iterator[Features]:
        """All rows in their order, with the features mapped from a file that is gone afterwards.

        Raises:
            TableFileError: where rows are missing, or there is no room for that file.
        """
        rows = int(identity["rows"])
        there = np.zeros(rows, dtype=np.bool_)
        targets: NDArray[Any] | None = None
        hashes, width = [], 0
        where = self.folder if isinstance(self.folder, Path) and self.folder.is_dir() else None
        with tempfile.TemporaryFile(dir=where) as whole:
            for _, columns in self._files(identity, Features.__annotations__):
                some = Features(**columns)
                width = some.features.shape[1]
                if targets is None:
                    targets = np.empty((rows, *some.targets.shape[1:]), dtype=some.targets.dtype)
                if targets.shape[1:] != some.targets.shape[1:]:
                    raise ValueError(
                        "targets of one shape a row are needed, got "
                        f"{sorted({targets.shape[1:], some.targets.shape[1:]})}"
                    )
                targets[some.rows] = some.targets
                there[some.rows] = True
                hashes.append(some.hashes)
                self._write_rows(whole, some)
            if targets is None or not there.all():
                raise TableFileError(
                    f"the features of {int((~there).sum()):,} rows are missing in {self.folder}; "
                    "call score_probe again to go on"
                )
            whole.flush()
            features = np.memmap(whole, np.float32, "r+", shape=(rows, width))
            yield Features(np.arange(rows), features, targets, np.concatenate(hashes))

    def _write_rows(self, whole: Any, some: Features) -> None:
        """Write rows to their places: a file that is full is an error here, in a map a crash."""
        bounds = [0, *(np.flatnonzero(np.diff(some.rows) != 1) + 1).tolist(), len(some)]
        step = some.features[:1].nbytes
        try:
            for start, end in itertools.pairwise(bounds):
                whole.seek(int(some.rows[start]) * step)
                whole.write(np.ascontiguousarray(some.features[start:end]).data)
        except OSError as error:
            raise TableFileError(
                f"cannot write the features of all rows, {some.features.shape[1] * 4:,} bytes each,"
                f" beside those in {self.folder}: {reason_of(error)}; make room, and the same call "
                "goes on without the model"
            ) from error

    def remove(self, identity: Mapping[str, Any]) -> None:
        """Delete what is of this call, once the table is written."""
        others = self._files(identity, [], others=False, but=frozenset(self._own))
        for path in [*self._own, *(path for path, _ in others)]:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(self.folder, Path):
            for left in self.folder.glob(".*.tmp") if self.folder.is_dir() else ():
                with contextlib.suppress(OSError):
                    left.unlink()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def _files(
        self,
        identity: Mapping[str, Any],
        wanted: Iterable[str],
        *,
        others: bool = True,
        but: Collection[Place] = (),
    ) -> Iterator[tuple[Place, dict[str, NDArray[Any]]]]:
        """The files that can be read, each with what is wanted of it; damaged ones are set aside.

        Args:
            identity: of the call.
            wanted: names of columns.
            others: whether files of another call are an error; else they are left out.
            but: files that are not read.
        """
        try:
            names = sorted(names_in(self.folder))
        except FileNotFoundError:
            return
        except OSError as error:
            raise unreadable(self.folder, "folder of features", error) from error
        # As JSON has it, in which tuples are lists.
        ours = json.loads(json.dumps(identity))
        for name in names:
            if name.startswith(".") or not name.endswith(_END):
                continue
            path = self.folder / name
            if path in but:
                continue
            read = self._read(path, (_IDENTITY, *wanted))
            if read is None:
                continue
            said = json.loads(bytes(read.pop(_IDENTITY)))
            try:
                what = f"the unfinished pass {self.folder}"
                require_same_pass(ours, said, what=what, advice=ADVICE)
            except MismatchError:
                if others:
                    raise
                continue
            self._own.add(path)
            yield path, read

    def _read(self, path: Place, wanted: Iterable[str]) -> dict[str, NDArray[Any]] | None:
        try:
            place = path if isinstance(path, Path) else BytesIO(path.read_bytes())
            with np.load(place, allow_pickle=False) as file:
                return {name: file[name] for name in wanted}
        except OSError as error:
            raise unreadable(path, "file of features", error) from error
        # What numpy and zipfile raise of a file that is not as it was written.
        except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
            kept = set_aside(path).name
            warn(f"the features in {path} cannot be read ({error}); they are kept as {kept}")
            return None
