"""Records: what was measured, a line of JSON each, so that a run that was cut off goes on."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]
ENDING = ".records.jsonl"
NAMED = "named"
"""The kind of a value that is known by its name."""


class Records:
    """Lines that several processes append to one file.

    Args:
        file: where new ones go; those that it has are read.
        others: folders, whose files of records are read as well.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "some.records.jsonl"
    >>> Records(path).recall("two", lambda: 1 + 1)
    2
    >>> Records(path).recall("two", lambda: 1 / 0)
    2
    """

    def __init__(self, file: Path, others: Iterable[Path] = ()) -> None:
        self.file = file
        self._others = [part for folder in others for part in sorted(folder.rglob(f"*{ENDING}"))]

    def __iter__(self) -> Iterator[Record]:
        """All, as they are now."""
        for file in (*self._others, self.file):
            yield from _read(file)

    def of(self, kind: str) -> Iterator[Record]:
        """Those of a kind, as they are now."""
        return (record for record in self if record["kind"] == kind)

    def append(self, record: Record) -> None:
        """Keep a record, at once."""
        append(self.file, record)

    def recall(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of this name; it is measured, and kept at once, if it is not known."""
        if name not in self._named:
            self._named[name] = measure()
            self.append({"kind": NAMED, "name": name, "value": self._named[name]})
        return self._named[name]

    @functools.cached_property
    def _named(self) -> dict[str, Any]:
        return {record["name"]: record["value"] for record in self.of(NAMED)}


def append(file: Path, record: Record) -> None:
    """Add a line to a file; lines of several processes do not mix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # The first newline ends what a process that was killed may have left of a line.
    line = f"\n{json.dumps(record)}\n".encode()
    # One write of a file that is opened for appending stays in one piece.
    place = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(place, line)
    finally:
        os.close(place)


def _read(file: Path) -> Iterator[Record]:
    if file.exists():
        for line in file.read_text().splitlines():
            # An empty line, or a part of one that a process was killed at.
            with contextlib.suppress(ValueError):
                found = json.loads(line)
                # Files from before there were kinds have pairs of a name and its value.
                if isinstance(found, list):
                    found = {"kind": NAMED, "name": found[0], "value": found[1]}
                yield found
