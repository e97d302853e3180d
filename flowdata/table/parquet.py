"""Parquet files of which nothing is believed before it is checked.

A file is read column by column, by name and type; what it claims to hold takes no memory before
it is there; and whatever is wrong with it is said in words of ours: `DamagedFileError` where its
content is, a `TableFileError` where it cannot be read now, which proves nothing.
"""

import base64
import contextlib
import errno
import json
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from flowdata.errors import FlowDataError, TableFileError
from flowdata.files import Place, place_of, reason_of
from flowdata.objects import without_secrets

_T = TypeVar("_T")

_HANDLES: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""Open files that do not tell their number, and one of the same file that does."""

# A network disk may fail for a moment, and open files may be many for a moment.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
RETRY_WAITS = (0.1, 0.4)
"""Seconds to wait before such a file is tried again."""

# "PAR1", an empty footer, its length, "PAR1".
_SMALLEST = 12
# Values are decoded so many rows at a time: a row count that is not true is found out early.
_BATCH_ROWS = 1 << 18
_MOST_METADATA = 1 << 20
_MOST_METADATA_OF_ROW = 1 << 12
_MOST_FOOTER = 1 << 21
_MOST_FOOTER_OF_FILE = 0.75


class DamagedFileError(TableFileError):
    """A file whose content was read, and is not what was written."""


class Kind(Enum):
    """Types of columns, as an error names them."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"
    TEXT = "strings"
    FLOAT32_LISTS = "lists of float32"

    def fits(self, found: Any) -> bool:
        """Whether an Arrow type is of this kind."""
        import pyarrow.types as types

        if self is Kind.FLOAT32_LISTS:
            lists = types.is_list(found) or types.is_large_list(found)
            return lists and Kind.FLOAT32.fits(found.value_type)
        if self is Kind.TEXT:
            if types.is_dictionary(found):
                found = found.value_type
            return bool(types.is_string(found) or types.is_large_string(found))
        test = {
            Kind.FLOAT32: types.is_float32,
            Kind.FLOAT64: types.is_float64,
            Kind.INT32: types.is_int32,
            Kind.INT64: types.is_int64,
            Kind.BOOL: types.is_boolean,
        }[self]
        return bool(test(found))


