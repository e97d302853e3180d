"""Whether rows of a file are those that a loss table was scored over: some of them, or all."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowdata.errors import MismatchError
from flowdata.table.content import MOST_BYTES, RowsHash, is_of_list, other_content
from flowdata.table.data_columns import run_of
from flowdata.table.fingerprint import dataset_fingerprint, rows_read
from flowdata.table.origins import TAKEN, parts_of, size_of
from flowdata.table.provenance import CONTENT, Provenance

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
        self._position = start = 0
        for part in parts_of(provenance):
            stop = start + size_of(part)
            if TAKEN not in part and part["data_fingerprint"] is not None:
                known = part["data_fingerprint"], part.get(CONTENT)
                self._parts.append(_Part(start, stop, *known, RowsHash()))
                self._wanted.update(start + row for row in rows_read(stop - start))
            start = stop

    def wanted(self, rows: range) -> list[int]:
        """Which of the next rows are to be seen."""
        return sorted(self._wanted.intersection(rows)) if self._wanted else []

    def see(self, row: int, content: dict[str, Any]) -> None:
        """Keep a row."""
        self._rows[row] = content

    def see_columns(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the names of all columns, as a row of JSONL need not have each, and hash rows."""
        for content in rows if self._wanted else ():
            if content.keys() != self._columns.keys():
                self._columns.update(dict.fromkeys(content))
        for part in self._parts:
            if is_of_list(part.content):
                first, last = part.start - self._position, part.stop - self._position
                for content in rows[max(first, 0) : max(last, 0)]:
                    part.seen.add(content)
        self._position += len(rows)

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
        of_columns = [part.content and not is_of_list(part.content) for part in self._parts]
        all_of_them = any(of_columns) and sum(path.stat().st_size for path in paths) <= MOST_BYTES
        # As flowdata score reads a file: there, values get the types of their columns.
        opened = _opened(paths) if left or all_of_them else None
        for part in self._parts:
            found = None if opened is None else self._find_run(opened, part)
            if (part in left and found is None) or self._is_edited(part, found):
                raise MismatchError(
                    f"{name} has as many rows as the loss table, but rows {part.start:,} to "
                    f"{part.stop - 1:,} are not those that were scored, or in another order: give "
                    "the file that was scored, or key=, the column of its keys; if they are the "
                    "same in another form, scored as tokens, say so by unchecked=True"
                )

    def _find_run(self, opened: Any, part: "_Part") -> Any:
        """The rows of a part as `datasets` reads them, if these are what some of them tell."""
        for fields in self._further_fields() if part.stop <= len(opened) else ():
            run = run_of(_left(opened, fields), part.start, part.stop)
            if dataset_fingerprint(run) == part.fingerprint:
                return run
        return None

    def _is_edited(self, part: "_Part", run: Any) -> bool:
        """Whether rows are others that were not looked at, as far as a hash of all tells."""
        if is_of_list(part.content):
            same = dataset_fingerprint(_RowsOfPart(part, self._rows)) == part.fingerprint
            return same and self._position > 0 and part.seen.text() not in (None, part.content)
        return run is not None and other_content(part.content, run) is not None

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
    """Rows [start, stop) of a table, the hashes of their data, and of what is seen of a file."""

    start: int
    stop: int
    fingerprint: str
    content: str | None
    seen: RowsHash


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
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(kind, data_files=[*map(str, paths)], split="train")
    except Exception:  # Each reader raises its own: the file was not scored so.
        return None
    finally:
        if shown:
            datasets.enable_progress_bars()
