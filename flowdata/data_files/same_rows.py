"""Whether rows of a file are those that a loss table was scored over, as some of them tell."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowdata.errors import MismatchError
from flowdata.table.data_columns import run_of
from flowdata.table.fingerprint import dataset_fingerprint
from flowdata.table.origins import TAKEN, parts_of, size_of
from flowdata.table.provenance import Provenance

_SEEN = 16
"""Rows that the fingerprint of a data set is made of."""
_MOST_ADDED = 4


class SameRows:
    """Keeps the rows that a data set is recognised by, as they are read.

    Args:
        provenance: of a table; of one that is made of others, each part is recognised on its own.
    """

    def __init__(self, provenance: Provenance) -> None:
        self._parts: list[_Part] = []
        self._wanted: set[int] = set()
        self._rows: dict[int, dict[str, Any]] = {}
        self._columns: dict[str, None] = {}
        start = 0
        for part in parts_of(provenance):
            stop = start + size_of(part)
            if TAKEN not in part and part["data_fingerprint"] is not None:
                self._parts.append(_Part(start, stop, part["data_fingerprint"]))
                places = np.linspace(start, stop - 1, min(stop - start, _SEEN)).astype(int)
                self._wanted.update(places.tolist())
            start = stop

    def wanted(self, rows: range) -> list[int]:
        """Which of the next rows are to be seen."""
        return sorted(self._wanted.intersection(rows)) if self._wanted else []

    def see(self, row: int, content: dict[str, Any]) -> None:
        """Keep a row."""
        self._rows[row] = content

    def see_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the names of all columns: a row of JSONL need not have each."""
        for content in rows if self._wanted else ():
            if content.keys() != self._columns.keys():
                self._columns.update(dict.fromkeys(content))

    def require(self, paths: Sequence[Path], name: str) -> None:
        """Make sure that the rows of files, which were seen, are those that were scored.

        They may have some further fields at their end, as those of `attach_file`.

        Raises:
            MismatchError: where they are others, or in another order.
        """
        left = [
            part
            for part in self._parts
            if not any(
                dataset_fingerprint(_RowsOfPart(part, rows)) == part.fingerprint
                for fields in self._further_fields()
                for rows in self._without(fields)
            )
        ]
        # As flowdata score reads a file: there, values get the types of their columns.
        opened = _opened(paths) if left else None
        for part in left:
            if opened is None or not any(
                part.fingerprint
                == dataset_fingerprint(run_of(_left(opened, fields), part.start, part.stop))
                for fields in self._further_fields()
            ):
                raise MismatchError(
                    f"{name} has as many rows as the loss table, but rows {part.start:,} to "
                    f"{part.stop - 1:,} are not those that were scored, or in another order: give "
                    "the file that was scored, or key=, the column of its keys; if they are the "
                    "same in another form, scored as tokens, say so by unchecked=True"
                )

    def _further_fields(self) -> Iterator[set[str]]:
        """Fields that may have been added: none, the last, the last two, ..."""
        names = list(next(iter(self._rows.values()), {}))
        for more in range(max(1, min(len(names), _MOST_ADDED + 1))):
            yield set(names[len(names) - more :])

    def _without(self, fields: set[str]) -> Iterator[dict[int, dict[str, Any]]]:
        """The rows that were seen, as they are, and with the columns of all rows."""
        rows = {
            row: {name: value for name, value in content.items() if name not in fields}
            for row, content in self._rows.items()
        }
        yield rows
        columns = dict.fromkeys(name for name in self._columns if name not in fields)
        yield {row: columns | content for row, content in rows.items()}


def _left(opened: Any, fields: set[str]) -> Any:
    return opened.remove_columns([name for name in opened.column_names if name in fields])


class _Part(NamedTuple):
    """Rows [start, stop) of a table, and the fingerprint of their data."""

    start: int
    stop: int
    fingerprint: str


class _RowsOfPart:
    """The rows of a part, of which some are known."""

    def __init__(self, part: _Part, rows: Mapping[int, dict[str, Any]]) -> None:
        self._part, self._rows = part, rows

    def __len__(self) -> int:
        return self._part.stop - self._part.start

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._rows[self._part.start + row]


def _opened(paths: Sequence[Path]) -> Any:
    """The rows as `datasets` reads them; None where it cannot."""
    import datasets

    with paths[0].open("rb") as file:
        kind = "parquet" if file.read(4) == b"PAR1" else "json"
    try:
        return datasets.load_dataset(kind, data_files=[*map(str, paths)], split="train")
    except Exception:  # Each reader raises its own: the file was not scored so.
        return None
