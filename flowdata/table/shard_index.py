"""ShardIndex: the shard, key and place of every sample."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError
from flowdata.files import reason_of
from flowdata.table.columns import StoredColumn, StoredFile, can_stay, compact_texts
from flowdata.table.keys import plain_keys as plain_keys
from flowdata.table.parquet import Kind, ParquetColumns, open_parquet
from flowdata.table.shard_lists import ShardLists, has_names
from flowdata.table.writing import write_parquet

INDEX_KINDS = {
    "shard": Kind.TEXT,
    "key": Kind.TEXT,
    "offset": Kind.INT64,
    "size": Kind.INT64,
}
"""The columns of an index."""
MOST_ROWS_HELD = 1 << 18
"""Tables and indexes of more rows than this stay in their file: a column, or the rows of a shard,
are read when they are asked for."""

_REMEDY = "index or score the shards again"
_LARGEST = np.iinfo(np.int64).max
_CONTRADICTION = (
    "the places of the samples contradict each other: rows of a shard must follow one another "
    "without overlap, inside the shard"
)


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
        return plain_keys(self.keys[place : place + 1])[0]


class ShardIndex:
    """Where the samples of tar shards lie, shard by shard, in their order; not to be changed.

    An index of more than `MOST_ROWS_HELD` rows that was loaded stays in its file: `of_shard` reads
    the rows of a shard, and each of the columns is read when it is asked for, and then held.

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

    def __init__(
        self,
        shards: tuple[str, ...],
        shard: NDArray[np.int32] | None,
        keys: Any,
        offsets: Any,
        sizes: Any,
        lengths: NDArray[np.int64],
        compressed: NDArray[np.bool_],
        versions: tuple[str, ...] = (),
        *,
        rows: NDArray[np.int64] | None = None,
        file: StoredFile | None = None,
    ) -> None:
        """Of columns that are held, or that give the values of a run of rows for a slice.

        ``rows`` of each shard say the same as ``shard``, which then is None. The values of a
        ``file`` are checked when they are read.
        """
        if rows is None:
            # Numbers of another type would have numpy make a copy of the column in that.
            numbers = np.arange(len(shards) + 1, dtype=np.int32)
            rows = np.diff(np.searchsorted(np.asarray(shard, dtype=np.int32), numbers))
        self.shards = shards
        self.lengths = lengths
        self.compressed = compressed
        self.versions = versions
        self._bounds = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._bounds.flags.writeable = False
        self._columns = {"key": keys, "offset": offsets, "size": sizes}
        self._file = file

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def __repr__(self) -> str:
        return f"ShardIndex(shards={len(self.shards):,}, rows={len(self):,})"

    def __getstate__(self) -> dict[str, Any]:
        # Columns that were read from a file are read by another process if it wants them.
        read = ("shard", "keys", "_places")
        return {name: value for name, value in vars(self).items() if name not in read}

    @functools.cached_property
    def shard(self) -> NDArray[np.int32]:
        """Number of the shard of each row."""
        numbers = np.arange(len(self.shards), dtype=np.int32)
        return np.repeat(numbers, np.diff(self._bounds))

    @functools.cached_property
    def keys(self) -> Any:
        """Key of each row."""
        return self._columns["key"][:]

    @property
    def offsets(self) -> NDArray[np.int64]:
        """First byte of each sample in its shard."""
        return self._places[0]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each sample."""
        return self._places[1]

    def key(self, row: int) -> str:
        """The key of one row."""
        row = range(len(self))[row]
        return plain_keys(self._columns["key"][row : row + 1])[0]

    def of_shard(self, number: int) -> ShardSamples:
        """The samples of one shard, by its number in `shards`.

        Raises:
            DamagedFileError: for an index in a file whose rows of the shard contradict each other,
                or are not what was written.
            IndexError: for a number of no shard.
        """
        if not 0 <= number < len(self.shards):
            raise IndexError(f"there is no shard {number}: there are {len(self.shards):,}")
        first, end = self._bounds[number : number + 2].tolist()
        keys, offsets, sizes = (column[first:end] for column in self._columns.values())
        if self._file is not None:
            limit = -1 if self.compressed[number] else self.lengths[number]
            if not _places_agree(offsets, sizes, _LARGEST if limit < 0 else limit):
                raise self._file.damaged(f"in {self.shards[number]}, {_CONTRADICTION}")
        return ShardSamples(first, keys, offsets, sizes)

    def keys_of(self, number: int) -> Any:
        """The keys of one shard's samples, in half the time that all of `of_shard` takes."""
        if not 0 <= number < len(self.shards):
            raise IndexError(f"there is no shard {number}: there are {len(self.shards):,}")
        first, end = self._bounds[number : number + 2].tolist()
        return self._columns["key"][first:end]

    def bounds(self) -> NDArray[np.int64]:
        """The first row of each shard, and n: shape (shards + 1,)."""
        return self._bounds

    @functools.cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        offsets, sizes = self._columns["offset"][:], self._columns["size"][:]
        if self._file is not None and not _all_places_agree(self, offsets, sizes):
            raise self._file.damaged(_CONTRADICTION)
        return offsets, sizes

    def save(self, path: str | PathLike[str]) -> None:
        """Write the index as Parquet, atomically.

        Raises:
            TableFileError: when the directory is missing or cannot be written.
        """
        metadata, block = self.lists().stored()
        try:
            write_parquet(path, "index", len(self), self.columns(), metadata, block)
        except OSError as error:
            raise TableFileError(f"cannot write the index {path}: {reason_of(error)}") from error

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
            if file.rows > MOST_ROWS_HELD and can_stay(file):
                return cls.in_file(file, StoredFile(file))
            return cls.from_file(file, file.read(INDEX_KINDS))

    def columns(self) -> dict[str, Callable[[slice], Any]]:
        """For each column of a file, what gives the Arrow array of a run of rows."""
        import pyarrow as pa

        return {
            "shard": self._names_of,
            # One type for all runs, whatever each of them needs.
            "key": lambda rows: self._columns["key"][rows].cast(pa.string()),
            "offset": lambda rows: pa.array(self._columns["offset"][rows]),
            "size": lambda rows: pa.array(self._columns["size"][rows]),
        }

    def lists(self) -> ShardLists:
        """What is known of whole shards."""
        rows = np.diff(self._bounds)
        return ShardLists(self.shards, self.lengths, self.compressed, self.versions, rows)

    def _names_of(self, rows: slice) -> Any:
        """The names of the shards of a run of rows, each of these shards once."""
        import pyarrow as pa

        first, last = np.searchsorted(self._bounds, [rows.start, rows.stop - 1], "right") - 1
        inside = np.clip(self._bounds[first : last + 2], rows.start, rows.stop)
        numbers = np.repeat(np.arange(inside.size - 1, dtype=np.int32), np.diff(inside))
        names = pa.array(self.shards[first : last + 1], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(numbers), names)

    @classmethod
    def from_file(cls, file: ParquetColumns, columns: Mapping[str, Any]) -> "ShardIndex":
        """The index of a file whose four columns were read.

        Raises:
            DamagedFileError: when they contradict each other.
        """
        if missing := INDEX_KINDS.keys() - columns.keys():
            raise file.damaged(f"it has no column {', '.join(sorted(missing))}")
        lists = _counted(file, columns["shard"].chunks)
        offsets, sizes = columns["offset"].to_numpy(), columns["size"].to_numpy()
        index = cls._of(lists, compact_texts(columns["key"]), offsets, sizes)
        # Readers seek to these places and read these sizes: a damaged index must not reach them.
        if not _all_places_agree(index, offsets, sizes):
            raise file.damaged(_CONTRADICTION)
        return index

    @classmethod
    def in_file(cls, file: ParquetColumns, stored: StoredFile) -> "ShardIndex":
        """The index of a file that stays there, but for what is known of whole shards.

        Raises:
            DamagedFileError: for a file without the columns, or with impossible lists of shards.
        """
        file.check_kinds(INDEX_KINDS)
        lists = ShardLists.read(file, ()) if has_names(file) else None
        if lists is None or lists.rows is None:
            kind = {"shard": Kind.TEXT}
            lists = _counted(file, (batch["shard"] for batch in file.batches(kind)))
        keys, offsets, sizes = (
            StoredColumn(stored, name, INDEX_KINDS[name]) for name in ("key", "offset", "size")
        )
        return cls._of(lists, keys, offsets, sizes, stored)

    @classmethod
    def _of(
        cls, lists: ShardLists, keys: Any, offsets: Any, sizes: Any, file: StoredFile | None = None
    ) -> "ShardIndex":
        return cls(
            lists.names,
            None,
            keys,
            offsets,
            sizes,
            lists.lengths,
            lists.compressed,
            lists.versions,
            rows=lists.rows,
            file=file,
        )


