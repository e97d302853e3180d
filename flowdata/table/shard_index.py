"""ShardIndex: the shard, key and place of every sample."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError
from flowdata.files import local_path, replacing
from flowdata.table.parquet import Kind, ParquetColumns, open_parquet

METADATA_KEY = b"flowdata.shards"
INDEX_KINDS = {
    "shard": Kind.TEXT,
    "key": Kind.TEXT,
    "offset": Kind.INT64,
    "size": Kind.INT64,
}
"""The columns of an index."""

_REMEDY = "index or score the shards again"
_LARGEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class ShardSamples:
    """The samples of one shard, in their order.

    Attributes:
        first: row of the first of them among those of all shards.
        keys, offsets, sizes: as `ShardIndex` has them, of this shard alone.
    """

    first: int
    keys: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return self.offsets.size

    def key(self, place: int) -> str:
        """The key of one sample, counted from the first of the shard."""
        key: str = self.keys[place].as_py()
        return _unescaped(key) if _ESCAPE in key else key


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of tar shards lie, shard by shard, in their order.

    Attributes:
        shards: names of the shards, relative to the folder they share.
        shard: number of the shard of each row, int32, shape (n,), never falling.
        keys: key of each row, an Arrow array of strings; with the shard it is the identity. Bytes
            that are not UTF-8 are escaped in it: `key` and `plain_keys` give them as WebDataset.
        offsets: first byte of each sample in its shard (unpacked), int64, shape (n,).
        sizes: bytes of each sample, headers included, int64, shape (n,).
        lengths: bytes of each shard as it is stored, -1 where unknown, int64.
        compressed: whether each shard is, bool.
        versions: what the server of each shard said of its content (ETag, time of modification),
            empty where it said nothing; none at all in an index of before that was kept.
    """

    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    keys: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    compressed: NDArray[np.bool_]
    versions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.shard.size

    def key(self, row: int) -> str:
        """The key of one row."""
        key: str = self.keys[row].as_py()
        return _unescaped(key) if _ESCAPE in key else key

    def of_shard(self, number: int) -> ShardSamples:
        """The samples of one shard, by its number in `shards`."""
        first, end = self._first_rows(number, number + 2).tolist()
        rows = slice(first, end)
        return ShardSamples(first, self.keys[rows], self.offsets[rows], self.sizes[rows])

    def bounds(self) -> NDArray[np.int64]:
        """The first row of each shard, and n: shape (shards + 1,)."""
        return self._first_rows(0, len(self.shards) + 1)

    def _first_rows(self, number: int, end: int) -> NDArray[np.int64]:
        # Numbers of another type would have numpy make a copy of the column in that.
        return np.searchsorted(self.shard, np.arange(number, end, dtype=np.int32))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index as Parquet, atomically.

        Raises:
            TableFileError: when the directory is missing or cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(self.columns()).replace_schema_metadata(self.metadata())
        try:
            with replacing(local_path(path, "index")) as temporary:
                pq.write_table(table, temporary, write_page_checksum=True)
        except OSError as error:
            raise TableFileError(f"cannot write the index {path}: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "ShardIndex":
        """Read an index, or that of a loss table of shards.

        Raises:
            TableFileError: for a file that is missing, truncated, or has no index.
        """
        with open_parquet(path, what="index", remedy=_REMEDY) as file:
            if not INDEX_KINDS.keys() <= set(file.names):
                raise TableFileError(
                    f"{path} is no index of shards (columns: {file.names[:20]}); make one with "
                    "flowdata index"
                )
            return cls.from_file(file, file.read(INDEX_KINDS))

    def columns(self) -> dict[str, Any]:
        """The index as Arrow columns."""
        import pyarrow as pa

        names = pa.DictionaryArray.from_arrays(pa.array(self.shard), pa.array(self.shards))
        values = (names, self.keys, pa.array(self.offsets), pa.array(self.sizes))
        return dict(zip(INDEX_KINDS, values, strict=True))

    def metadata(self) -> dict[bytes, bytes]:
        """What is known of whole shards, for the metadata of a file."""
        known = {
            "shards": self.shards,
            "lengths": self.lengths.tolist(),
            "compressed": self.compressed.tolist(),
        }
        if any(self.versions):
            known["versions"] = self.versions
        return {METADATA_KEY: json.dumps(known).encode()}

    @classmethod
    def from_file(cls, file: ParquetColumns, columns: Mapping[str, Any]) -> "ShardIndex":
        """The index of a file that has the four columns.

        Raises:
            DamagedFileError: when they contradict each other.
        """
        if missing := INDEX_KINDS.keys() - columns.keys():
            raise file.damaged(f"it has no column {', '.join(sorted(missing))}")
        known = file.json(METADATA_KEY)
        names = _list_of(file, known, "shards", str)
        if len(set(names or ())) != len(names or ()):
            raise file.damaged("it has a shard twice")
        shards, shard = _numbered(file, columns["shard"], names)
        lengths = _list_of(file, known, "lengths", int, len(shards), default=-1)
        if min(lengths, default=0) < -1 or max(lengths, default=0) > _LARGEST:
            raise file.damaged("a shard has no possible length")
        index = cls(
            shards,
            shard,
            compact_keys(columns["key"]),
            columns["offset"].to_numpy(),
            columns["size"].to_numpy(),
            np.array(lengths, dtype=np.int64),
            np.array(
                _list_of(file, known, "compressed", bool, len(shards), default=False),
                dtype=np.bool_,
            ),
            tuple(_list_of(file, known, "versions", str, len(shards), default="")),
        )
        # Readers seek to these places and read these sizes: a damaged index must not reach them.
        if not index._places_agree():
            raise file.damaged(
                "the places of the samples contradict each other: rows of a shard must follow one "
                "another without overlap, inside the shard"
            )
        return index

    def _places_agree(self) -> bool:
        steps = np.diff(self.offsets) - self.sizes[:-1]
        known = (self.lengths >= 0) & ~self.compressed
        limits = np.where(known, self.lengths, _LARGEST)[self.shard]
        return bool(
            (np.diff(self.shard) >= 0).all()
            and ((steps >= 0) | (np.diff(self.shard) > 0)).all()
            and (self.offsets >= 0).all()
            and (self.sizes > 0).all()
            and (self.sizes <= limits - self.offsets).all()
        )


def _list_of(
    file: ParquetColumns,
    known: Mapping[str, Any],
    name: str,
    kind: type,
    size: int | None = None,
    default: Any = None,
) -> Any:
    """What is known of each shard; the default of each where it is not.

    Raises:
        DamagedFileError: for values of another type or number.
    """
    if name not in known:
        return None if size is None else [default] * size
    values = known[name]
    # Exactly: True is an int to isinstance.
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise file.damaged(f"its {name} are no list of {kind.__name__}")
    if size is not None and len(values) != size:
        raise file.damaged(f"it has {size:,} shards, but {name} of {len(values):,}")
    return values


def _numbered(
    file: ParquetColumns, column: Any, shards: list[str] | None
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The shards of an index, those without samples too, and the number of each row's.

    Raises:
        DamagedFileError: for a row of a shard that is not among those of the file.
    """
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    found = column.dictionary.to_pylist()
    every = found if shards is None else shards
    numbers = {name: number for number, name in enumerate(every)}
    if unknown := [name for name in found if name not in numbers]:
        raise file.damaged(
            f"it has rows of the shard {unknown[0]!r:.200}, which is not among its shards"
        )
    of_found = np.array([numbers[name] for name in found], dtype=np.int32)
    return tuple(every), of_found[column.indices.to_numpy()]


# No name in a tar header has a zero in it.
_ESCAPE = "\0"
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{2}})")
_NO_UTF8 = re.compile("[\udc80-\udcff]")


def escaped_key(key: str) -> str:
    """A key as UTF-8 can hold it: bytes that are not UTF-8, which Python keeps as surrogates."""
    return _NO_UTF8.sub(lambda match: f"{_ESCAPE}{ord(match[0]) & 0xFF:02x}", key)


def plain_keys(column: Any) -> list[str]:
    """The keys in an Arrow column, as WebDataset has them."""
    keys: list[str] = column.to_pylist()
    return [_unescaped(key) for key in keys] if any(_ESCAPE in key for key in keys) else keys


def _unescaped(key: str) -> str:
    return _ESCAPED.sub(lambda match: chr(0xDC00 | int(match[1], 16)), key)


def compact_keys(keys: Any) -> Any:
    """Keys in one piece, with offsets of 4 bytes where they are below 2 GB together."""
    import pyarrow as pa

    # pyarrow 26: offsets of `string` are int32, those of `large_string` int64.
    keys = keys.cast(pa.string() if keys.nbytes < 1 << 31 else pa.large_string())
    return keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
