"""Data files as they are opened: which format, how compressed, and what may be written."""

import contextlib
import glob
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from flowdata.errors import DataFileError
from flowdata.files import local_path
from flowdata.table.stored_table import METADATA_KEY

Format: TypeAlias = Literal["JSONL", "Parquet"]

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    # Frames to skip, which parallel zstd begins with (RFC 8878, 3.1.2).
    **{bytes([0x50 + number]) + b"\x2a\x4d\x18": "zstd" for number in range(16)},
}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
_OTHER_FORMATS = (".csv", ".tsv", ".arrow", ".npy", ".parquet")
_OTHER_COMPRESSIONS = (".bz2", ".xz", ".lz4", ".zip", ".7z")
# What a program has open has a name there, which a rename would replace.
_STREAMS = ("/proc/", "/dev/fd/", "/dev/std")
_BUFFER = 1 << 20
_LEVEL = 6
_MOST_FILES = 500


def data_path(path: str | PathLike[str]) -> Path:
    """The path of a data file that is there.

    Raises:
        DataFileError: where it is none of this machine.
        OSError: where it is no file.
    """
    place = local_path(path, "data file")
    if place.is_dir():
        raise IsADirectoryError(f"{place} is a folder: give a .jsonl or .parquet file")
    if not place.exists():
        raise FileNotFoundError(f"there is no file {place}")
    if not place.is_file():
        raise DataFileError(f"{place} is a pipe or a device, and rows are read twice: give a file")
    return place


def data_paths(data: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Path]:
    """The paths of data files: of one, of those of a pattern in the order of names, or of several.

    Raises:
        DataFileError: for none at all, one that is there twice, or another format than the first.
        OSError: where one is no file.
    """
    found = _named(data)
    if not found:
        raise DataFileError("no data file is given")
    known = set()
    first = format_of(found[0])
    for path in found:
        file = _file_of(path)
        if file in known:
            raise DataFileError(f"{path} is given twice")
        known.add(file)
        if (kind := format_of(path)) != first:
            raise DataFileError(f"{path} is {kind}, and {found[0]} is {first}: give one format")
    return found


def require_few(paths: Sequence[Path]) -> None:
    """Make sure that files can all be open at a time.

    Raises:
        DataFileError: for too many.
    """
    if len(paths) > _MOST_FILES:
        raise DataFileError(
            f"{len(paths):,} data files are given, and all are open at a time: put them together "
            f"into {_MOST_FILES} at most"
        )


def _named(data: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Path]:
    if not isinstance(data, str | PathLike):
        if isinstance(data, bytes) or not isinstance(data, Iterable):
            raise TypeError(f"the path of a data file is needed, or several, got {data!r:.100}")
        return [path for name in data for path in _named(name)]
    text = os.fspath(data)
    pattern = glob.has_magic(text) and not os.path.exists(text)
    found = [data_path(name) for name in (sorted(glob.glob(text)) if pattern else [text])]
    if not found:
        raise FileNotFoundError(f"there is no file {text}")
    return found


