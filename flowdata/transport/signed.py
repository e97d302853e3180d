"""Ranges of an object store by URLs that its file system signs, and by our client of HTTP.

Those of S3 so cost a third of the CPU of s3fs's own, are asked for of the known version alone, and
can be abandoned.
"""

import collections
import time
from dataclasses import replace
from typing import Any

from flowdata.errors import ShardError
from flowdata.transport.access import AbandonedError, Access, Buffer, NoRangesError
from flowdata.transport.fetching import Fetch
from flowdata.transport.http import HttpTransport
from flowdata.transport.identity import Identity, place_of

_SECONDS = 3600
"""How long a signature holds; it is made anew after half of that."""
FAILURES: collections.Counter[tuple[Any, str]] = collections.Counter()
"""How often they led nowhere since they last led to an object, by file system and bucket: where it
has no keys, or another certificate, or where the bucket's rules say no."""
_GIVEN_UP = 3
_NOT_FOUND = 404


class SignedRanges:
    """The ranges of an object.

    Args:
        files, path: of fsspec.
        url: for errors, and whose identity is known.
        known: of its content.
    """

    def __init__(self, files: Any, path: str, url: str, access: Access, known: Identity) -> None:
        self._files, self._path, self._url = files, path, url
        # Headers of one's own are for servers of one's own.
        self._access = replace(access, headers={})
        # Versions of a file system may be others than those of HTTP: generations, hashes.
        etag = known.etag if known.etag.startswith('"') else ""
        self._known = Identity(known.length, etag, "", place_of(url) if etag else "")
        self._store = files, path.partition("/")[0]
        self._made: tuple[float, HttpTransport] | None = None

    def attempt(self, offset: int, size: int, fetch: Fetch) -> Buffer | None:
        """The bytes; None where they cannot be had so, but perhaps by the file system."""
        if FAILURES[self._store] >= _GIVEN_UP:
            return None
        try:
            content = self._signed().attempt(offset, size, fetch)
        except (ShardError, AbandonedError):
            raise
        except Exception as error:
            if self._may_pass(error):
                raise
            # The file system says it if an object is not there.
            if not fetch.abandoned and getattr(error, "status", 0) != _NOT_FOUND:
                FAILURES[self._store] += 1
            if self._made is not None:
                self._made[1].close()
            self._made = None
            return None
        FAILURES[self._store] = 0
        return content

    def _may_pass(self, error: Exception) -> bool:
        """Whether it is made again in the same way: signed URLs led there before."""
        refused = isinstance(error, NoRangesError) or getattr(error, "permanent", False)
        return not refused and FAILURES.get(self._store) == 0

    def _signed(self) -> HttpTransport:
        now = time.monotonic()
        made = self._made
        if made is None or now > made[0]:
            known = self._known if made is None else made[1].known
            url = self._files.sign(self._path, expiration=_SECONDS)
            made = now + _SECONDS / 2, HttpTransport(url, self._access, known, name=self._url)
            self._made = made
        return made[1]
