"""Samples in a tar file: where each begins and ends, grouped as WebDataset groups."""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowdata.errors import ShardError, warn
from flowdata.shards.forward import BROKEN, ForwardStream, Readable

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_HEADER = 1 << 24
# Members WebDataset skips: __meta__ files and folders.
_META = re.compile(r"__[^/]*__($|/)")
_MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_ZEROS = bytes(_BLOCK)


class TarSample(NamedTuple):
    """The members of one sample: ``size`` bytes from ``offset`` on, headers included."""

    key: str
    offset: int
    size: int


class _Member(NamedTuple):
    key: str
    suffix: str
    offset: int
    start: int
    size: int

    @property
    def end(self) -> int:
        return self.start + -(-self.size // _BLOCK) * _BLOCK


def walk(raw: Readable, name: str) -> Iterator[TarSample]:
    """The samples of an uncompressed tar stream, in order, by reading its headers alone.

    A key is the path of a member up to the first dot of its base name; members of a sample are
    neighbours (WebDataset's ``group_by_keys``). Memory is that of one sample's headers.

    Raises:
        ShardError: for a stream that is no tar file, is cut off, has a corrupt header, a sparse
            member, or two members of one name in a sample.
    """
    stream = ForwardStream(raw, name, largest=_LARGEST_HEADER)
    sample: TarSample | None = None
    suffixes: set[str] = set()
    for member in _members(stream, name):
        if sample is None or member.key != sample.key:
            if sample is not None:
                yield sample
            sample, suffixes = TarSample(member.key, member.offset, 0), set()
        if member.suffix in suffixes:
            raise ShardError(f"{name} has {member.key}.{member.suffix} twice in one sample")
        suffixes.add(member.suffix)
        sample = sample._replace(size=member.end - sample.offset)
    _check_end(stream, name)
    if sample is not None:
        yield sample


def parsed(content: memoryview, key: str, url: str) -> dict[str, Any]:
    """The raw sample, as WebDataset makes it, of the bytes that `walk` found for it.

    Raises:
        ShardError: when the bytes are not that sample.
    """
    sample: dict[str, Any] = {"__key__": key, "__url__": url}
    if _add_plain_members(sample, content, key):
        return sample
    sample = {"__key__": key, "__url__": url}
    stream = ForwardStream(io.BytesIO(content), url, largest=_LARGEST_HEADER)
    try:
        for member in _members(stream, url):
            if member.key != key or member.start + member.size > len(content):
                raise ShardError(f"{member.key!r} lies there")
            sample[member.suffix] = bytes(content[member.start : member.start + member.size])
    except ShardError as error:
        raise _moved(url, key, str(error)) from error
    if len(sample) == 2:
        raise _moved(url, key, "nothing lies there")
    return sample


def _add_plain_members(sample: dict[str, Any], content: memoryview, key: str) -> bool:
    """Add members if all of them are plain files with short names, as they mostly are.

    tarfile takes four times as long, and is asked about everything that is not plain.
    """
    position = 0
    while position < len(content):
        header = content[position : position + _BLOCK].tobytes()
        octal, check = header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
        if header[156:157] not in b"0\0" or not (octal.isdigit() and check.isdigit()):
            return False
        if int(check, 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return False
        name = header[:100].split(b"\0", 1)[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].split(b"\0", 1)[0] + b"/" + name
        match = _MEMBER_NAME.match(name.decode("utf-8", "surrogateescape"))
        start = position + _BLOCK
        end = start + int(octal, 8)
        if match is None or match[1] != key or end > len(content):
            return False
        sample[match[2].lower()] = content[start:end].tobytes()
        position = start + -(-(end - start) // _BLOCK) * _BLOCK
    return len(sample) > 2


def _moved(url: str, key: str, found: str) -> ShardError:
    return ShardError(
        f"{url} has changed since it was indexed: {key!r} is not where it was ({found}); restore "
        "the shard, or score it again"
    )


def _members(stream: ForwardStream, name: str) -> Iterator[_Member]:
    """Members that are part of samples."""
    last = "its first member"
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            for info in tar:
                # tarfile keeps all members it has seen.
                tar.members = []
                last = info.name
                if info.size < 0 or info.issparse():
                    raise ShardError(f"{name} has {last} as a sparse member: pack it again")
                if info.isreg() and (member := _named(info)) is not None:
                    yield member
    except (tarfile.TarError, ValueError, OverflowError, *BROKEN) as error:
        if stream.tell() == 0:
            raise ShardError(f"{name} is empty: 0 bytes") from error
        what = "cut off or corrupt" if isinstance(error, tarfile.ReadError) else "corrupt"
        raise ShardError(
            f"{name} is {what} at byte {stream.tell():,}, in or after {last} ({error}); it must be "
            "a tar file: copy it again"
        ) from error


def _named(info: tarfile.TarInfo) -> _Member | None:
    match = _MEMBER_NAME.match(info.name)
    if match is None or _META.match(info.name):
        return None
    return _Member(match[1], match[2].lower(), info.offset, info.offset_data, info.size)


def _check_end(stream: ForwardStream, name: str) -> None:
    """tarfile takes a header that it cannot read for the end of the archive."""
    if not stream.last:
        warn(f"{name} has no end mark; it may have been cut off between two members")
    elif stream.last != _ZEROS:
        raise ShardError(
            f"{name} has a corrupt header before byte {stream.tell():,}; what follows it would be "
            "lost: copy it again"
        )
