"""Which row of a loss table a row of a file is: by its number, or by a key."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.data_files.same_rows import SameRows
from flowdata.errors import DataFileError, MismatchError
from flowdata.table.given_keys import as_plain
from flowdata.table.loss_table import LossTable

_SHOWN = 5


def as_table(table: LossTable | str | PathLike[str]) -> LossTable:
    """A loss table, or that of a file.

    Raises:
        TypeError: for what is neither.
    """
    if isinstance(table, LossTable):
        return table
    if not isinstance(table, str | PathLike):
        raise TypeError(
            f"a LossTable, or the path of one, is needed, got {type(table).__name__}: weights of "
            "your own are given as weights="
        )
    return LossTable.load(table)


class TableRows:
    """Finds the table's row of each row of a file, and makes sure that each is there once.

    Args:
        table: the loss table.
        key: field of the rows that has the table's keys, default that of its scoring pass.
        name: of the file, for errors.
        unchecked: leave out comparing some rows with those that were scored.
    """

    def __init__(self, table: LossTable, key: str | None, name: Path, *, unchecked: bool) -> None:
        if key is not None and table.keys is None:
            raise MismatchError(
                f"rows are looked up by {key!r}, but the loss table has no keys of rows: score "
                "with key=, or leave the key out where rows are in the table's order"
            )
        if key is None and table.keys is not None and not unchecked:
            key = table.provenance.key
        self.key = key
        """The field that has the table's keys, or None: rows are in its order."""
        self._table = table
        self._files = [name]
        self._read = self._begin = 0
        self._seen = None if key is None else np.zeros(len(table), dtype=np.bool_)
        by_order = key is None and not unchecked
        self.same = SameRows(table.provenance) if by_order else None
        """What sees rows that are to be those that were scored."""

    def read_from(self, name: Path) -> None:
        """The next rows are of this file, which comes after those before."""
        if name != self._files[-1]:
            self._files.append(name)
            self._begin = self._read

    @property
    def position(self) -> int:
        """Rows that were found, of all files: the number of the next."""
        return self._read

    def find(self, rows: int, keys: Any, where: Sequence[int] | None) -> NDArray[np.int64]:
        """The table's rows of the next rows of the file.

        Args:
            rows: how many.
            keys: of them, where rows have some.
            where: number of the line of each, for errors; without, they are called rows.

        Raises:
            MismatchError: for more rows than the table has, and for keys that it has not, or that
                are there twice.
        """
        start, self._read = self._read, self._read + rows
        if self.key is None:
            if self._read > len(self._table):
                self._refuse_length("more rows")
            return np.arange(start, self._read)
        return self._find_keys(start, keys, where)

    def _find_keys(self, start: int, keys: Any, where: Sequence[int] | None) -> NDArray[np.int64]:
        assert self._table.keys is not None
        assert self._seen is not None

        def place(row: int) -> str:
            number = (
                f"row {start - self._begin + row:,}" if where is None else f"line {where[row]:,}"
            )
            return f"{self._files[-1]}, {number}: its {self.key} is {_plain(keys, row)!r:.100}"

        try:
            found = self._in_order(start, keys)
            found = self._table.keys.find(keys) if found is None else found
        except (MismatchError, TypeError, ValueError):
            # One of them is wrong: which one, a search for each tells.
            for row in range(len(keys)):
                self._require_key(_plain(keys, row), place(row))
            raise
        if (missing := np.flatnonzero(found < 0)).size:
            raise MismatchError(
                f"{place(int(missing[0]))}, which no row of the loss table has: score these rows "
                "too, or leave them out"
            )
        first = np.unique(found, return_index=True)[1]
        twice = self._seen[found]
        twice[np.setdiff1d(np.arange(found.size), first)] = True
        if twice.any():
            raise MismatchError(
                f"{place(int(twice.argmax()))}, as that of a row before it: a key must be that of "
                "one row"
            )
        self._seen[found] = True
        return found

    def _in_order(self, start: int, keys: Any) -> NDArray[np.int64] | None:
        """Rows of keys that follow each other in the table too: no others need be held."""
        assert self._table.keys is not None
        stop = start + len(keys)
        if stop > len(self._table):
            return None
        plain = keys if isinstance(keys, list) else keys.to_pylist()
        if as_plain(self._table.keys.run(slice(start, stop))) == plain:
            return np.arange(start, stop)
        return None

    def _require_key(self, key: Any, place: str) -> None:
        assert self._table.keys is not None
        try:
            self._table.keys.find([key])
        except MismatchError as error:
            raise MismatchError(f"{place}: {error}") from error
        except (TypeError, ValueError) as error:
            raise MismatchError(
                f"{place}, and keys are texts of UTF-8 or whole numbers of 64 bits"
            ) from error

    def finish(self) -> int:
        """The number of rows, after the last one.

        Raises:
            MismatchError: for fewer rows than the table has, or others than were scored.
        """
        if self._read == 0:
            raise DataFileError(f"{self._all} has no rows: there is nothing to read")
        if self.key is None and self._read < len(self._table):
            self._refuse_length(f"{self._read:,} rows")
        if self.same is not None:
            self.same.require(self._files, self._all)
            self.same = None
        return self._read

    def require(self, rows: NDArray[np.bool_]) -> None:
        """Make sure that the file has all of some rows of the table, after the last one.

        Raises:
            MismatchError: naming the keys of those that are missing.
        """
        assert self._table.keys is not None
        assert self._seen is not None
        missing = np.flatnonzero(rows & ~self._seen)
        if missing.size:
            named = ", ".join(
                f"{self._table.keys[row]!r:.100}" for row in missing[:_SHOWN].tolist()
            )
            more = f", and {missing.size - _SHOWN:,} more" if missing.size > _SHOWN else ""
            raise MismatchError(
                f"{self._all} has no row with the {self.key} {named}{more}, which the loss table "
                "has, and which may be drawn: give all rows that were scored"
            )

    @property
    def _all(self) -> str:
        more = f" to {self._files[-1]}, {len(self._files)} files," if len(self._files) > 1 else ""
        return f"{self._files[0]}{more}"

    def _refuse_length(self, found: str) -> None:
        raise MismatchError(
            f"{self._all} has {found}, and the loss table {len(self._table):,}: give the file "
            "that was scored, or key=, the column of its keys, by which rows are found"
        )


def _plain(keys: Any, row: int) -> Any:
    key = keys[row]
    return key.as_py() if hasattr(key, "as_py") else key