def _all_places_agree(
    index: ShardIndex, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
) -> bool:
    known = (index.lengths >= 0) & ~index.compressed
    limits = np.where(known, index.lengths, _LARGEST)
    begins = np.zeros(len(index) + 1, dtype=np.bool_)
    begins[index.bounds()] = True
    rows = np.diff(index.bounds())
    return _places_agree(offsets, sizes, np.repeat(limits, rows), begins[1:-1])


def _places_agree(
    offsets: NDArray[np.int64],
    sizes: NDArray[np.int64],
    limits: NDArray[np.int64] | int,
    begins: NDArray[np.bool_] | bool = False,
) -> bool:
    """Whether samples follow one another, inside their shards.

    Args:
        offsets, sizes: of the samples, shape (m,).
        limits: bytes of their shards.
        begins: whether each but the first is the first of its shard.
    """
    steps = np.diff(offsets) - sizes[:-1]
    return bool(
        ((steps >= 0) | begins).all()
        and (offsets >= 0).all()
        and (sizes > 0).all()
        and (sizes <= limits - offsets).all()
    )


def _counted(file: ParquetColumns, texts: Iterable[Any]) -> ShardLists:
    """What a file knows of its shards, with the rows that the column of their names has of each.

    Raises:
        DamagedFileError: for rows of a shard that is not among those of the file, that are not
            together, or are not as many as the file says.
    """
    import pyarrow as pa

    lists = ShardLists.read(file, ()) if has_names(file) else None
    numbers = {} if lists is None else {name: number for number, name in enumerate(lists.names)}
    counts = np.zeros(len(numbers), dtype=np.int64)
    last = 0
    for some in texts:
        column = some if pa.types.is_dictionary(some.type) else some.dictionary_encode()
        found = column.dictionary.to_pylist()
        if lists is None:
            for name in found:
                numbers.setdefault(name, len(numbers))
            counts = np.pad(counts, (0, len(numbers) - counts.size))
        if unknown := [name for name in found if name not in numbers]:
            raise file.damaged(
                f"it has rows of the shard {unknown[0]!r:.200}, which is not among its shards"
            )
        of_found = np.array([numbers[name] for name in found], dtype=np.int64)
        shard = of_found[column.indices.to_numpy()]
        begins = np.flatnonzero(np.diff(shard, prepend=-1))
        if (np.diff(shard[begins], prepend=last) < 0).any():
            raise file.damaged(_CONTRADICTION)
        counts[shard[begins]] += np.diff(begins, append=shard.size)
        last = int(shard[-1])
    lists = lists or ShardLists.read(file, tuple(numbers))
    if lists.rows is not None and not np.array_equal(lists.rows, counts):
        raise file.damaged("its shards have other numbers of rows than it says")
    return replace(lists, rows=counts)
