"""What an index knows of whole shards, and how a file keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowdata.table.parquet import ParquetColumns

METADATA_KEY = b"flowdata.shards"
BLOCK_START = 4
"""Where a file has the block: between the first four bytes of any Parquet file and its rows."""

MOST_TEXT = 1 << 18
"""Bytes of the longest lists that are a text of the file."""
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ShardLists:
    """What is known of whole shards, by their number.

    Attributes:
        names: of the shards.
        lengths: bytes of each as it is stored, -1 where unknown, int64.
        compressed: whether each is, bool.
        versions: what its server said of its content, or none at all.
        rows: samples of each, int64; None in a file of before that was kept.
    """

    names: tuple[str, ...]
    lengths: NDArray[np.int64]
    compressed: NDArray[np.bool_]
    versions: tuple[str, ...]
    rows: NDArray[np.int64] | None

    def stored(self) -> tuple[dict[bytes, bytes], bytes]:
        """Texts for the metadata of a file, and a block of bytes, empty where the texts will do.

        Readers of Parquet make several copies of its texts, and refuse those of 100 MB, which a
        million shards have: longer lists are an Arrow stream that the text tells the place of.
        """
        known = {
            "shards": self.names,
            "lengths": self.lengths.tolist(),
            "compressed": self.compressed.tolist(),
        }
        if any(self.versions):
            known["versions"] = self.versions
        if self.rows is not None:
            known["rows"] = self.rows.tolist()
        text, block = json.dumps(known).encode(), b""
        if len(text) > MOST_TEXT:
            block = _to_block(known)
            place = {"start": BLOCK_START, "size": len(block), "xxh3": _hash(block)}
            text = json.dumps({"shards": place}).encode()
        return {METADATA_KEY: text}, block

    @classmethod
    def read(cls, file: ParquetColumns, names_of_rows: tuple[str, ...] | None) -> "ShardLists":
        """The lists of a file.

        Args:
            file: the file.
            names_of_rows: the shards that its rows have, for a file that keeps none.

        Raises:
            DamagedFileError: for lists of another type or number, or that contradict each other.
        """
        known = file.json(METADATA_KEY)
        if isinstance(place := known.get("shards"), dict):
            known = _from_block(file, place)
        names = _list_of(file, known, "shards", str, None, names_of_rows or ())
        if len(set(names)) != len(names):
            raise file.damaged("it has a shard twice")
        n = len(names)
        lengths = _list_of(file, known, "lengths", int, n, -1)
        if min(lengths, default=0) < -1 or max(lengths, default=0) > _LARGEST:
            raise file.damaged("a shard has no possible length")
        rows = _list_of(file, known, "rows", int, n, 0) if "rows" in known else None
        if rows is not None and (min(rows, default=0) < 0 or sum(rows) != file.rows):
            raise file.damaged(f"its shards have {sum(rows):,} rows, but the file {file.rows:,}")
        return cls(
            tuple(names),
            np.array(lengths, dtype=np.int64),
            np.array(_list_of(file, known, "compressed", bool, n, False), dtype=np.bool_),
            tuple(_list_of(file, known, "versions", str, n, "")),
            None if rows is None else np.array(rows, dtype=np.int64),
        )


def has_names(file: ParquetColumns) -> bool:
    """Whether a file keeps the names of its shards, those without samples too."""
    return "shards" in file.json(METADATA_KEY)


def _list_of(
    file: ParquetColumns,
    known: Mapping[str, Any],
    name: str,
    kind: type,
    size: int | None,
    default: Any,
) -> Any:
    """What is known of each shard; the default of each where it is not.

    Raises:
        DamagedFileError: for values of another type or number.
    """
    if name not in known:
        return default if size is None else [default] * size
    values = known[name]
    # Exactly: True is an int to isinstance.
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise file.damaged(f"its {name} are no list of {kind.__name__}")
    if size is not None and len(values) != size:
        raise file.damaged(f"it has {size:,} shards, but {name} of {len(values):,}")
    return values


def _to_block(known: Mapping[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table({name: pa.array(values) for name, values in known.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    block: bytes = sink.getvalue().to_pybytes()
    return block


def _from_block(file: ParquetColumns, place: Mapping[str, Any]) -> dict[str, list[Any]]:
    import pyarrow as pa

    start, size = place.get("start"), place.get("size")
    if type(start) is not int or type(size) is not int or start < 0 or size < 0:
        raise file.damaged(f"its shards are nowhere: {str(place)[:100]}")
    block = file.read_bytes(start, size)
    if _hash(block) != place.get("xxh3"):
        raise file.damaged("the block of its shards is not what was written")
    table = pa.ipc.open_stream(block).read_all()
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _hash(block: bytes) -> str:
    return xxhash.xxh3_128(block).hexdigest()
