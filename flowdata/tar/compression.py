"""Shards and members that are compressed: gzip is unpacked, within a limit; others are refused."""

import gzip
import io
import zlib
from typing import Any, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Readable

_GZIP = b"\x1f\x8b"
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
# Whatever this small unpacks to is harmless, however well it was compressed.
_HARMLESS = 1 << 28
# Bytes unpacked before they are counted.
_COUNTED = 1 << 22

DAMAGED = (OSError, EOFError, zlib.error)
"""What reading damaged content raises, packed or not."""


def decompress(raw: Readable, name: str, *, max_expansion: float = 100.0) -> tuple[Readable, bool]:
    """Return the content of a stream, unpacked if it is gzip, and whether it was.

    Args:
        raw: the stream.
        name: what errors call it.
        max_expansion: see `Access`.

    Raises:
        ShardError: for bzip2, xz and zstandard, and, as it is read, for what expands beyond.
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
        return _Unpacked(rewound, name, max_expansion), True
    return rewound, False


def largest_unpacked(packed: int, max_expansion: float) -> int:
    """Bytes that so many compressed ones may unpack to."""
    return max(_HARMLESS, int(packed * max_expansion))


def gunzip(content: bytes, max_expansion: float) -> bytes:
    """Unpack a member.

    Raises:
        ShardError: for one that expands beyond its limit.
    """
    largest = largest_unpacked(len(content), max_expansion)
    unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(largest + 1)
    require_harmless(len(content), len(unpacked), max_expansion)
    return unpacked


def require_harmless(packed: int, unpacked: int, max_expansion: float) -> None:
    """Check what a member unpacks to.

    Raises:
        ShardError: if that is beyond its limit.
    """
    largest = largest_unpacked(packed, max_expansion)
    if unpacked > largest:
        raise ShardError(
            f"its {packed:,} bytes unpack to more than {largest:,}: it is made to do harm; if not, "
            f"give decode() a max_expansion above {max_expansion:g}"
        )


class _Unpacked:
    """A gzip stream as it is unpacked."""

    def __init__(self, raw: Readable, name: str, max_expansion: float) -> None:
        self._packed = _Counted(raw)
        self._file = gzip.GzipFile(fileobj=cast(Any, self._packed))
        self._name, self._max_expansion, self._unpacked = name, max_expansion, 0

    def read(self, size: int) -> bytes:
        content = self._file.read(min(size, _COUNTED))
        self._unpacked += len(content)
        largest = largest_unpacked(self._packed.count, self._max_expansion)
        if self._unpacked > largest:
            raise ShardError(
                f"{self._name} unpacks from {self._packed.count:,} to over {largest:,} bytes: it "
                "is made to do harm; if not, set a max_expansion above "
                f"{self._max_expansion:g}"
            )
        return content

    def close(self) -> None:
        self._file.close()


class _Counted:
    """A stream whose bytes are counted."""

    def __init__(self, raw: Readable) -> None:
        self._raw, self.count = raw, 0

    def read(self, size: int) -> bytes:
        content = self._raw.read(size)
        self.count += len(content)
        return content

    def close(self) -> None:
        self._raw.close()


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
