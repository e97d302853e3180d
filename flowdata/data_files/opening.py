"""Data files as they are opened: which format, how compressed, and what may be written."""

import contextlib
import glob
import gzip
import io
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

from flowdata.errors import DataFileError
from flowdata.files import local_path

Format: TypeAlias = Literal["JSONL", "Parquet"]

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
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
    if len(found) > _MOST_FILES:
        raise DataFileError(
            f"{len(found):,} data files are given, and all are open at a time: put them together "
            f"into {_MOST_FILES} at most"
        )
    known = set()
    first = format_of(found[0])
    for path in found:
        file = path.stat().st_dev, path.stat().st_ino
        if file in known:
            raise DataFileError(f"{path} is given twice")
        known.add(file)
        if (kind := format_of(path)) != first:
            raise DataFileError(f"{path} is {kind}, and {found[0]} is {first}: give one format")
    return found


def _named(data: str | PathLike[str] | Iterable[str | PathLike[str]]) -> list[Path]:
    if not isinstance(data, str | PathLike):
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
    if (suffix := _plain(path).suffix.lower()) in (".csv", ".tsv", ".arrow", ".parquet"):
        raise DataFileError(
            f"{path} is {'no Parquet' if suffix == '.parquet' else suffix[1:]}: JSONL and Parquet "
            "files are read; datasets.Dataset.to_json and to_parquet write them"
        )
    return "JSONL"


def output_path(path: str | PathLike[str], kind: Format, *inputs: Any) -> Path:
    """The path of a file that may be written.

    Raises:
        DataFileError: where it would be one of the inputs, or is named for another format.
        OSError: where there is no folder for it.
    """
    place = local_path(path, "data file")
    if place.is_dir():
        raise IsADirectoryError(f"{place} is a folder: give the name of a file")
    if place.exists() and not place.is_file():
        raise DataFileError(f"{place} is a pipe or a device: give the name of a file")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {place.parent} to write {place.name} into")
    for given in inputs:
        same = isinstance(given, str | PathLike) and place.exists() and os.path.exists(given)
        if same and place.samefile(given):
            raise DataFileError(f"{place} would be written over what it is made of: name another")
    if (_plain(place).suffix.lower() == ".parquet") != (kind == "Parquet"):
        raise DataFileError(
            f"{place} is named for another format than the data, which is {kind}: it is written in "
            "the format of the data"
        )
    return place


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
