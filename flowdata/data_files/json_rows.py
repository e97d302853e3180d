"""Rows of JSONL: one object a line, which gets further members and keeps its other bytes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json.decoder import JSONDecoder
from typing import Any, BinaryIO

from flowdata.errors import DataFileError

ADVICE = "name another by field=, or replace it by overwrite=True"
ADVICE_OF_DRAWS = "name another for draws by epoch_field=, draw_field= or weight_field="
"""What to do where rows have a field of that name already."""

_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_SHOWN = 80
# So many rows at a time, or so many bytes of them: Python takes many times their text.
_MOST_ROWS = 4096
_MOST_BYTES = 1 << 22


@dataclass
class Rows:
    """Some lines in a row, parsed.

    Attributes:
        first: number of the first row, from 0.
        begins: what stands before the first of them and is no row: a byte order mark.
        lines: each row's line with its end, and with the blank lines before it.
        blank: bytes of blank lines, before each row.
        numbers: of the lines, from 1.
        objects: what is in them.
        after: blank lines after the last row of the file.
    """

    first: int
    begins: bytes = b""
    lines: list[bytes] = field(default_factory=list)
    blank: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    objects: list[dict[str, Any]] = field(default_factory=list)
    after: bytes = b""

    def __len__(self) -> int:
        return len(self.lines)


def read_rows(file: BinaryIO, name: object) -> Iterator[Rows]:
    """The rows of a file, some at a time; blank lines are none.

    Args:
        file: open at its beginning.
        name: of the file, for errors.

    Raises:
        DataFileError: naming the line, for one that is no JSON object.
    """
    rows, taken = Rows(0), 0
    blank: list[bytes] = []
    for number, line in enumerate(file, 1):
        if number == 1:
            rows.begins = _BOM if line.startswith(_BOM) else b""
            line = line[len(rows.begins) :]
            _require_lines(line, name)
        if not line.strip(_BLANK):
            blank.append(line)
            continue
        rows.objects.append(_parsed(line, number, name))
        rows.lines.append(line)
        rows.numbers.append(number)
        rows.blank.append(b"".join(blank))
        blank.clear()
        taken += len(line)
        if len(rows) == _MOST_ROWS or taken >= _MOST_BYTES:
            yield rows
            rows, taken = Rows(rows.first + len(rows)), 0
    rows.after = b"".join(blank)
    yield rows


def with_members(line: bytes, members: bytes) -> bytes:
    """An object with further members at its end: ``"name": value, ...``."""
    body = line.rstrip(_BLANK)
    inside = body[:-1].rstrip(_BLANK)
    comma = b"" if inside.endswith(b"{") else b", "
    return b"".join((inside, comma, members, line[len(inside) :]))


def with_value(line: bytes, name: str, value: bytes) -> bytes:
    """An object with another value for a member that it has, in its place."""
    text = line.decode()
    pieces, end = [], 0
    for found, start, stop in _members(text):
        if found == name:
            pieces += [text[end:start].encode(), value]
            end = stop
    return b"".join((*pieces, text[end:].encode()))


def require_name(name: Any) -> None:
    """Make sure that a field is named by a text.

    Raises:
        TypeError: for anything else.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a field is a text, got {name!r}")


def member(name: str, value: bytes) -> bytes:
    """The text of a member."""
    return json.dumps(name).encode() + b": " + value


def _members(text: str) -> Iterator[tuple[str, int, int]]:
    """The name of each member of an object that is known to be one, and where its value is."""
    decoder = JSONDecoder()
    place = _solid(text, text.index("{") + 1)
    while text[place] != "}":
        name, place = decoder.raw_decode(text, place)
        start = _solid(text, _solid(text, place) + 1)
        _, stop = decoder.raw_decode(text, start)
        yield name, start, stop
        place = _solid(text, stop)
        if text[place] == ",":
            place = _solid(text, place + 1)


def _solid(text: str, place: int) -> int:
    """The next character that is no white space."""
    while text[place] in " \t\r\n":
        place += 1
    return place


def _parsed(line: bytes, number: int, name: object) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataFileError(f"{name}, line {number:,}: it is no UTF-8 ({error.reason})") from error
    except (ValueError, RecursionError) as error:
        raise DataFileError(
            f"{name}, line {number:,}: {_shown(line)} is no JSON object ({error}); JSONL has one "
            "object on each line"
        ) from error
    if isinstance(found, dict):
        return found
    raise DataFileError(
        f"{name}, line {number:,}: {_shown(line)} is no JSON object, but "
        f"{_KINDS.get(type(found), 'a number')}; JSONL has one object on each line"
    )


_KINDS: Mapping[type, str] = {
    list: "a list",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


def _require_lines(line: bytes, name: object) -> None:
    if line.lstrip(_BLANK)[:1] == b"[":
        raise DataFileError(
            f"{name} is one JSON list, or has a list on its first line: JSONL has one object on "
            "each line, as datasets.Dataset.to_json writes it"
        )


def _shown(line: bytes) -> str:
    text = line[: 4 * _SHOWN].decode(errors="replace").strip()
    return repr(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
