"""ShardIndex: the shard, key and place of every sample."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowdata.errors import ShardError
from flowdata.shards.tar import walk


@dataclass(frozen=True)
class ShardIndex:
    """Where the samples of tar shards lie, shard by shard, in their order.

    Attributes:
        shards: names of the shards, relative to the folder they share.
        shard: number of the shard of each row, int32, shape (n,).
        keys: key of each row, an Arrow array of strings; with the shard it is the identity.
        offsets: first byte of each sample in its shard, int64, shape (n,).
        sizes: bytes of each sample, headers included, int64, shape (n,).
    """

    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    keys: Any
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, paths: Sequence[Path], *, progress: bool = True) -> "ShardIndex":
        """Walk through the headers of shards; their contents are not read.

        Raises:
            ShardError: for no shards or samples, a shard that cannot be read, a key twice in one.
        """
        if not paths:
            raise ShardError("no shards were given")
        import pyarrow as pa

        shard: list[NDArray[np.int32]] = []
        keys: list[Any] = []
        places: list[NDArray[np.int64]] = []
        for number, path in enumerate(
            tqdm(paths, desc="indexing", unit="shards", disable=not progress)
        ):
            samples = list(walk(path))
            found = [sample.key for sample in samples]
            _refuse_twice(path, found)
            shard.append(np.full(len(samples), number, dtype=np.int32))
            keys.append(pa.array(found, type=pa.large_string()))
            places.append(np.array([sample[1:] for sample in samples], dtype=np.int64))
        rows = np.concatenate(shard)
        if not rows.size:
            raise ShardError(f"there is no sample in {paths[0]} and {len(paths) - 1} other shards")
        offsets, sizes = np.concatenate([part.reshape(-1, 2) for part in places]).T.copy()
        return cls(_names(paths), rows, pa.concat_arrays(keys), offsets, sizes)

    def key(self, row: int) -> str:
        """The key of one row."""
        key: str = self.keys[row].as_py()
        return key

    def __len__(self) -> int:
        return self.shard.size

    def columns(self) -> dict[str, Any]:
        """The index as Arrow columns of a loss table."""
        import pyarrow as pa

        names = pa.DictionaryArray.from_arrays(pa.array(self.shard), pa.array(self.shards))
        return {
            "shard": names,
            "key": self.keys,
            "offset": pa.array(self.offsets),
            "size": pa.array(self.sizes),
        }

    @classmethod
    def from_columns(cls, columns: dict[str, Any]) -> "ShardIndex":
        """The index of a loss table that has the four columns."""
        names = columns["shard"].combine_chunks()
        return cls(
            tuple(names.dictionary.to_pylist()),
            names.indices.to_numpy(),
            columns["key"].combine_chunks(),
            columns["offset"].to_numpy(),
            columns["size"].to_numpy(),
        )


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    folder = os.path.commonpath([path.resolve().parent for path in paths])
    names = tuple(os.path.relpath(path.resolve(), folder) for path in paths)
    if len(set(names)) != len(names):
        raise ShardError("a shard is given twice")
    return names


def _refuse_twice(path: Path, keys: list[str]) -> None:
    if len(set(keys)) == len(keys):
        return
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ShardError(
                f"{path} has the key {key!r} twice: members of a sample must be neighbours, and "
                "each sample needs a key of its own"
            )
        seen.add(key)
