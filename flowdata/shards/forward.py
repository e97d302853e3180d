"""ForwardStream: bytes that can only be read onwards, and only so many at once."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from flowdata.errors import ShardError

_SKIPPED = 1 << 20
_PACKED = 1 << 16
_MAGIC: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": lambda raw: _Unpacked(raw, bz2.BZ2Decompressor),
    b"\xfd7zXZ\x00": lambda raw: _Unpacked(raw, lzma.LZMADecompressor),
}
_ZSTD = b"\x28\xb5\x2f\xfd"

BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading damaged content raises, packed or not."""


class Readable(Protocol):
    """What is needed of a file."""

    def read(self, size: int, /) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class ForwardStream:
    """A file for headers and for samples, which goes forward and never back.

    A tar file that leads backwards, or asks for a header larger than ``largest``, is corrupt or
    hostile: it raises instead of looping for ever or filling the memory.

    Args:
        raw: where the bytes come from; it is sought in only if it says that it is seekable.
        name: what errors call it.
        largest: bytes that may be read at once.
    """

    def __init__(self, raw: Readable, name: str, *, largest: int | None = None) -> None:
        self._raw = raw
        self._name = name
        self._largest = largest
        self._position = 0
        self._seekable = bool(getattr(raw, "seekable", lambda: False)())
        self.last = b""
        """What the last `read` returned."""

    def tell(self) -> int:
        """Bytes that were passed."""
        return self._position

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end."""
        if size < 0 or (self._largest is not None and size > self._largest):
            raise ShardError(
                f"{self._name} asks for {size:,} bytes of header at byte {self._position:,}: it "
                "is corrupt, or made to do harm"
            )
        parts = []
        while size > 0 and (part := self._raw.read(size)):
            parts.append(part)
            size -= len(part)
            self._position += len(part)
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        return self.last

    def seek(self, position: int) -> int:
        """Go on to a position; short of it when the bytes end before."""
        if position < self._position:
            raise ShardError(
                f"{self._name} leads from byte {self._position:,} back to {position:,}: it is "
                "corrupt, or made to do harm"
            )
        if self._seekable:
            self._position = cast(Any, self._raw).seek(position)
            return self._position
        while self._position < position:
            part = self._raw.read(min(position - self._position, _SKIPPED))
            if not part:
                break
            self._position += len(part)
        return self._position

    def close(self) -> None:
        """Close what the bytes come from."""
        self._raw.close()


def decompressed(raw: Readable, name: str) -> tuple[Readable, bool]:
    """The content of a gzip, bz2 or xz stream, and whether it was one.

    Raises:
        ShardError: for zstandard, which has no reader here.
    """
    if getattr(raw, "seekable", lambda: False)():
        head = raw.read(8)
        cast(Any, raw).seek(0)
        whole: Readable = raw
    else:
        head = _exactly(raw, 8)
        whole = _Prefixed(head, raw)
    if head.startswith(_ZSTD):
        raise ShardError(f"{name} is compressed by zstandard: unpack it, or use gzip")
    for magic, opener in _MAGIC.items():
        if head.startswith(magic):
            return cast(Readable, opener(whole)), True
    return whole, False


def _exactly(raw: Readable, size: int) -> bytes:
    content = b""
    while len(content) < size and (part := raw.read(size - len(content))):
        content += part
    return content


class _Unpacked:
    """The content of bz2 or xz streams, one after another.

    Those of the standard library take a damaged one behind the first for the end.
    """

    def __init__(self, raw: Readable, decompressor: Callable[[], Any]) -> None:
        self._raw, self._new = raw, decompressor
        self._now = decompressor()

    def read(self, size: int) -> bytes:
        content = b""
        while not content and size > 0:
            packed = b""
            if self._now.eof:
                packed = self._next_stream()
                if not packed:
                    return b""
                self._now = self._new()
            elif self._now.needs_input:
                packed = self._raw.read(_PACKED)
                if not packed:
                    raise EOFError("a compressed stream ends before its end mark")
            content = self._now.decompress(packed, size)
        return content

    def _next_stream(self) -> bytes:
        """The beginning of what follows a stream and its padding."""
        packed: bytes = self._now.unused_data.lstrip(b"\0")
        while not packed and (more := self._raw.read(_PACKED)):
            packed = more.lstrip(b"\0")
        return packed

    def close(self) -> None:
        self._raw.close()


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
