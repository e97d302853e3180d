"""Rows of Parquet files: a further column, and rows in another order, some at a time."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.data_files.json_rows import ADVICE, ADVICE_OF_DRAWS
from flowdata.errors import DataFileError

# Rows and bytes that are held at a time.
_MOST_ROWS = 1 << 16
_MOST_BYTES = 1 << 26
# Pieces that an epoch is sorted in: each is a file that is open.
_MOST_PIECES = 128
_DRAW = "flowdata: draw"


@contextmanager
def open_rows(path: Path) -> Iterator[Any]:
    """A Parquet file, of which no more is read than is asked for.

    Raises:
        DataFileError: for a damaged one, also while it is open.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(
            path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            yield file
    except pa.ArrowNotImplementedError as error:
        raise DataFileError(
            f"{path} has values that pyarrow cannot read, or put in another order: {error}"
        ) from error
    except (pa.ArrowException, OSError) as error:
        # pyarrow 26: errors of the system have a number, those of content none.
        if getattr(error, "errno", None) is not None or isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{path} is no readable Parquet file: {error}") from error


def batches(file: Any, columns: list[str] | None = None) -> Iterator[tuple[int, Any]]:
    """All rows, some at a time, each time with the number of the first."""
    start = 0
    for batch in file.iter_batches(_rows_at_a_time(file), columns=columns, use_threads=False):
        if len(batch):
            yield start, batch
        start += len(batch)


def require_column(file: Any, name: str, source: Path) -> None:
    """Make sure that a file has a column, and one of this name.

    Raises:
        DataFileError: where it has none, or several.
    """
    names = file.schema_arrow.names
    if name not in names:
        raise DataFileError(f"{source} has no column {name!r}, its columns are {names}")
    if names.count(name) > 1:
        raise DataFileError(f"{source} has {names.count(name)} columns {name!r}: rename them")


def add_column(
    source: Path,
    output: Path,
    name: str,
    values: Callable[[Any], NDArray[np.float64]],
    *,
    key: str | None,
    overwrite: bool,
) -> None:
    """Write a file again with a further column, float64, at its end.

    Args:
        source, output: the files.
        name: of the column.
        values: those of a batch, each after the one before.
        key: a column that they are found by, if there is one.
        overwrite: replace a column of this name, in its place.

    Raises:
        DataFileError: for a file that is damaged, has such a column, or has no key.
    """
    import pyarrow as pa

    with open_rows(source) as file:
        schema = file.schema_arrow
        if key is not None:
            require_column(file, key, source)
        known = overwrite and name in schema.names
        place = schema.names.index(name) if known else _place(schema, name, source, ADVICE)
        column = pa.field(name, pa.float64())
        schema = schema.insert(place, column) if place == len(schema) else schema.set(place, column)
        with _writer(output, schema, file) as writer:
            for _, batch in batches(file):
                arrays = list(batch.columns)
                arrays[place : place + 1] = [pa.array(values(batch))]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


class DrawnRows:
    """Writes rows of a file in the order of draws: each epoch is sorted in pieces on the disk.

    Args:
        files: open Parquet files, whose rows follow each other.
        sources: their paths.
        names: columns that each draw gets beside its row.

    Raises:
        DataFileError: where a file has one of them, or other columns than the first.
    """

    def __init__(self, files: Sequence[Any], sources: Sequence[Path], names: Sequence[str]) -> None:
        first = files[0].schema_arrow
        for file, source in zip(files, sources, strict=True):
            for name in names:
                _place(file.schema_arrow, name, source, ADVICE_OF_DRAWS)
            if not first.equals(file.schema_arrow):
                raise DataFileError(
                    f"{source} has other columns, or other types of them, than {sources[0]}: write "
                    "both alike, as pyarrow.Table.cast does"
                )
        self._files, self._names = files, names
        self._schema, self._at_once = first, min(map(_rows_at_a_time, files))

    @contextmanager
    def writing(self, output: Path, like: Sequence[NDArray[Any]]) -> Iterator[Any]:
        """A writer of the rows and the further columns, which are arrays like these."""
        import pyarrow as pa

        schema = self._schema
        for name, values in zip(self._names, like, strict=True):
            schema = schema.append(pa.field(name, pa.from_numpy_dtype(values.dtype)))
        with _writer(output, schema, self._files[0]) as writer:
            yield writer

    def write(
        self,
        writer: Any,
        places: NDArray[np.int64],
        more: Callable[[int, int], Sequence[NDArray[Any]]],
        folder: Path,
    ) -> None:
        """Write an epoch.

        Args:
            writer: of `writing`.
            places: number of the file's row for each draw.
            more: the further columns of draws [start, stop).
            folder: where pieces are written.
        """
        import pyarrow as pa

        draws = places.size
        size = max(self._at_once, -(-draws // _MOST_PIECES))
        with tempfile.TemporaryDirectory(prefix=".flowdata-", dir=folder) as pieces:
            paths = [Path(pieces, str(piece)) for piece in range(-(-draws // size))]
            self._sort_into(paths, places, size)
            for piece, path in enumerate(paths):
                with pa.OSFile(os.fspath(path)) as raw, pa.ipc.open_stream(raw) as stream:
                    table = stream.read_all()
                path.unlink()
                order = table.column(_DRAW).to_numpy().argsort(kind="stable")
                table = table.drop_columns([_DRAW]).unify_dictionaries().combine_chunks()
                table = table.take(pa.array(order))
                columns = more(piece * size, min(draws, (piece + 1) * size))
                for name, values in zip(self._names, columns, strict=True):
                    table = table.append_column(name, pa.array(values))
                writer.write_table(table)

    def _sort_into(self, paths: list[Path], places: NDArray[np.int64], size: int) -> None:
        """Read the file once, and write each row to the pieces in which it is drawn."""
        import pyarrow as pa

        draws = places.argsort(kind="stable")
        ordered = places[draws]
        schema = self._schema.append(pa.field(_DRAW, pa.int64()))
        with ExitStack() as stack:
            streams = [
                stack.enter_context(
                    pa.ipc.new_stream(stack.enter_context(pa.OSFile(os.fspath(path), "wb")), schema)
                )
                for path in paths
            ]
            for start, batch in self._batches():
                first, last = np.searchsorted(ordered, [start, start + len(batch)])
                which, rows = draws[first:last], ordered[first:last] - start
                piece = which // size
                order = piece.argsort(kind="stable")
                bounds = np.searchsorted(piece[order], np.arange(len(paths) + 1))
                for number in np.unique(piece).tolist():
                    part = order[bounds[number] : bounds[number + 1]]
                    taken = batch.take(pa.array(rows[part]))
                    arrays = [*taken.columns, pa.array(which[part])]
                    streams[number].write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _batches(self) -> Iterator[tuple[int, Any]]:
        before = 0
        for file in self._files:
            for start, batch in batches(file):
                yield before + start, batch
            before += file.metadata.num_rows


def _rows_at_a_time(file: Any) -> int:
    footer = file.metadata
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    return int(min(_MOST_ROWS, max(1, _MOST_BYTES * footer.num_rows // max(size, 1))))


def _place(schema: Any, name: str, source: Path, advice: str) -> int:
    """Where a new column goes: at the end."""
    if name in schema.names:
        raise DataFileError(f"{source} has a column {name!r} already: {advice}")
    return len(schema)


def _writer(output: Path, schema: Any, file: Any) -> Any:
    import pyarrow.parquet as pq

    footer = file.metadata
    known = footer.num_row_groups and footer.num_columns
    kind = footer.row_group(0).column(0).compression.lower() if known else "snappy"
    return pq.ParquetWriter(
        output,
        schema,
        compression="none" if kind == "uncompressed" else kind,
        write_page_checksum=True,
    )
