"""Rows of data as people read them: chats turn by turn, and nothing that a page would obey."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOKENS = ("input_ids", "labels", "attention_mask")
_FEW = 16
"""Numbers of a longer list that are shown."""
_ENDS = 12
"""Turns of a longer chat that are shown, at its begin and at its end."""

# What moves, hides or ends text: control characters, marks of direction, halves of characters.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\ufff9-\ufffb\ufffe\uffff]|[\U000e0000-\U000e007f]"
)
_IMAGES = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF8": "image/gif",
}


@dataclass(frozen=True)
class Field:
    """A column of a row, or a turn of a chat.

    Attributes:
        name: the column, or who speaks.
        text: what a reader sees; characters that cannot be seen are named.
        image: bytes of a picture that browsers show, and what it is.
    """

    name: str
    text: str
    image: tuple[str, bytes] | None = None


def visible(text: str) -> str:
    """A text with a sign in place of each character that could not be seen, or written.

    >>> visible("tab\\tand\\x00zero, \\u202egnirts")
    'tab\\tand␀zero, ⟨U+202E⟩gnirts'
    """
    return _HIDDEN.sub(_sign, text.replace("\r\n", "\n"))


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def as_text(row: Mapping[str, Any]) -> str:
    """A row as one text: its texts, chats turn by turn, without token ids."""
    shown = {name: value for name, value in row.items() if name not in _TOKENS} or row
    texts = {name: _as_text(value) for name, value in shown.items()}
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "\n".join(f"{name}: {text}" for name, text in texts.items())


def _as_text(value: Any) -> str:
    if (turns := _turns(value)) is not None:
        return "\n".join(f"{name}: {text}" for name, text in turns)
    return _plain(value)


def fields_of(row: Mapping[str, Any], columns: Sequence[str]) -> list[Field]:
    """Some columns of a row, each chat as its turns."""
    found: list[Field] = []
    for column in columns:
        turns = _turns(row[column])
        if turns is None:
            found.append(_field(column, row[column]))
            continue
        # Which of several chats a turn is of.
        of_column = f"{column}, " if len(columns) > 1 else ""
        fields = [Field(visible(f"{of_column}{name}"), visible(text)) for name, text in turns]
        if len(fields) > 2 * _ENDS:
            between = Field("…", f"{len(fields) - 2 * _ENDS:,} more turns")
            fields = [*fields[:_ENDS], between, *fields[-_ENDS:]]
        found += fields
    return found


def _field(column: str, value: Any) -> Field:
    data = _bytes_of(value)
    if data is None:
        return Field(visible(column), visible(_plain(value)))
    kind = next((kind for begin, kind in _IMAGES.items() if data.startswith(begin)), None)
    image = None if kind is None else (kind, data)
    return Field(visible(column), f"{kind or 'bytes'}, {len(data):,} bytes", image)


def _bytes_of(value: Any) -> bytes | None:
    """The bytes of a value that is some, also as ``datasets`` keeps images and sounds."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        value = value["bytes"]
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


def _turns(value: Any) -> list[tuple[str, str]] | None:
    """Who speaks, and what is said, if a value is a chat."""
    if not isinstance(value, list) or not value:
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            return None
        # As most have them, and as those that ShareGPT began.
        name, said = ("role", "content") if "role" in turn else ("from", "value")
        if name not in turn or said not in turn:
            return None
        known = {
            key: item for key, item in turn.items() if key not in (name, said) and item is not None
        }
        text = "" if turn[said] is None else _parts(turn[said])
        more = f"\n{_plain(known)}" if any(known.values()) else ""
        turns.append((str(turn[name]), (text + more).lstrip("\n")))
    return turns


def _parts(content: Any) -> str:
    """What a turn says, whose content may be a list of texts and pictures."""
    if isinstance(content, list) and content and all(_is_part(part) for part in content):
        return "\n".join(
            _plain(part["text"]) if part.get("text") is not None else f"[{part.get('type')}]"
            for part in content
        )
    return _plain(content)


def _is_part(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("type"), str)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if (data := _bytes_of(value)) is not None:
        return f"{len(data):,} bytes"
    if isinstance(value, list) and len(value) > _FEW and isinstance(value[0], int | float):
        return f"[{', '.join(map(str, value[:_FEW]))}, … {len(value):,} numbers]"
    if not isinstance(value, list | tuple | Mapping | int | float | None):
        return str(value)
    try:
        return json.dumps(value, default=_otherwise, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _otherwise(value: Any) -> str:
    data = _bytes_of(value)
    return str(value) if data is None else f"{len(data):,} bytes"
