"""Shards that are files on this machine."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from flowdata.errors import ShardError
from flowdata.transport.access import Buffer, Readable, Span
from flowdata.transport.retrying import require_complete


class LocalTransport:
    """A file."""

    supports_ranges = True

    def __init__(self, path: Path) -> None:
        try:
            # Spans are read whole, so a buffer would only copy them once more.
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ShardError(f"there is no shard {path} ({_reason(error, path)})") from error
        self._path = path

    def length(self) -> int | None:
        """Bytes of the file."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, spans: Sequence[Span]) -> Iterator[Buffer]:
        """Exactly these bytes, span by span."""
        for offset, size in spans:
            self._file.seek(offset)
            content = self._file.read(size) or b""
            # One read gives at most 2 GB on Linux, and may give less.
            while len(content) < size and (more := self._file.read(size - len(content))):
                content += more
            yield require_complete(content, size, offset, str(self._path))

    def stream(self) -> Readable:
        """All bytes from the first on."""
        return cast(Readable, self._path.open("rb"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _reason(error: OSError, path: Path) -> str:
    if path.is_dir():
        return f"it is a folder; give its shards: {path}/data-{{000..009}}.tar, or a list of them"
    if "*" in str(path):
        return f"patterns are not expanded; write braces, or sorted(glob.glob({str(path)!r}))"
    return error.strerror or type(error).__name__
