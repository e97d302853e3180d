"""Identity: what one content of a URL is told from another by."""

from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import xxhash

from flowdata.errors import ShardError
from flowdata.transport.urls import redact

_LINE = "\n"


@dataclass(frozen=True)
class Identity:
    """What a server says of the content of a shard; empty, or -1, where it is not known.

    Attributes:
        length: bytes.
        etag: that of HTTP, or what an object store has in its place (a generation, a hash).
        modified: time of the last modification, as the server writes it.
        place: hash of where that was said: servers give equal contents different ETags.
    """

    length: int = -1
    etag: str = ""
    modified: str = ""
    place: str = ""

    @classmethod
    def parse(cls, length: int, version: str) -> "Identity":
        """That of a shard, by the length and the `version` in an index."""
        place, etag, modified = [*version.split(_LINE), "", "", ""][:3]
        return cls(length, etag, modified, place)

    @property
    def version(self) -> str:
        """All but the length, in one text; empty where nothing is known."""
        known = self.etag or self.modified
        return _LINE.join((self.place, self.etag, self.modified)) if known else ""

    def with_length(self, length: int) -> "Identity":
        """The same, of this length."""
        return replace(self, length=length)

    def validator(self, place: str) -> str:
        """What If-Range can be given at a place, if anything: no weak ETag (RFC 9110, 13.1.5)."""
        if self.place != place or self.etag.startswith("W/"):
            return ""
        return self.etag or self.modified

    def without_version(self) -> "Identity":
        """The length alone."""
        return Identity(self.length)

    def joined(self, found: "Identity", name: str, *, when: str = "it was indexed") -> "Identity":
        """This and what was found now; ``when`` says for errors when this was said.

        Raises:
            ShardError: when they contradict each other: the shard was changed.
        """
        if self.length >= 0 and found.length >= 0 and self.length != found.length:
            raise ShardError(
                f"{name} has {found.length:,} bytes, but {self.length:,} when {when}: restore the "
                "shard, or score it again"
            )
        if (then := self._contradicts(found)) is not None:
            raise changed(name, f"its {then[0]} is {then[2]}, but was {then[1]} when {when}")
        length = max(self.length, found.length)
        if not found.version:
            return self.with_length(length)
        # Of two places the one that answers now.
        if self.place not in ("", found.place):
            return replace(found, length=length)
        return Identity(
            length, found.etag or self.etag, found.modified or self.modified, found.place
        )

    def _contradicts(self, found: "Identity") -> tuple[str, str, str] | None:
        """What differs, and its values; None where nothing does that can be compared."""
        if self.place != found.place:
            return None
        if self.etag and found.etag:
            # By the weak comparison of RFC 9110: bytes that are sent compressed have W/.
            differ = self.etag.removeprefix("W/") != found.etag.removeprefix("W/")
            return ("ETag", self.etag, found.etag) if differ else None
        if self.modified and found.modified and self.modified != found.modified:
            return "time of modification", self.modified, found.modified
        return None


UNKNOWN = Identity()


def changed(name: str, how: str) -> ShardError:
    """The error of a shard whose content is another."""
    return ShardError(
        f"{name} was changed: {how}. Restore the shard, or score it again; if its content is the "
        "same, uploaded anew or from another server, use Access(check_version=False)"
    )


def place_of(url: str) -> str:
    """A hash of a URL's host and path: not of its query, which may hold a signature of today."""
    parts = urlsplit(redact(url))
    host = parts.netloc.rpartition(":")[0] or parts.netloc
    return xxhash.xxh3_64_hexdigest(f"{parts.scheme}://{host}{parts.path}".encode())
