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
_TWICE = "it has a shard twice"
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
    def read(cls, file: ParquetColumns, names_of_rows: tuple[str, ...]) -> "ShardLists":
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
        names = _list_of(file, known, "shards", str, None, list(names_of_rows))
        # Those of a block are compared there.
        if not isinstance(names, tuple) and len(set(names)) != len(names):
            raise file.damaged(_TWICE)
        n = len(names)
        rows = _numbers(file, known, "rows", n, 0) if "rows" in known else None
        if rows is not None and (of_all := sum(rows.tolist())) != file.rows:
            raise file.damaged(f"its shards have {of_all:,} rows, but the file {file.rows:,}")
        return cls(
            tuple(names),
            _numbers(file, known, "lengths", n, -1),
            np.array(_list_of(file, known, "compressed", bool, n, False), dtype=np.bool_),
            tuple(_list_of(file, known, "versions", str, n, "")),
            rows,
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

    A list, or of a block a tuple of texts or an array of numbers.

    Raises:
        DamagedFileError: for values of another type or number.
    """
    if name not in known:
        return default if size is None else [default] * size
    values = known[name]
    if isinstance(values, np.ndarray):
        fits = values.dtype == kind
    elif isinstance(values, tuple):
        fits = kind is str
    else:
        # Exactly: True is an int to isinstance.
        fits = isinstance(values, list) and all(type(value) is kind for value in values)
    if not fits:
        raise file.damaged(f"its {name} are no list of {kind.__name__}")
    if size is not None and len(values) != size:
        raise file.damaged(f"it has {size:,} shards, but {name} of {len(values):,}")
    return values


def _numbers(
    file: ParquetColumns, known: Mapping[str, Any], name: str, size: int, lowest: int
) -> NDArray[np.int64]:
    """A number of each shard; the lowest that there may be where it is not known."""
    values = _list_of(file, known, name, int, size, lowest)
    # In JSON they may be too large for the type.
    highest = values.max(initial=0) if isinstance(values, np.ndarray) else max(values, default=0)
    if highest > _LARGEST or (numbers := np.array(values, dtype=np.int64)).min(initial=0) < lowest:
        raise file.damaged(f"its {name} have a number that none can be")
    return numbers


def _to_block(known: Mapping[str, Any]) -> bytes:
    import pyarrow as pa

    table = pa.table({name: pa.array(values) for name, values in known.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    block: bytes = sink.getvalue().to_pybytes()
    return block


def _from_block(file: ParquetColumns, place: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    start, size = place.get("start"), place.get("size")
    if type(start) is not int or type(size) is not int or start < 0 or size < 0:
        raise file.damaged(f"its shards are nowhere: {str(place)[:100]}")
    block = file.read_bytes(start, size)
    if _hash(block) != place.get("xxh3"):
        raise file.damaged(
            "the block of its shards is not what was written: bytes have changed, or another "
            "program wrote the file anew, without what it does not know"
        )
    table = pa.ipc.open_stream(block).read_all()
    if len(table.column("shards").unique()) != table.num_rows:
        raise file.damaged(_TWICE)
    return {
        name: tuple(column.to_pylist()) if pa.types.is_string(column.type) else column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _hash(block: bytes) -> str:
    return xxhash.xxh3_128(block).hexdigest()
