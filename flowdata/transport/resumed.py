"""ResumedStream: a remote file read onwards, from where it was when its connection was lost."""

from collections.abc import Callable
from typing import Any, cast

from flowdata.transport.access import Access, Readable
from flowdata.transport.retrying import retry


class ResumedStream:
    """A file that is opened again after a failure, at the byte that comes next.

    Args:
        open_at: opens the file at a byte.
        url, access: of the shard, for errors and retries.
        body: the file at its beginning, if it is open already.
        seekable: whether what ``open_at`` returns can seek.
    """

    def __init__(
        self,
        open_at: Callable[[int], Readable],
        url: str,
        access: Access,
        body: Readable | None = None,
        *,
        seekable: bool = False,
    ) -> None:
        self._open_at, self._url, self._access = open_at, url, access
        self._body, self._seekable = body, seekable
        self._offset = 0

    def seekable(self) -> bool:
        """Whether `seek` can be called."""
        return self._seekable

    def seek(self, offset: int) -> int:
        """Go on at another byte."""
        if self._body is not None and offset != self._offset:
            try:
                cast(Any, self._body).seek(offset)
            except OSError:
                self.close()
        self._offset = offset
        return offset

    def read(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            ShardError: after as many attempts as are allowed.
        """
        content = retry(lambda: self._read(size), self._url, self._access)
        self._offset += len(content)
        return content

    def _read(self, size: int) -> bytes:
        try:
            if self._body is None:
                self._body = self._open_at(self._offset)
            return self._body.read(size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the connection."""
        body, self._body = self._body, None
        if body is not None:
            body.close()
