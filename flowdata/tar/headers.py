"""Members of a tar stream, by its headers, whose words are checked before they are believed."""

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from flowdata.errors import ShardError
from flowdata.tar.compression import DAMAGED
from flowdata.tar.forward import ForwardStream

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDING = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_SPARSE = "sparse map"
_LARGEST_EXTENSION = 1 << 20
_LARGEST_MEMBER = 1 << 60
# Matching a name takes time quadratic in its length; paths of Linux are no longer.
_LONGEST_NAME = 4096


# A header as almost all are written: name, size, checksum, kind, prefix.
_USUAL = re.compile(
    rb"(.{100})(?:[0-7]{7}\0){3}([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 (.).{172}"
    rb"(?:[0-7]{7}\0|\0{8}){2}(.{155})",
    re.DOTALL,
)


class Header(NamedTuple):
    """What counts of a header."""

    name: str
    kind: bytes
    size: int


class Member(NamedTuple):
    """A file in a tar stream: its first header, and its content."""

    name: str
    offset: int
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.start + padded(self.size)


def members(stream: ForwardStream, name: str) -> Iterator[Member]:
    """The files in a tar stream, up to its end mark or its last byte.

    They are those of tarfile, which is asked about single headers only: it calls itself for each
    that extends another, needs quadratic time for some (CVE-2024-6232), and keeps global ones.

    Raises:
        ShardError: for a stream that is no tar file, is cut off, or has a header that is corrupt
            or made to do harm.
    """
    try:
        yield from _members(stream, name)
    except DAMAGED as error:
        raise ShardError(
            f"{name} is corrupt at byte {stream.tell():,} ({error}); copy it again"
        ) from error


def _members(stream: ForwardStream, name: str) -> Iterator[Member]:
    said: dict[str, str] = {}
    first: int | None = None
    extending = False
    last = "the beginning"
    while (header := _header(stream, name, last)) is not None:
        offset = stream.tell() - BLOCK
        if header.kind in _EXTENDING:
            body = _body(header, stream, name)
            found = _said(header, body, f"{name} has at byte {offset:,}")
            if header.kind != tarfile.XGLTYPE:
                # Of several headers that say the same, tarfile applies the first last.
                said = found | said
                first = offset if first is None else first
            extending = True
            continue
        path, size = header.name, header.size
        if said:
            path, size = said.get("path", path), int(said.get("size", size))
        _check(header, path, size, said, name)
        member = Member(path, offset if first is None else first, stream.tell(), size)
        # Links, folders and devices have no content here; a kind that nobody knows may have some.
        if header.kind in tarfile.REGULAR_TYPES:
            _pass(stream, member, name)
            yield member
        elif header.kind not in tarfile.SUPPORTED_TYPES:
            _pass(stream, member, name)
        said, first, extending, last = {}, None, False, repr(path)
    if extending:
        raise ShardError(
            f"{name} is cut off at byte {stream.tell():,}, after {last}: copy it again"
        )


def usual(block: bytes) -> Header | None:
    """A header as almost all are written, None for others; tarfile takes ten times as long."""
    match = _USUAL.match(block)
    # The checksum is the sum of all bytes, with its own field taken for eight spaces.
    if match is None or int(match[3], 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name, kind = match[1].split(b"\0", 1)[0], match[4]
    if match[5][0] and kind not in tarfile.GNU_TYPES:
        name = match[5].split(b"\0", 1)[0] + b"/" + name
    # Before POSIX a folder was a file whose name ends so.
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE
    return Header(_decoded(name), kind, int(match[2], 8))


def _header(stream: ForwardStream, name: str, last: str) -> Header | None:
    """The next header, None at the end."""
    offset = stream.tell()
    block = stream.read(BLOCK)
    if not block and offset == 0:
        raise ShardError(f"{name} is empty: 0 bytes")
    if not block or block == ZEROS:
        return None
    if len(block) < BLOCK:
        raise ShardError(
            f"{name} is cut off at byte {stream.tell():,}, after {last}; it must be a tar file: "
            "copy it again"
        )
    if (header := usual(block)) is not None:
        return header
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return Header(info.name, info.type, info.size)
    except (tarfile.HeaderError, ValueError) as error:
        raise ShardError(
            f"{name} has a corrupt header at byte {offset:,}, after {last} ({error}); it must be "
            "a tar file: copy it again"
        ) from error


def _body(header: Header, stream: ForwardStream, name: str) -> bytes:
    """The content of a header that extends another, with its padding, which tarfile reads too."""
    if not 0 <= header.size <= _LARGEST_EXTENSION:
        raise ShardError(
            f"{name} claims {header.size:,} bytes of extended header at byte {stream.tell():,}: it "
            "is corrupt, or made to do harm"
        )
    body = stream.read(padded(header.size))
    if len(body) < header.size:
        raise ShardError(f"{name} is cut off at byte {stream.tell():,}, in a header: copy it again")
    return body


def _said(header: Header, body: bytes, where: str) -> dict[str, str]:
    """What is known of the next member from a header before it."""
    # Where a link leads to does not matter: links are no members of samples.
    if header.kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    if header.kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _decoded(body.split(b"\0", 1)[0])}
    said = {}
    for key, value in _records(body, where):
        if key in (b"path", b"size"):
            said[key.decode()] = _decoded(value)
        elif key.startswith(b"GNU.sparse."):
            said[_SPARSE] = ""
    if header.kind == tarfile.XGLTYPE and said:
        raise ShardError(
            f"{where} a global header that gives all members one {next(iter(said))}: pack it again"
        )
    if not _is_number(said.get("size", "0")):
        raise ShardError(f"{where} a size of {said['size'][:40]!r}: copy it again")
    if "path" in said:
        said["path"] = said["path"].rstrip("/")
    return said


def _records(body: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    """The ``length key=value`` lines of a pax header, up to a zero."""
    position = 0
    while body[position : position + 1] not in (b"", b"\0"):
        digits = body[position : position + 8].split(b" ", 1)[0]
        end = position + int(digits) if digits.isdigit() else position
        key, equals, value = body[position + len(digits) + 1 : end - 1].partition(b"=")
        if not (key and equals) or end > len(body) or body[end - 1 : end] != b"\n":
            raise ShardError(f"{where} a pax header with a corrupt line: copy it again")
        yield key, value
        position = end


def _check(header: Header, path: str, size: int, said: dict[str, str], name: str) -> None:
    if len(path) > _LONGEST_NAME or "\0" in path:
        raise ShardError(
            f"{name} has a member whose name of {len(path):,} characters, {path[:40]!r}..., is "
            f"too long (over {_LONGEST_NAME:,}) or has a zero in it: pack it again"
        )
    if header.kind == tarfile.GNUTYPE_SPARSE or _SPARSE in said:
        raise ShardError(f"{name} has {path!r} as a sparse member: pack it again")
    if not 0 <= size < _LARGEST_MEMBER:
        raise ShardError(f"{name} has a size of {size:,} bytes for {path!r}: copy it again")


def _pass(stream: ForwardStream, member: Member, name: str) -> None:
    if member.size:
        # A seek beyond the end of a file succeeds: only reading the last byte shows it is there.
        stream.seek(member.end - 1)
        if not stream.read(1):
            raise ShardError(
                f"{name} is cut off at byte {stream.tell():,} or before, in {member.name!r}; it "
                "must be a tar file: copy it again"
            )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def padded(size: int) -> int:
    """Bytes that content takes: whole blocks."""
    return -(-size // BLOCK) * BLOCK
