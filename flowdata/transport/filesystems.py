"""Shards in anything that fsspec opens: s3, gs, memory, ..."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Buffer, Readable, Span
from flowdata.transport.resumed import ResumedStream
from flowdata.transport.retrying import require_complete, retry
from flowdata.transport.urls import redact


class FsspecTransport:
    """A shard in a file system of fsspec's, with the retries of `Access` for whatever fails."""

    supports_ranges = True

    def __init__(self, url: str, access: Access) -> None:
        import fsspec

        self._url, self._access = url, access
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, **access.storage_options)
        except Exception as error:
            raise ShardError(f"{redact(url)} cannot be opened by fsspec: {error}") from error

    def length(self) -> int | None:
        """Bytes of the shard, None if the file system does not tell."""

        def ask() -> Any:
            with _os_errors():
                return self._files.size(self._path)

        size = retry(ask, self._url, self._access)
        return None if size is None else int(size)

    def read(self, spans: Sequence[Span]) -> list[Buffer]:
        """Exactly these bytes, span by span."""
        starts = [offset for offset, _ in spans]
        ends = [offset + size for offset, size in spans]

        def fetch() -> list[Buffer]:
            with _os_errors():
                # File systems that can, fetch these side by side.
                contents = self._files.cat_ranges(
                    [self._path] * len(spans), starts, ends, on_error="raise"
                )
            return [
                require_complete(content, size, offset, redact(self._url))
                for content, (offset, size) in zip(contents, spans, strict=True)
            ]

        return retry(fetch, self._url, self._access)

    def stream(self) -> Readable:
        """All bytes from the first on."""
        return ResumedStream(self._open_at, self._url, self._access, seekable=True)

    def close(self) -> None:
        """File systems are fsspec's to keep."""

    def _open_at(self, offset: int) -> Readable:
        with _os_errors():
            file = _File(self._files.open(self._path, "rb"))
        if offset:
            file.seek(offset)
        return file


class _File:
    """An open file with failures of one kind."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        with _os_errors():
            content: bytes = self._file.read(size)
            return content

    def seek(self, offset: int) -> None:
        with _os_errors():
            self._file.seek(offset)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._file.close()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Failures as errors that are tried again: file systems raise what their libraries do."""
    try:
        yield
    except (OSError, EOFError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
