"""ForwardStream: bytes that can only be read onwards, and only so many at once."""

from typing import Any, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Readable

_SKIPPED = 1 << 20


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
        self._offset = 0
        self._seekable = bool(getattr(raw, "seekable", lambda: False)())
        self.last = b""
        """What the last `read` returned."""

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._offset

    def read(self, size: int) -> bytes:
        """The next bytes; fewer only at the end."""
        if size < 0 or (self._largest is not None and size > self._largest):
            raise ShardError(
                f"{self._name} asks for {size:,} bytes of header at byte {self._offset:,}: it "
                "is corrupt, or made to do harm"
            )
        parts = []
        while size > 0 and (part := self._raw.read(size)):
            parts.append(part)
            size -= len(part)
            self._offset += len(part)
        self.last = parts[0] if len(parts) == 1 else b"".join(parts)
        return self.last

    def seek(self, offset: int) -> int:
        """Go on to a later byte; short of it when the bytes end before."""
        if offset < self._offset:
            raise ShardError(
                f"{self._name} leads from byte {self._offset:,} back to {offset:,}: it is "
                "corrupt, or made to do harm"
            )
        if self._seekable:
            self._offset = cast(Any, self._raw).seek(offset)
            return self._offset
        while self._offset < offset:
            part = self._raw.read(min(offset - self._offset, _SKIPPED))
            if not part:
                break
            self._offset += len(part)
        return self._offset

    def close(self) -> None:
        """Close what the bytes come from."""
        self._raw.close()
