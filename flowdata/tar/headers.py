"""Members of a tar stream, by its headers, in which every size and name is validated."""

import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple
from zlib import adler32

from flowdata.errors import ShardError
from flowdata.tar.compression import DAMAGED
from flowdata.tar.forward import ForwardStream

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSION_TYPES = (
    *_PAX_TYPES,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_SPARSE = "sparse map"
_LARGEST_EXTENSION = 1 << 20
_LARGEST_MEMBER = 1 << 60
# Matching a name takes time quadratic in its length; paths of Linux are no longer.
_LONGEST_NAME = 4096


# A header as almost all are written: name, size, checksum, kind, prefix.
_COMMON_HEADER = re.compile(
    rb"(.{100})(?:[0-7]{7}\0){3}([0-7]{11})\0[0-7]{11}\0([0-7]{6})\0 (.).{172}"
    rb"(?:[0-7]{7}\0|\0{8}){2}(.{155})",
    re.DOTALL,
)


class Header(NamedTuple):
    """What is needed of a header."""

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
        return self.start + padded_size(self.size)


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
    last = "the beginning"
    while (entry := _read_entry(stream, name, last)) is not None:
        offset, header, overrides = entry
        path, size = header.name, header.size
        if overrides:
            path, size = overrides.get("path", path), int(overrides.get("size", size))
        _check_member(header, path, size, overrides, name)
        member = Member(path, offset, stream.tell(), size)
        # Links, folders and devices have no content here; a kind that nobody knows may have some.
        if header.kind in tarfile.REGULAR_TYPES:
            _skip_content(stream, member, name)
            yield member
        elif header.kind not in tarfile.SUPPORTED_TYPES:
            _skip_content(stream, member, name)
        last = repr(path)


def _read_entry(
    stream: ForwardStream, name: str, last: str
) -> tuple[int, Header, dict[str, str]] | None:
    """Read the headers of the next entry: its first byte, its header, and what overrides that.

    None at the end of the stream. ``last`` says for errors what came before.
    """
    overrides: dict[str, str] = {}
    first: int | None = None
    is_extended = False
    while (header := _read_header(stream, name, last)) is not None:
        offset = stream.tell() - BLOCK
        if header.kind not in _EXTENSION_TYPES:
            return offset if first is None else first, header, overrides
        is_extended = True
        body = _read_body(header, stream, name)
        found = _read_overrides(header, body, f"{name} has at byte {offset:,}")
        # A global header belongs to no entry; it is read only to refuse what would matter.
        if header.kind != tarfile.XGLTYPE:
            # If several extension headers set a key, the first wins, as in tarfile.
            overrides = found | overrides
            first = offset if first is None else first
    if is_extended:
        raise ShardError(
            f"{name} is cut off at byte {stream.tell():,}, after {last}: copy it again"
        )
    return None


def parse_common_header(block: bytes) -> Header | None:
    """Parse a header as almost all are written, ten times as fast as tarfile; None for others."""
    match = _COMMON_HEADER.match(block)
    # The checksum is the sum of all bytes, with its own field taken for eight spaces.
    if match is None or int(match[3], 8) != _sum(block) - sum(block[148:156]) + 8 * ord(" "):
        return None
    name, kind = match[1].split(b"\0", 1)[0], match[4]
    if match[5][0] and kind not in tarfile.GNU_TYPES:
        name = match[5].split(b"\0", 1)[0] + b"/" + name
    # Before POSIX a folder was a file whose name ends with a slash.
    if kind == tarfile.AREGTYPE and name.endswith(b"/"):
        kind = tarfile.DIRTYPE
    return Header(_decode(name), kind, int(match[2], 8))


def _sum(block: bytes) -> int:
    """The sum of the bytes of a block, in a fifth of the time that Python's sum takes."""
    # Adler-32 has it in its lower half, modulo 65,521, which 256 bytes do not come to.
    return (adler32(block[:256], 0) & 0xFFFF) + (adler32(block[256:], 0) & 0xFFFF)


def _read_header(stream: ForwardStream, name: str, last: str) -> Header | None:
    """Read the next header, None at the end."""
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
    if (header := parse_common_header(block)) is not None:
        return header
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        return Header(info.name, info.type, info.size)
    except (tarfile.HeaderError, ValueError) as error:
        raise ShardError(
            f"{name} has a corrupt header at byte {offset:,}, after {last} ({error}); it must be "
            "a tar file: copy it again"
        ) from error


def _read_body(header: Header, stream: ForwardStream, name: str) -> bytes:
    """Read the content of an extension header, with its padding, which tarfile reads too."""
    if not 0 <= header.size <= _LARGEST_EXTENSION:
        raise ShardError(
            f"{name} claims {header.size:,} bytes of extended header at byte {stream.tell():,}: it "
            "is corrupt, or made to do harm"
        )
    body = stream.read(padded_size(header.size))
    if len(body) < header.size:
        raise ShardError(f"{name} is cut off at byte {stream.tell():,}, in a header: copy it again")
    return body


def _read_overrides(header: Header, body: bytes, where: str) -> dict[str, str]:
    """Read what an extension header sets of the next member, instead of that one's own header."""
    # Where a link leads to does not matter: links are no members of samples.
    if header.kind == tarfile.GNUTYPE_LONGLINK:
        return {}
    if header.kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": _decode(body.split(b"\0", 1)[0])}
    overrides = {}
    for key, value in _pax_records(body, where):
        if key in (b"path", b"size"):
            overrides[key.decode()] = _decode(value)
        elif key.startswith(b"GNU.sparse."):
            overrides[_SPARSE] = ""
    if header.kind == tarfile.XGLTYPE and overrides:
        raise ShardError(
            f"{where} a global header that gives all members one {next(iter(overrides))}: pack it "
            "again"
        )
    if not _is_number(overrides.get("size", "0")):
        raise ShardError(f"{where} a size of {overrides['size'][:40]!r}: copy it again")
    if "path" in overrides:
        overrides["path"] = overrides["path"].rstrip("/")
    return overrides


def _pax_records(body: bytes, where: str) -> Iterator[tuple[bytes, bytes]]:
    """The ``length key=value`` lines of a pax header, up to a zero."""
    start = 0
    while body[start : start + 1] not in (b"", b"\0"):
        digits = body[start : start + 8].split(b" ", 1)[0]
        end = start + int(digits) if digits.isdigit() else start
        key, equals, value = body[start + len(digits) + 1 : end - 1].partition(b"=")
        if not (key and equals) or end > len(body) or body[end - 1 : end] != b"\n":
            raise ShardError(f"{where} a pax header with a corrupt line: copy it again")
        yield key, value
        start = end


def _check_member(
    header: Header, path: str, size: int, overrides: dict[str, str], name: str
) -> None:
    if len(path) > _LONGEST_NAME or "\0" in path:
        raise ShardError(
            f"{name} has a member whose name of {len(path):,} characters, {path[:40]!r}..., is "
            f"too long (over {_LONGEST_NAME:,}) or has a zero in it: pack it again"
        )
    if header.kind == tarfile.GNUTYPE_SPARSE or _SPARSE in overrides:
        raise ShardError(f"{name} has {path!r} as a sparse member: pack it again")
    if not 0 <= size < _LARGEST_MEMBER:
        raise ShardError(f"{name} has a size of {size:,} bytes for {path!r}: copy it again")


def _skip_content(stream: ForwardStream, member: Member, name: str) -> None:
    """Go on to the next header."""
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


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogateescape")


def padded_size(size: int) -> int:
    """Bytes that content takes: whole blocks."""
    return -(-size // BLOCK) * BLOCK
