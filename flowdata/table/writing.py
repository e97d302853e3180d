"""Writing tables: in small groups of rows, so that a few rows can be read without the others."""

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from flowdata.files import place_of, replacing
from flowdata.table.shard_lists import BLOCK_START

ROW_GROUP = 1 << 15
"""Rows of a row group: those of a shard are read in 2 ms."""
MOST_GROUPS = 1 << 14
"""Above so many, row groups are larger: each takes 4 KB of a process that reads the file."""

# Losses hardly compress. Offsets and sizes take 2 bytes each as differences, and keys, which are
# much alike, less than one.
_COMPRESSED = {"key": "zstd", "row_key": "zstd"}
_DIFFERENCES = ("offset", "size", "row_key")
_REPEATED = ("shard",)


def write_parquet(
    path: str | PathLike[str],
    what: str,
    rows: int,
    columns: Mapping[str, Callable[[slice], Any]],
    metadata: Mapping[bytes, bytes],
    block: bytes = b"",
) -> None:
    """Write a file atomically, a row group at a time.

    Args:
        path: of the file.
        what: what it is, for errors: "loss table".
        rows: number of rows.
        columns: for each, what gives the Arrow array of a run of rows.
        metadata: texts to leave in it.
        block: bytes to leave before the rows, at `BLOCK_START`.

    Raises:
        OSError: when it cannot be written.
        TableFileError: for a path that is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = ROW_GROUP
    while rows > size * MOST_GROUPS:
        size *= 2

    def group(start: int) -> Any:
        wanted = slice(start, min(rows, start + size))
        return pa.table({name: of(wanted) for name, of in columns.items()})

    first = group(0)
    schema = first.schema.with_metadata(metadata)
    numbers = [name for name in _DIFFERENCES if name in columns and first[name].type == pa.int64()]
    with (
        replacing(place_of(path, what)) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pq.ParquetWriter(
            sink,
            schema,
            compression={name: _COMPRESSED.get(name, "none") for name in columns},
            use_dictionary=[name for name in columns if name in _REPEATED],
            column_encoding=dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        if block:
            assert sink.tell() == BLOCK_START
            sink.write(block)
        for start in range(0, rows, size):
            writer.write_table(group(start) if start else first)
