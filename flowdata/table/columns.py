"""Columns of a Parquet file that stay on disk, and are read a row group at a time when asked for.

All processes of a machine share the pages of the file that the system keeps. A process that is
forked goes on with the file that was opened; one that is spawned opens it anew, and makes sure that
it is the same.
"""

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flowdata.errors import TableFileError
from flowdata.table.parquet import (
    DamagedFileError,
    Kind,
    ParquetColumns,
    naming_errors,
    open_reader,
    open_source,
    retried,
    status_of,
)

_KEPT = 2
"""Row groups that are kept of each column: runs of rows that follow each other share one."""
_MOST_ROWS_OF_GROUP = 1 << 22
_DTYPES = {Kind.FLOAT32: np.float32, Kind.INT32: np.int32, Kind.INT64: np.int64}


class StoredFile:
    """An open Parquet file, which must stay as it is."""

    def __init__(self, file: ParquetColumns) -> None:
        # Another process may have another working directory.
        self._path, self._what, self._remedy = Path(file.path).absolute(), file.what, file.remedy
        self._identity = _identity(file.status, file.metadata)
        self._open(file.footer)

    def __getstate__(self) -> dict[str, Any]:
        names = ("_path", "_what", "_remedy", "_identity")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with naming_errors(self._path, self._what, self._remedy):
            status = os.stat(self._path)
        # Before what is there now is looked at, which may be no table.
        self._require_untouched(status)
        self._open(None)

    def _open(self, footer: Any) -> None:
        with naming_errors(self._path, self._what, self._remedy):
            self._source = open_source(self._path, self._what)
            self._reader = _Reader(self._source, footer)
            self._columns = ParquetColumns(
                self._reader.file, self._source, self._path, self._what, self._remedy
            )
        self._require_same(self._columns.status)
        self.bounds = np.cumsum([0, *rows_of_groups(self._columns.footer)])

    def _require_same(self, status: os.stat_result) -> None:
        if _identity(status, self._columns.metadata) != self._identity:
            raise self._changed()

    def _require_untouched(self, status: os.stat_result) -> None:
        if (status.st_size, status.st_mtime_ns) != self._identity[:2]:
            raise self._changed()

    def _changed(self) -> TableFileError:
        return TableFileError(
            f"{self._path} was replaced or changed since this {self._what} was loaded from it: "
            "load it again, and leave the file as it is while it is in use"
        )

    def read_group(self, number: int, name: str, kind: Kind) -> Any:
        """The values of a row group of a column: an array, or Arrow texts.

        Raises:
            DamagedFileError: where they are not what was written.
            TableFileError: where the file cannot be read now, or was changed.
        """
        if self._reader.pid != os.getpid():
            # The lock of the process that this one was forked from may be held for ever.
            self._require_same(status_of(self._source))
            self._reader = _Reader(self._source, self._columns.footer)
        reader = self._reader
        with reader.lock:
            kept = reader.kept.setdefault(name, [])
            for found, values in kept:
                if found == number:
                    return values
            values = self._read(reader, number, name, kind)
            kept[:] = [*kept[1 - _KEPT :], (number, values)]
            return values

    def _read(self, reader: "_Reader", number: int, name: str, kind: Kind) -> Any:
        with naming_errors(self._path, self._what, self._remedy):
            try:
                return self._values(reader, number, name, kind)
            finally:
                # Another table of as many rows, copied over this one, has values of its own at the
                # same places; and what is damaged after that is no damage of this one.
                self._require_untouched(status_of(self._source))

    def _values(self, reader: "_Reader", number: int, name: str, kind: Kind) -> Any:
        table = retried(
            lambda: reader.file.read_row_group(number, columns=[name], use_threads=False)
        )
        column = table.column(name)
        expected = int(self.bounds[number + 1] - self.bounds[number])
        if len(column) != expected:
            raise self.damaged(
                f"its row group {number} says that it has {expected:,} rows, but holds "
                f"{len(column):,}"
            )
        self._columns.check_values(name, column, kind)
        return compact_texts(column) if kind is Kind.TEXT else column.to_numpy()

    def damaged(self, what: str) -> DamagedFileError:
        """An error that says what is wrong with the content."""
        return self._columns.damaged(what)


class _Reader:
    """What one process reads a file with."""

    def __init__(self, source: Any, footer: Any) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        # pyarrow 26 reads by place (pread): the position that forked processes share is not used.
        self.file = open_reader(source, footer)
        self.kept: dict[str, list[tuple[int, Any]]] = {}


class StoredColumn:
    """A column of an open file: ``column[a:b]`` reads the row groups that have these rows.

    A slice is a read-only array, or an Arrow array of texts.
    """

    def __init__(
        self, file: StoredFile, name: str, kind: Kind, *, lowest: int | None = None
    ) -> None:
        """``lowest``: below which no number may be."""
        self._file = file
        self._name = name
        self._kind = kind
        self._lowest = lowest

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of its numbers."""
        return np.dtype(_DTYPES[self._kind])

    def __len__(self) -> int:
        return int(self._file.bounds[-1])

    def __getitem__(self, rows: slice) -> Any:
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"a column on disk is read in runs of rows, got the step {step}")
        bounds = self._file.bounds
        first, last = np.searchsorted(bounds, [start, stop - 1], side="right") - 1
        parts = []
        for number in range(int(first), int(last) + (stop > start)):
            begin = int(bounds[number])
            values = self._file.read_group(number, self._name, self._kind)
            if self._lowest is not None and values.size and values.min() < self._lowest:
                raise self._file.damaged(
                    f"row {begin + values.argmin():,} has {values.min()} in {self._name}"
                )
            parts.append(values[max(0, start - begin) : stop - begin])
        return self._joined(parts)

    def _joined(self, parts: list[Any]) -> Any:
        """The values in a piece of their own: a few rows do not keep a whole group in memory."""
        import pyarrow as pa

        if self._kind is not Kind.TEXT:
            joined = np.concatenate(parts or [np.empty(0, dtype=self.dtype)])
            joined.flags.writeable = False
            return joined
        if sum(part.nbytes for part in parts) >= 1 << 31:
            parts = [part.cast(pa.large_string()) for part in parts]
        return pa.concat_arrays(parts or [pa.array([], pa.string())])


def can_stay(file: ParquetColumns) -> bool:
    """Whether the file has the bytes for a number of 4 bytes in each row that it claims to have.

    Others are read at once, where a claim that is not true is found out.
    """
    rows = rows_of_groups(file.footer)
    return (
        isinstance(file.path, Path)
        and file.status.st_size >= 4 * file.rows
        and sum(rows) == file.rows
        and max(rows, default=0) <= _MOST_ROWS_OF_GROUP
    )


def rows_of_groups(footer: Any) -> list[int]:
    """Rows of each row group, if the footer is right."""
    return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def compact_texts(texts: Any) -> Any:
    """Arrow texts in one piece, with offsets of 4 bytes where they are below 2 GB together."""
    import pyarrow as pa

    # pyarrow 26: offsets of `string` are int32, those of `large_string` int64.
    texts = texts.cast(pa.string() if texts.nbytes < 1 << 31 else pa.large_string())
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _identity(status: os.stat_result, texts: Any) -> tuple[int, int, str]:
    # Not the numbers of device and file: another machine has others for a shared disk, and
    # mounts of object stores make new ones.
    known = xxhash.xxh3_128()
    for key, text in sorted(texts.items()):
        known.update(b"%d %b %d %b" % (len(key), key, len(text), text))
    return status.st_size, status.st_mtime_ns, known.hexdigest()