def format_of(path: Path) -> Format:
    """The format of a file, by its content.

    Raises:
        DataFileError: for an empty file, and one that by its name is of another format.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise DataFileError(f"{path} is empty: there is nothing to read")
    if head == b"PAR1":
        return "Parquet"
    if path.suffix.lower() in _OTHER_COMPRESSIONS:
        raise DataFileError(
            f"{path} is compressed as {path.suffix[1:]}: files that are not, and those of gzip "
            "(.gz) and zstd (.zst) are read"
        )
    if (suffix := _plain(path).suffix.lower()) in _OTHER_FORMATS:
        raise DataFileError(
            f"{path} is {'no Parquet' if suffix == '.parquet' else suffix[1:]}: JSONL and Parquet "
            "files are read; datasets.Dataset.to_json and to_parquet write them"
        )
    return "JSONL"


def output_path(
    path: str | PathLike[str], kind: Format, *inputs: Any, any_name: bool = False
) -> Path:
    """The path of a file that may be written.

    Raises:
        DataFileError: where it would be one of the inputs, a loss table, or something that is no
            file, or is named for another format.
        OSError: where there is no folder for it.
    """
    place = local_path(path, "data file")
    if place.is_dir():
        raise IsADirectoryError(f"{place} is a folder: give the name of a file")
    if f"{place.absolute()}".startswith(_STREAMS) or (place.exists() and not place.is_file()):
        raise DataFileError(f"{place} is a pipe or a device: give the name of a file")
    folder = Path(os.path.realpath(place)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to write {place.name} into")
    require_other(place, *inputs)
    if any_name:
        return place
    named = "Parquet" if _plain(place).suffix.lower() == ".parquet" else "JSONL"
    known = (*_OTHER_FORMATS[:-1], *_OTHER_COMPRESSIONS)
    if named != kind or {place.suffix.lower(), _plain(place).suffix.lower()} & {*known}:
        raise DataFileError(
            f"{place} is named for another format than the data, which is {kind}: it is written in "
            "the format of the data, as it is or, of JSONL, as .gz or .zst"
        )
    return place


def output_paths(
    path: str | PathLike[str], sources: Sequence[Path], kind: Format, *inputs: Any
) -> list[Path]:
    """The paths of what may be written, one for each file: in a folder under the name that it has.

    Raises:
        DataFileError, OSError: as of `output_path`; where several are to become one file; for files
            of one name.
    """
    folder = local_path(path, "data file")
    if not folder.is_dir():
        if len(sources) == 1:
            return [output_path(path, kind, *sources, *inputs)]
        raise NotADirectoryError(
            f"there is no folder {folder}: several files are written to one that is there, each "
            "under its own name"
        )
    known: dict[str, Path] = {}
    for source in sources:
        if source.name in known:
            raise DataFileError(
                f"{known[source.name]} and {source} have one name, and would be one file in "
                f"{folder}: rename one of them"
            )
        known[source.name] = source
    # Names that data have may be kept, whatever they end in.
    places = [output_path(folder / name, kind, *inputs, any_name=True) for name in known]
    files = {_file_of(source) for source in sources}
    for place in places:
        if place.exists() and _file_of(place) in files:
            raise _written_over(place)
    return places


def require_other(place: Path, *inputs: Any) -> None:
    """Make sure that a file that will be written is none of those that it is made of.

    Raises:
        DataFileError: for one of them, and for any loss table or weights, as those in memory have
            no name.
    """
    if not place.exists():
        return
    for given in inputs:
        same = isinstance(given, str | PathLike) and os.path.exists(given)
        if same and place.samefile(given):
            raise _written_over(place)
    if _is_ours(place):
        raise DataFileError(
            f"{place} is a loss table, or has weights, and would be written over: name another"
        )


def _written_over(place: Path) -> DataFileError:
    return DataFileError(f"{place} would be written over what it is made of: name another")


def _file_of(path: Path) -> tuple[int, int]:
    """What is the same for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_ours(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).metadata or {}
        return any(name.startswith(METADATA_KEY) for name in names)
    except (pa.ArrowException, OSError):
        return False


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[BinaryIO]:
    """A file of lines to read, decompressed.

    Raises:
        DataFileError: as it is read, for one whose compressed content is cut off or damaged.
    """
    kind = _compression(path)
    try:
        with contextlib.ExitStack() as stack:
            if kind is None:
                yield stack.enter_context(path.open("rb", buffering=_BUFFER))
            elif kind == "gzip":
                yield cast(BinaryIO, stack.enter_context(gzip.open(path, "rb")))
            else:
                import pyarrow as pa

                raw = stack.enter_context(pa.input_stream(os.fspath(path), compression="zstd"))
                yield cast(BinaryIO, io.BufferedReader(raw, _BUFFER))
    except (EOFError, zlib.error, OSError) as error:
        # Errors of the system have a number; of content, none.
        if kind is None or getattr(error, "errno", None) is not None:
            raise
        raise DataFileError(
            f"{path} cannot be decompressed ({error}): it is cut off or damaged"
        ) from error


@contextlib.contextmanager
def open_random(path: Path, folder: Path) -> Iterator[BinaryIO]:
    """A file of lines that is read at any place; one that is compressed is unpacked into a folder.

    Whatever is made there is gone afterwards.
    """
    with contextlib.ExitStack() as stack:
        if _compression(path) is None:
            yield stack.enter_context(path.open("rb", buffering=_BUFFER))
            return
        unpacked = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        with open_lines(path) as packed:
            shutil.copyfileobj(packed, unpacked, _BUFFER)
        unpacked.seek(0)
        yield cast(BinaryIO, unpacked)


@contextlib.contextmanager
def create_lines(temporary: Path, named: Path) -> Iterator[BinaryIO]:
    """A file of lines to write, compressed if its final name says so."""
    kind = _SUFFIXES.get(named.suffix.lower())
    with contextlib.ExitStack() as stack:
        if kind is None:
            yield stack.enter_context(temporary.open("wb", buffering=_BUFFER))
        elif kind == "gzip":
            raw = stack.enter_context(temporary.open("wb"))
            # Without a name and a time, the same rows are the same bytes.
            yield cast(
                BinaryIO,
                stack.enter_context(
                    gzip.GzipFile("", "wb", compresslevel=_LEVEL, fileobj=raw, mtime=0)
                ),
            )
        else:
            import pyarrow as pa

            yield cast(
                BinaryIO,
                stack.enter_context(pa.output_stream(os.fspath(temporary), compression="zstd")),
            )


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(4)
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _plain(path: Path) -> Path:
    """A name without that of a compression."""
    return path.with_suffix("") if path.suffix.lower() in _SUFFIXES else path
