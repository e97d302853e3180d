"""Shards that are compressed: gzip is unpacked, other formats are refused by name."""

import gzip
import io
import zlib
from typing import Any, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Readable

_GZIP = b"\x1f\x8b"
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}

DAMAGED = (OSError, EOFError, zlib.error)
"""What reading damaged content raises, packed or not."""


def decompress(raw: Readable, name: str) -> tuple[Readable, bool]:
    """Return the content of a stream, unpacked if it is gzip, and whether it was.

    Raises:
        ShardError: for bzip2, xz and zstandard.
    """
    if getattr(raw, "seekable", lambda: False)():
        head = raw.read(8)
        cast(Any, raw).seek(0)
        rewound: Readable = raw
    else:
        head = _read_exactly(raw, 8)
        rewound = _Prefixed(head, raw)
    for magic, format_ in _REFUSED.items():
        if head.startswith(magic):
            raise ShardError(f"{name} is compressed by {format_}: unpack it, or use gzip")
    if head.startswith(_GZIP):
        return cast(Readable, gzip.GzipFile(fileobj=cast(Any, rewound))), True
    return rewound, False


def _read_exactly(raw: Readable, size: int) -> bytes:
    content = b""
    while len(content) < size and (part := raw.read(size - len(content))):
        content += part
    return content


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, raw: Readable) -> None:
        self._head, self._raw = head, raw

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self._head:
            return self._raw.read(size)
        part, self._head = self._head[:size], self._head[size:]
        return part

    def close(self) -> None:
        self._raw.close()
        super().close()
