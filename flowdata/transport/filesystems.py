"""Shards in anything that fsspec opens: s3, gs, memory, ..."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Access, Buffer, Readable, Span
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN, Identity, place_of
from flowdata.transport.resumed import ResumedStream
from flowdata.transport.retrying import require_complete, retry, without_secrets
from flowdata.transport.signed import SignedRanges
from flowdata.transport.urls import redact

# What file systems call that which changes with the content, and the time of its last change.
_VERSIONS = ("generation", "ETag", "etag", "e_tag", "content_hash", "blob_id", "xet_hash")
_TIMES = ("LastModified", "last_modified", "updated", "modificationTime", "mtime")

T = TypeVar("T")


class FsspecTransport:
    """A shard in a file system of fsspec's, with the retries of `Access` for whatever fails."""

    supports_ranges = True

    def __init__(self, url: str, access: Access) -> None:
        import fsspec

        self._url, self._access = url, access
        self._known, self._signed = UNKNOWN, cast(SignedRanges | None, None)
        self._options: dict[str, Any] = {}
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, **access.storage_options)
        except Exception as error:
            text, cause = without_secrets(error)
            raise ShardError(f"{redact(url)} cannot be opened by fsspec: {text}") from cause
        named: str | Sequence[str] = self._files.protocol
        protocols = {named} if isinstance(named, str) else set(named)
        self._is_google, self._is_hub = "gs" in protocols, "hf" in protocols
        # Those that read ranges by a file that is opened would read MBs ahead of each.
        reads_by_opening = type(self._files).cat_file is fsspec.AbstractFileSystem.cat_file
        if reads_by_opening and not self._files.async_impl:
            self._options["cache_type"] = "none"

    def identity(self) -> Identity:
        """What the file system says of the shard, asked anew."""

        def ask() -> Identity:
            if self._is_hub:
                # A file that is not in the listing of its folder may be newer than that.
                with contextlib.suppress(FileNotFoundError):
                    # Each read looks into the listing, whose pages are asked for once, here.
                    self._files.info(self._path)
                    anew = self._files.info(self._path, refresh=True, expand_info=True)
                    return self._identity_of(anew)
            # Listings are kept, and may be from before a change.
            with contextlib.suppress(Exception):
                self._files.invalidate_cache(self._path)
            return self._identity_of(self._files.info(self._path))

        found = retry(ask, self._url, self._access)
        self._known = self._known.joined(found, redact(self._url), when="it was first read")
        return self._known

    def _identity_of(self, info: Mapping[str, Any]) -> Identity:
        from fsspec.implementations.local import LocalFileSystem

        size = info.get("size")
        length = -1 if size is None else int(size)
        # A copy on a disk has another time.
        if not self._access.check_version or isinstance(self._files, LocalFileSystem):
            return Identity(length)
        etag, modified = (
            next((str(info[name]) for name in names if info.get(name)), "")
            for names in (_VERSIONS, _TIMES)
        )
        if not (etag or modified):
            with contextlib.suppress(NotImplementedError):
                modified = str(self._files.modified(self._path))
        return Identity(length, etag, modified, place_of(self._url))

    def is_whole(self) -> bool:
        """Whether the file system told the length."""
        return self._known.length >= 0

    def read(self, spans: Sequence[Span]) -> list[Buffer]:
        """Exactly these bytes, span by span."""
        starts = [offset for offset, _ in spans]
        ends = [offset + size for offset, size in spans]
        # Those that ask side by side would do so for all at once, and servers refuse that many.
        bounded = {"batch_size": self._access.connections} if self._files.async_impl else {}

        def fetch() -> list[Buffer]:
            # File systems that can, fetch these side by side.
            contents = self._of_known(
                lambda **version: self._files.cat_ranges(
                    [self._path] * len(spans),
                    starts,
                    ends,
                    on_error="raise",
                    **bounded,
                    **self._options,
                    **version,
                )
            )
            return [
                require_complete(content, size, offset, redact(self._url))
                for content, (offset, size) in zip(contents, spans, strict=True)
            ]

        return retry(fetch, self._url, self._access)

    def fetch(self, offset: int, size: int) -> Fetch:
        """One of these spans, to be read by any thread."""

        if self._signed is None:
            self._signed = SignedRanges(
                self._files, self._path, self._url, self._access, self._known
            )
        signed = self._signed

        def attempt(fetch: Fetch) -> Buffer:
            found = signed.attempt(offset, size, fetch)
            if found is not None:
                return found
            content: bytes = self._of_known(
                lambda **version: self._files.cat_file(
                    self._path, start=offset, end=offset + size, **self._options, **version
                )
            )
            return require_complete(content, size, offset, redact(self._url))

        return Fetch(attempt, self._url, self._access)

    def stream(self) -> Readable:
        """All bytes from the first on."""
        if self._known == UNKNOWN:
            self.identity()
        return ResumedStream(
            self._open_at,
            self._url,
            self._access,
            length=lambda: self._known.length,
            seekable=True,
        )

    def close(self) -> None:
        """File systems are fsspec's to keep."""

    def _of_known(self, read: Callable[..., T]) -> T:
        """Read what is known, and of Google Cloud Storage no other generation."""
        if not (self._is_google and self._known.etag.isdigit()):
            return read()
        try:
            return read(generation=self._known.etag)
        except FileNotFoundError:
            # If it is another that is there, that is the error.
            self.identity()
            raise

    def _open_at(self, offset: int) -> Readable:
        # gcsfs would ask for each header by a request of its own.
        ahead = {"cache_type": "readahead"} if self._is_google else {}
        file = self._of_known(
            lambda **version: self._files.open(self._path, "rb", **ahead, **version)
        )
        if offset:
            file.seek(offset)
        return cast(Readable, file)
