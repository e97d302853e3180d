"""ResumedStream: a remote file read onwards, from where it was when its connection was lost."""

from collections.abc import Callable
from typing import Any, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Readable
from flowdata.transport.retrying import Attempts
from flowdata.transport.urls import redact

# Bytes after which a failure is a new one: a server may send one byte and hang up for ever.
_PROGRESS = 1 << 16


class ResumedStream:
    """A file that is opened again after a failure, at the byte that comes next.

    Args:
        open_at: opens the file at a byte.
        url, access: of the shard, for errors and retries.
        body: the file at its beginning, if it is open already.
        length: bytes of the file as far as is known now, else -1.
        seekable: whether what ``open_at`` returns can seek.
    """

    def __init__(
        self,
        open_at: Callable[[int], Readable],
        url: str,
        access: Access,
        body: Readable | None = None,
        *,
        length: Callable[[], int] = lambda: -1,
        seekable: bool = False,
    ) -> None:
        self._open_at, self._url = open_at, url
        self._body, self._seekable, self._length = body, seekable, length
        self._offset = 0
        self._attempts = Attempts(url, access)
        self._failed_at = 0
        self.ended = False
        """Whether all was read."""

    def tell(self) -> int:
        """Offset of the next byte."""
        return self._offset

    def seekable(self) -> bool:
        """Whether `seek` can be called."""
        return self._seekable

    def seek(self, offset: int) -> int:
        """Go on at another byte."""
        if self._body is not None and offset != self._offset:
            try:
                cast(Any, self._body).seek(offset)
            except Exception:
                self.close()
        self._offset = offset
        return offset

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ShardError: after as many attempts as are allowed.
        """
        while True:
            try:
                content = self._read(size)
            except Exception as error:
                self.close()
                if self._offset >= self._failed_at + _PROGRESS:
                    self._attempts.succeeded()
                self._failed_at = self._offset
                self._attempts.failed(error)
            except BaseException:
                self.close()
                raise
            else:
                self._offset += len(content)
                return content

    def _read(self, size: int) -> bytes:
        if self._body is None:
            self._body = self._open_at(self._offset)
        content = self._body.read(size)
        length = self._length()
        if size and not content and self._offset < length:
            raise EOFError(f"it ended at byte {self._offset:,} of {length:,}")
        if content and 0 <= length < self._offset + len(content):
            raise ShardError(
                f"{redact(self._url)} goes on after the {length:,} bytes that it has: it was "
                "changed. Restore the shard, or score it again"
            )
        self.ended = bool(size) and not content
        return content

    def close(self) -> None:
        """Let go of the connection."""
        body, self._body = self._body, None
        if body is not None:
            body.close()
