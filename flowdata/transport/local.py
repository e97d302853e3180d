"""Shards that are files on this machine."""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Buffer, Readable, Span
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN, Identity
from flowdata.transport.retrying import require_complete


class LocalTransport:
    """A file.

    Args:
        path: of the file.
        file: the file, if it is open already: it may have been removed since.
        identity: what the server said that it was copied from.
    """

    supports_ranges = True

    def __init__(
        self, path: Path, file: BinaryIO | None = None, identity: Identity = UNKNOWN
    ) -> None:
        try:
            # Spans are read whole, so a buffer would only copy them once more.
            self._file = cast(BinaryIO, path.open("rb", buffering=0)) if file is None else file
        except OSError as error:
            raise ShardError(f"there is no shard {path} ({_reason(error, path)})") from error
        self.path, self._identity, self._has_name = path, identity, file is None

    def identity(self) -> Identity:
        """Bytes of the file, not its time, which a copy changes."""
        return self._identity.with_length(os.fstat(self._file.fileno()).st_size)

    def is_whole(self) -> bool:
        """A file has an end."""
        return True

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        """Exactly these bytes, span by span."""
        for offset, size in spans:
            yield self._read_one(offset, size)

    def fetch(self, offset: int, size: int) -> Fetch:
        """One of these spans, to be read by any thread."""
        return Fetch(lambda _: self._read_one(offset, size), str(self.path), Access(retries=0))

    def _read_one(self, offset: int, size: int) -> bytes:
        handle = self._file.fileno()
        content = os.pread(handle, size, offset)
        # One read gives at most 2 GB on Linux, and may give less.
        while len(content) < size and (
            more := os.pread(handle, size - len(content), offset + len(content))
        ):
            content += more
        return require_complete(content, size, offset, str(self.path))

    def stream(self) -> Readable:
        """All bytes from the first on."""
        if self._has_name:
            return cast(Readable, self.path.open("rb"))
        return cast(Readable, io.BufferedReader(_AtOffset(self._file)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        # A data set that is let go of need not be closed.
        if hasattr(self, "_file"):
            self._file.close()


class _AtOffset(io.RawIOBase):
    """An open file with an offset of its own."""

    def __init__(self, file: BinaryIO) -> None:
        # Another handle of the same file: its name may be gone.
        self._handle, self._offset = os.dup(file.fileno()), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = os.pread(self._handle, len(buffer), self._offset)
        buffer[: len(content)] = content
        self._offset += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {
            os.SEEK_SET: 0,
            os.SEEK_CUR: self._offset,
            os.SEEK_END: os.fstat(self._handle).st_size,
        }
        self._offset = start[whence] + offset
        return self._offset

    def tell(self) -> int:
        return self._offset

    def close(self) -> None:
        if not self.closed:
            os.close(self._handle)
        super().close()


def _reason(error: OSError, path: Path) -> str:
    if path.is_dir():
        return f"it is a folder; give its shards: {path}/data-{{000..009}}.tar, or a list of them"
    if "*" in str(path):
        return f"patterns are not expanded; write braces, or sorted(glob.glob({str(path)!r}))"
    return error.strerror or type(error).__name__
