"""Keys of samples as UTF-8 can hold them: file names of tar headers are any bytes."""

import re
from typing import Any

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