class ParquetColumns:
    """The columns of an open file, and what its footer says.

    Attributes:
        path: of the file.
        what: what it should be, for errors: "loss table".
        remedy: what to do about a damaged one.
        footer: pyarrow's metadata of it.
        status: what the system says of the file.
        names: of all columns.
        metadata: texts that the writer left.
        rows: number of rows, if the footer is right.
    """

    def __init__(self, file: Any, source: Any, path: Place, what: str, remedy: str) -> None:
        self.path = path
        self.what = what
        self.remedy = remedy
        self.footer = file.metadata
        self.status = status_of(source)
        self._file = file
        self._source = source
        schema = file.schema_arrow
        self._types = list(schema.types)
        self.names: list[str] = list(schema.names)
        self.metadata: Mapping[bytes, bytes] = dict(schema.metadata or {})
        self.rows: int = file.metadata.num_rows
        self._require_equal_copies()

    def _require_equal_copies(self) -> None:
        """Names and texts are there twice, and a flipped bit changes one: pages have checksums.

        pyarrow 26 writes its own schema, with all texts, into a text of the file.
        """
        import pyarrow as pa

        texts = self._file.metadata.metadata or {}
        if (stored := texts.get(b"ARROW:schema")) is None:
            return
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(stored)))
        copies = [
            {key: text for key, text in (some or {}).items() if key.startswith(b"flowdata")}
            for some in (texts, schema.metadata)
        ]
        if list(schema.names) != self.names or copies[0] != copies[1]:
            raise self.damaged("the two copies of its schema differ")

    def read(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """Arrow columns by name.

        Raises:
            DamagedFileError: for a column that is missing, there twice, of another type, longer or
                shorter than the file says, or with values that are missing or no text.
        """
        import pyarrow as pa

        found: dict[str, list[Any]] = {name: [] for name in kinds}
        for batch in self.batches(kinds):
            for name in kinds:
                found[name].append(batch[name])
        return {
            name: pa.chunked_array(chunks, self._types[self.names.index(name)])
            for name, chunks in found.items()
        }

    def batches(self, kinds: Mapping[str, Kind]) -> Iterator[dict[str, Any]]:
        """The same, some rows at a time: Arrow arrays by name."""
        self.check_kinds(kinds)
        left = self.rows
        for batch in self._file.iter_batches(_BATCH_ROWS, columns=list(kinds), use_threads=False):
            left -= len(batch)
            if left < 0:
                break
            found = {name: batch.column(name) for name in kinds}
            for name, values in found.items():
                self.check_values(name, values, kinds[name])
            yield found
        if left:
            raise self.damaged(
                f"the file says that it has {self.rows:,} rows, but holds "
                f"{'more' if left < 0 else f'{self.rows - left:,}'}"
            )

    def read_bytes(self, start: int, size: int) -> bytes:
        """Bytes of the file, as many as it has of these."""
        content: bytes = self._source.read_at(max(0, min(size, self.status.st_size - start)), start)
        return content

    def json(self, key: bytes) -> dict[str, Any]:
        """A JSON object that the writer left in a text; empty where there is none.

        Raises:
            DamagedFileError: for one that is none, or too long to be ours.
        """
        text = self.metadata.get(key, b"{}")
        # As Python objects it takes many times the memory of its text.
        if len(text) > _MOST_METADATA + _MOST_METADATA_OF_ROW * self.rows:
            raise self.damaged(f"its text {key.decode()} has {len(text):,} bytes")
        try:
            found = json.loads(text)
            if isinstance(found, dict):
                return found
        except (ValueError, RecursionError) as error:
            raise self.damaged(f"its text {key.decode()} is no JSON") from error
        raise self.damaged(f"its text {key.decode()} is no JSON object")

    def damaged(self, what: str) -> DamagedFileError:
        """An error that says what is wrong with the content."""
        return DamagedFileError(f"{self.path} is damaged: {what}; {self.remedy}")

    def has(self, name: str, kind: Kind) -> bool:
        """Whether there is such a column, and of this kind."""
        return name in self.names and kind.fits(self._types[self.names.index(name)])

    def check_kinds(self, kinds: Mapping[str, Kind]) -> None:
        """Refuse a file that has not each of these columns once, and of its kind."""
        for name, kind in kinds.items():
            self._check(name, kind)

    def _check(self, name: str, kind: Kind) -> None:
        if (times := self.names.count(name)) != 1:
            what = "no column" if times == 0 else f"{times} columns"
            raise self.damaged(f"it has {what} {name} (columns: {self.names[:20]})")
        if not kind.fits(found := self._types[self.names.index(name)]):
            raise self.damaged(f"the column {name} is {found}, not {kind.value}")

    def check_values(self, name: str, values: Any, kind: Kind) -> None:
        """Refuse values of a column that are missing, or are no text."""
        inside = values.flatten() if kind is Kind.FLOAT32_LISTS else values
        if values.null_count or inside.null_count:
            raise self.damaged(f"values are missing in the column {name}")
        if kind is Kind.TEXT:
            # Parquet readers take any bytes for text.
            values.validate(full=True)


def flattened(lists: Any) -> Any:
    """The values of all lists of a column, as one column."""
    import pyarrow as pa

    return pa.chunked_array([chunk.flatten() for chunk in lists.chunks], lists.type.value_type)


@contextlib.contextmanager
def open_parquet(path: str | PathLike[str], *, what: str, remedy: str) -> Iterator[ParquetColumns]:
    """Open a file; errors while it is open are ours, and name it.

    Args:
        path: the file.
        what: what it should be, for errors: "loss table".
        remedy: what to do about a damaged one.

    Raises:
        DamagedFileError: where the content is no Parquet, or damaged.
        TableFileError: where the file is missing, is no file, or cannot be read now.
    """
    with naming_errors(path, what, remedy), contextlib.ExitStack() as stack:
        place = place_of(path, what)
        source = stack.enter_context(open_source(place, what))
        file = stack.enter_context(open_reader(source))
        yield ParquetColumns(file, source, place, what, remedy)


def open_reader(source: Any, footer: Any = None) -> Any:
    """pyarrow's reader of an open file, whose footer may be known."""
    import pyarrow.parquet as pq

    # Neither mapped, since a disk that fails would end the process, nor read ahead.
    return pq.ParquetFile(
        source,
        metadata=footer,
        page_checksum_verification=True,
        pre_buffer=False,
        buffer_size=1 << 20,
    )


@contextlib.contextmanager
def naming_errors(path: str | PathLike[str], what: str, remedy: str) -> Iterator[None]:
    """Make errors of reading a file ours, as `open_parquet` does."""
    import pyarrow as pa

    try:
        yield
    except FlowDataError:
        raise
    except FileNotFoundError as error:
        raise TableFileError(f"there is no {what} at {_shown(path)}") from error
    except MemoryError as error:
        raise TableFileError(
            f"there is no memory to read the {what} {_shown(path)} ({error})"
        ) from error
    except OSError as error:
        # pyarrow 26 raises OSError for bad content too, but then without a number.
        if error.errno is not None:
            raise unreadable(path, what, error) from error
        raise _not_parquet(path, error, remedy) from error
    except (pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _not_parquet(path, error, remedy) from error


def unreadable(path: str | PathLike[str], what: str, error: OSError) -> TableFileError:
    """The error of a file that cannot be read now."""
    return TableFileError(
        f"cannot read the {what} {_shown(path)}: {reason_of(error)}; that does not mean that it is "
        "damaged: make it readable, and try again"
    )


def _shown(path: str | PathLike[str]) -> str:
    return without_secrets(str(path))


def _not_parquet(path: str | PathLike[str], error: Exception, remedy: str) -> DamagedFileError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DamagedFileError(
        f"{_shown(path)} is not a readable Parquet file ({cause}); it is truncated or of another "
        f"format: {remedy}"
    )


def open_source(path: Place, what: str) -> Any:
    """Open a file for pyarrow, if it can be Parquet; an object of a store is read as a whole."""
    import pyarrow as pa

    def opened() -> Any:
        if not isinstance(path, Path):
            return pa.BufferReader(path.read_bytes())
        _require_file(os.stat(path), path, what)
        source = pa.OSFile(os.fspath(path))
        if not _has_number(source):
            _HANDLES[source] = own = os.open(path, os.O_RDONLY)
            weakref.finalize(source, os.close, own)
        return source

    source = retried(opened)
    try:
        _check_footer(source)
    except BaseException:
        source.close()
        raise
    return source


def _has_number(source: Any) -> bool:
    try:
        source.fileno()
    # pyarrow 21 to 24, OSFile.fileno asks for an attribute that an OSFile has not.
    except AttributeError:
        return False
    return True


def status_of(source: Any) -> os.stat_result:
    """What the system says of a file that `open_source` has opened."""
    import pyarrow as pa

    if isinstance(source, pa.BufferReader):
        # Its size alone.
        return os.stat_result((0,) * 6 + (source.size(),) + (0,) * 3)
    own = _HANDLES.get(source)
    return os.fstat(source.fileno() if own is None else own)


def retried(action: Callable[[], _T]) -> _T:
    """What an action returns, tried again where a disk fails for a moment."""
    for wait in RETRY_WAITS:
        try:
            return action()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
        time.sleep(wait)
    return action()


def _check_footer(source: Any) -> None:
    size = source.size()
    if size < _SMALLEST:
        raise ValueError(f"it has {size} bytes")
    footer = int.from_bytes(source.read_at(4, size - 8), "little")
    # Some copies are made of it before anything in it can be looked at.
    if footer > _MOST_FOOTER and footer > _MOST_FOOTER_OF_FILE * size:
        raise ValueError(f"its footer has {footer:,} of {size:,} bytes")


def _require_file(status: os.stat_result, path: Path, what: str) -> None:
    """Refuse what is no file: a pipe would keep its reader waiting, a device has no end."""
    if stat.S_ISREG(status.st_mode):
        return
    found = "directory" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
    raise TableFileError(
        f"{path} is not a readable Parquet file, but a {found}: give the name of a {what}"
    )
