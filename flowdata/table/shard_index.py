"""ShardIndex: the shard, key and place of every sample."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError
from flowdata.files import replacing

METADATA_KEY = b"flowdata.shards"
_COLUMNS = ("shard", "key", "offset", "size")


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
    """

    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    keys: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    lengths: NDArray[np.int64]
    compressed: NDArray[np.bool_]

    def __len__(self) -> int:
        return self.shard.size

    def key(self, row: int) -> str:
        """The key of one row."""
        key: str = self.keys[row].as_py()
        return _unescaped(key) if _ESCAPE in key else key

    def bounds(self) -> NDArray[np.int64]:
        """The first row of each shard, and n: shape (shards + 1,)."""
        return np.searchsorted(self.shard, np.arange(len(self.shards) + 1))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index as Parquet, atomically.

        Raises:
            TableFileError: when the directory is missing or cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(self.columns()).replace_schema_metadata(self.metadata())
        try:
            with replacing(Path(path)) as temporary:
                pq.write_table(table, temporary, write_page_checksum=True)
        except OSError as error:
            raise TableFileError(f"cannot write the index {path}: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "ShardIndex":
        """Read an index, or that of a loss table of shards.

        Raises:
            TableFileError: for a file that is missing, truncated, or has no index.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                schema = file.schema_arrow
                if not set(_COLUMNS) <= set(schema.names):
                    raise TableFileError(
                        f"{path} is no index of shards (columns: {schema.names}); make one with "
                        "flowdata index"
                    )
                table = file.read(list(_COLUMNS))
        except (pa.ArrowInvalid, OSError) as error:
            raise TableFileError(f"{path} is not a readable index ({error})") from error
        columns = dict(zip(table.column_names, table.columns, strict=True))
        return cls.from_columns(columns, schema.metadata)

    def columns(self) -> dict[str, Any]:
        """The index as Arrow columns."""
        import pyarrow as pa

        names = pa.DictionaryArray.from_arrays(pa.array(self.shard), pa.array(self.shards))
        values = (names, self.keys, pa.array(self.offsets), pa.array(self.sizes))
        return dict(zip(_COLUMNS, values, strict=True))

    def metadata(self) -> dict[bytes, bytes]:
        """What is known of whole shards, for the metadata of a file."""
        known = {
            "shards": self.shards,
            "lengths": self.lengths.tolist(),
            "compressed": self.compressed.tolist(),
        }
        return {METADATA_KEY: json.dumps(known).encode()}

    @classmethod
    def from_columns(
        cls, columns: dict[str, Any], metadata: Mapping[bytes, bytes] | None
    ) -> "ShardIndex":
        """The index of a file that has the four columns.

        Raises:
            TableFileError: when they contradict each other.
        """
        known = json.loads((metadata or {}).get(METADATA_KEY, b"{}"))
        shards, shard = _numbered(columns["shard"], known.get("shards"))
        lengths = np.array(known.get("lengths", [-1] * len(shards)), dtype=np.int64)
        compressed = np.array(known.get("compressed", [False] * len(shards)), dtype=np.bool_)
        if not lengths.size == compressed.size == len(shards):
            raise TableFileError(
                f"the index has {len(shards):,} shards, but lengths of {lengths.size:,}: index the "
                "shards again"
            )
        index = cls(
            shards,
            shard,
            compact_keys(columns["key"].combine_chunks()),
            columns["offset"].to_numpy(),
            columns["size"].to_numpy(),
            lengths,
            compressed,
        )
        # Readers seek to these places and read these sizes: a damaged index must not reach them.
        index._check()
        return index

    def _check(self) -> None:
        steps = np.diff(self.offsets) - self.sizes[:-1]
        known = (self.lengths >= 0) & ~self.compressed
        limits = np.where(known, self.lengths, np.iinfo(np.int64).max)[self.shard]
        good = (
            self.lengths.size == self.compressed.size == len(self.shards)
            and (np.diff(self.shard) >= 0).all()
            and ((steps >= 0) | (np.diff(self.shard) > 0)).all()
            and (self.offsets >= 0).all()
            and (self.sizes > 0).all()
            and (self.sizes <= limits - self.offsets).all()
        )
        if not good:
            raise TableFileError(
                "the places of the samples contradict each other: rows of a shard must follow one "
                "another without overlap, inside the shard; index or score the shards again"
            )


def _numbered(column: Any, shards: list[str] | None) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """The shards of an index, those without samples too, and the number of each row's.

    Raises:
        TableFileError: for a row of no shard, or of one that is not among those of the file.
    """
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.combine_chunks()
    found = column.dictionary.to_pylist()
    every = found if shards is None else shards
    numbers = {name: number for number, name in enumerate(every)}
    unknown = [name for name in found if name not in numbers]
    if unknown or column.null_count:
        raise TableFileError(
            f"the index has rows of the shard {unknown[0] if unknown else None!r}, which is not "
            "among its shards: index them again"
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
    """Keys with offsets of 4 bytes, where they are below 2 GB together."""
    import pyarrow as pa

    # pyarrow 26: offsets of `string` are int32, those of `large_string` int64.
    return keys.cast(pa.string() if keys.nbytes < 1 << 31 else pa.large_string())
