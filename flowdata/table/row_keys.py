"""RowKeys: by what a row is known wherever it comes up; and the rows of many keys."""

import functools
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowdata.errors import MismatchError
from flowdata.table.columns import StoredColumn, compact_texts
from flowdata.table.given_keys import as_keys, as_plain, is_text

ROW_KEY = "row_key"
"""The column of a file. Not "key": with "shard" that is a sample's place in a tar file."""

_SHOWN = 5
# Texts are hashed so many at a time, as Python has them.
_PIECE = 1 << 16


class RowKeys(Sequence[int | str]):
    """One key for each row, whole numbers or texts, none of them twice; not to be changed.

    Those of a large table stay in its file until one is asked for. numpy makes an array of them,
    int64, or of Python's texts, which takes many times the memory.

    >>> keys = RowKeys.given(["a", "b", "c"], rows=3)
    >>> keys[1], keys.find(["c", "z"]).tolist()
    ('b', [2, -1])
    """

    def __init__(self, values: Any, *, text: bool | None = None) -> None:
        """Of int64 numbers or Arrow texts, or of a column of a file, which is ``text`` or not."""
        self.is_text: bool = is_text(values) if text is None else text
        self._values = values
        if isinstance(values, np.ndarray):
            values.flags.writeable = False

    @classmethod
    def given(cls, keys: Any, rows: int) -> "RowKeys":
        """Keys as a user has them, one for each row.

        Raises:
            MismatchError: for another number of them, and, naming them, for keys that are there
                more than once.
            TypeError: for what is no keys.
            ValueError: naming the row, for one that is missing, or is no key.
        """
        found = cls(as_keys(keys))
        if len(found) != rows:
            raise MismatchError(
                f"there are {len(found):,} keys for {rows:,} rows: give each row its own"
            )
        found.prepare()
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What was read from a file or made of it, another process reads and makes if it wants to.
        return {"is_text": self.is_text, "_values": self._values}

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"RowKeys(rows={len(self):,}, {'texts' if self.is_text else 'int64'})"

    def __getitem__(self, rows: Any) -> Any:
        """One key for a row's number; a list of them for a slice."""
        if isinstance(rows, slice):
            return as_plain(self._held[rows])
        row = range(len(self))[rows]
        return as_plain(self._held[row : row + 1])[0]

    def __contains__(self, key: object) -> bool:
        return bool(self.find([key])[0] >= 0)

    def __iter__(self) -> Iterator[int | str]:
        for start in range(0, len(self), _PIECE):
            yield from as_plain(self.run(slice(start, min(len(self), start + _PIECE))))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        held = self._held.to_numpy(zero_copy_only=False) if self.is_text else self._held
        return np.array(held, dtype=dtype) if copy else np.asarray(held, dtype=dtype)

    def tolist(self) -> list[int | str]:
        """All of them, as Python has them."""
        return as_plain(self._held)

    def run(self, rows: slice) -> Any:
        """A run of them, int64 numbers or Arrow texts; of those in a file no others are held."""
        held = self.__dict__.get("_held", self._values)
        return held[rows]

    def arrow_run(self, rows: slice) -> Any:
        """A run of them as one Arrow array of strings or int64."""
        import pyarrow as pa

        run = self.run(rows)
        # One type for all runs, whatever each of them needs.
        return run.cast(pa.string()) if self.is_text else pa.array(run)

    def take(self, rows: NDArray[np.int64]) -> "RowKeys":
        """Those of some rows, in their order."""
        import pyarrow as pa

        return RowKeys(self._held.take(pa.array(rows)) if self.is_text else self._held[rows])

    def same_as(self, other: "RowKeys") -> bool:
        """Whether the rows of another table have these keys, in this order."""
        if len(self) != len(other) or self.is_text != other.is_text:
            return False
        runs = [slice(start, start + _PIECE) for start in range(0, len(self), _PIECE)]
        return all(self.arrow_run(rows).equals(other.arrow_run(rows)) for rows in runs)

    def prepare(self) -> None:
        """Sort the keys for `find`: processes that are forked after that share what it takes.

        Raises:
            MismatchError: naming them, for keys that are there more than once.
        """
        self._sorted  # noqa: B018

    def find(self, keys: Any) -> NDArray[np.int64]:
        """The row of each key, int64, shape (m,); -1 for one that no row has.

        The first call sorts the keys, at 12 bytes a row; others take a search for each key.

        Raises:
            MismatchError: for texts where the rows have numbers, or numbers where they have texts;
                and, naming them, where a file has one key for two rows.
            TypeError, ValueError: for what is no keys.
        """
        wanted = as_keys(keys)
        if len(wanted) and is_text(wanted) != self.is_text:
            kinds = ("texts", "whole numbers") if self.is_text else ("whole numbers", "texts")
            raise MismatchError(
                f"rows of the loss table have {kinds[0]} for keys, such as {self[0]!r}, and these "
                f"are {kinds[1]}, such as {as_plain(wanted[:1])[0]!r}: give those of the same "
                "column"
            )
        rows = np.full(len(wanted), -1, dtype=np.int64)
        marks, order = self._sorted
        asked = _hashes(wanted) if self.is_text else wanted
        # More than one step only where two texts have one hash.
        left, places = np.arange(rows.size), _places_in(marks, asked)
        for _ in count():
            same = places < marks.size
            same[same] = marks[places[same]] == asked[left[same]]
            left, places = left[same], places[same]
            if not left.size:
                return rows
            found = places if order is None else order[places].astype(np.int64)
            right = self._are(found, wanted, left)
            rows[left[right]] = found[right]
            left, places = left[~right], places[~right] + 1
        raise AssertionError

    def _are(self, rows: NDArray[np.int64], keys: Any, places: NDArray[np.int64]) -> Any:
        """Whether these rows have the keys at these places, and not only their hashes."""
        if not self.is_text:
            return np.ones(rows.size, dtype=np.bool_)
        import pyarrow as pa
        import pyarrow.compute as pc

        mine, theirs = self._held.take(pa.array(rows)), keys.take(pa.array(places))
        if mine.type != theirs.type:
            mine, theirs = mine.cast(pa.large_string()), theirs.cast(pa.large_string())
        return pc.equal(mine, theirs).to_numpy(zero_copy_only=False)

    @functools.cached_property
    def _held(self) -> Any:
        return self._values[:] if isinstance(self._values, StoredColumn) else self._values

    @functools.cached_property
    def _sorted(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The keys, of texts their hashes, in rising order, and the rows that have them.

        No rows where they have this order.
        """
        marks, order = _hashes(self._held) if self.is_text else self._held, None
        if not (marks[1:] > marks[:-1]).all():
            order = np.argsort(marks, kind="stable")
            marks = marks[order]
            order = order.astype(np.int32) if order.size < 1 << 31 else order
            equal = np.flatnonzero(marks[1:] == marks[:-1])
            self._require_distinct(order[np.unique(np.concatenate([equal, equal + 1]))])
        return marks, order

    def _require_distinct(self, rows: NDArray[Any]) -> None:
        """Refuse rows of one number, or hash, of which two have the same key."""
        twice: list[str] = []
        first: dict[int | str, int] = {}
        for row in np.sort(rows).tolist():
            if (key := self[row]) in first:
                twice.append(f"{key!r:.100} (rows {first[key]:,} and {row:,})")
            first.setdefault(key, row)
            # Where many are, the first ones say enough.
            if len(twice) == _SHOWN:
                break
        if twice:
            more = " and perhaps others" if len(twice) == _SHOWN else ""
            raise MismatchError(
                f"keys are there more than once: {', '.join(twice)}{more}; a key must be that of "
                "one row: join it with what tells these rows apart, or number them"
            )


def found_rows(known: RowKeys | None, keys: Any) -> NDArray[np.int64]:
    """The rows of keys of which none may be missing, see `LossTable.rows_of`."""
    if known is None:
        raise MismatchError(
            "this loss table has no keys of rows: score with key=, or give them to "
            "LossTable.from_losses(losses, keys=...)"
        )
    rows = known.find(keys)
    if (missing := np.flatnonzero(rows < 0)).size:
        plain = as_plain(as_keys(keys))
        named = ", ".join(f"{plain[place]!r:.100}" for place in missing[:_SHOWN].tolist())
        more = f", and {missing.size - _SHOWN:,} more" if missing.size > _SHOWN else ""
        raise MismatchError(
            f"{missing.size:,} of {rows.size:,} keys are those of no row of the loss table: "
            f"{named}{more}; score these rows too, or leave them out"
        )
    return rows


def joined_keys(parts: Sequence[RowKeys]) -> RowKeys:
    """The keys of tables that follow each other.

    Raises:
        MismatchError: where some are texts and others numbers, or, naming them, where a key is
            there more than once.
    """
    import pyarrow as pa

    if len({part.is_text for part in parts}) > 1:
        raise MismatchError(
            "some of the tables have texts for keys, others whole numbers: give them keys of one "
            "kind, LossTable.from_losses(table.losses, keys=...)"
        )
    runs = [part.run(slice(None)) for part in parts]
    if parts[0].is_text:
        texts = [run.cast(pa.large_string()) for run in runs]
        found = RowKeys(compact_texts(pa.chunked_array(texts)))
    else:
        found = RowKeys(np.concatenate(runs))
    found.prepare()
    return found


def _places_in(marks: NDArray[Any], asked: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of some numbers is, or would be, among rising ones."""
    if asked.size <= _PIECE:
        return np.searchsorted(marks, asked)
    # Many in a random order would each wait for memory.
    order = np.argsort(asked)
    places = np.empty(asked.size, dtype=np.int64)
    places[order] = np.searchsorted(marks, asked[order])
    return places


def _hashes(texts: Any) -> NDArray[np.uint64]:
    """A hash of each of some Arrow texts."""
    import pyarrow as pa

    found = np.empty(len(texts), dtype=np.uint64)
    for start in range(0, found.size, _PIECE):
        some = texts[start : start + _PIECE].cast(pa.large_binary()).to_pylist()
        hashed = map(xxhash.xxh3_64_intdigest, some)
        found[start : start + len(some)] = np.fromiter(hashed, dtype=np.uint64, count=len(some))
    return found
