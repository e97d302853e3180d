"""Samples in a tar file: where each begins and ends, grouped as WebDataset groups."""

import io
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flowdata.errors import ShardError, warn
from flowdata.tar.compression import DAMAGED
from flowdata.tar.forward import ForwardStream
from flowdata.tar.headers import BLOCK, Member, members, padded_size, parse_common_header
from flowdata.transport.access import Readable

_LARGEST_READ = 1 << 21
_TAIL = 1 << 24
# Members WebDataset skips: __meta__ files and folders.
_META = re.compile(r"__[^/]*__($|/)")
_MEMBER_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
# Keys of a raw sample that are no members.
_RESERVED = frozenset({"__key__", "__url__", "__local_path__"})


class TarSample(NamedTuple):
    """The members of one sample: ``size`` bytes from ``offset`` on, headers included."""

    key: str
    offset: int
    size: int


def walk(
    raw: Readable, name: str, *, is_whole: Callable[[], bool] = lambda: True
) -> Iterator[TarSample]:
    """The samples of an uncompressed tar stream, in order, by reading its headers alone.

    A key is the path of a member up to the first dot of its base name; members of a sample are
    neighbours (WebDataset's ``group_by_keys``). Memory is that of one sample's headers.

    Args:
        raw: the stream.
        name: what errors call it.
        is_whole: whether a stream that ended is known to be whole; if not, it must have the end
            mark of a tar file.

    Raises:
        ShardError: for a stream that is no tar file, is cut off, goes on after its end mark, has
            a corrupt header, a sparse member, two members of one name in a sample, or a member
            named __key__, __url__ or __local_path__.
    """
    stream = ForwardStream(raw, name, largest=_LARGEST_READ)
    sample: TarSample | None = None
    suffixes: dict[str, int] = {}
    for key, suffix, member in _named_members(stream, name):
        if sample is None or key != sample.key:
            if sample is not None and _is_valid(suffixes):
                yield sample
            sample, suffixes = TarSample(key, member.offset, 0), {}
        if suffix in suffixes or suffix in _RESERVED:
            what = "twice in one sample" if suffix in suffixes else "as a member: rename it"
            raise ShardError(f"{name} has {f'{key}.{suffix}'!r} {what}")
        suffixes[suffix] = member.size
        sample = sample._replace(size=member.end - sample.offset)
    _check_end(stream, name, is_whole)
    if sample is not None and _is_valid(suffixes):
        yield sample


def _is_valid(suffixes: dict[str, int]) -> bool:
    """Whether WebDataset would not drop the sample."""
    return not suffixes.get("__bad__")


def parse_sample(content: memoryview, key: str, url: str) -> dict[str, Any]:
    """Make the raw sample, as WebDataset does, of the bytes that `walk` found for it.

    Raises:
        ShardError: when the bytes are not that sample.
    """
    sample: dict[str, Any] = {"__key__": key, "__url__": url}
    if _add_plain_members(sample, content, key):
        return sample
    sample = {"__key__": key, "__url__": url}
    stream = ForwardStream(io.BytesIO(content), url, largest=_LARGEST_READ)
    try:
        for found, suffix, member in _named_members(stream, url):
            if found != key or suffix in _RESERVED:
                raise ShardError(f"{member.name!r} lies there")
            sample[suffix] = content[member.start : member.start + member.size].tobytes()
    except ShardError as error:
        raise _moved_error(url, key, str(error)) from error
    if len(sample) == 2 or stream.tell() < len(content):
        raise _moved_error(url, key, "less lies there")
    return sample


def _add_plain_members(sample: dict[str, Any], content: memoryview, key: str) -> bool:
    """Add members if all are plain files with common headers, in half the time; else False."""
    offset = 0
    while offset < len(content):
        header = parse_common_header(content[offset : offset + BLOCK].tobytes())
        if header is None or header.kind not in tarfile.REGULAR_TYPES:
            return False
        match = _MEMBER_NAME.match(header.name)
        start = offset + BLOCK
        end = start + header.size
        if match is None or match[1] != key or end > len(content):
            return False
        sample[match[2].lower()] = content[start:end].tobytes()
        offset = start + padded_size(header.size)
    # A member may be called __key__, and have overwritten it.
    return len(sample) > 2 and sample["__key__"] is key


def _moved_error(url: str, key: str, found: str) -> ShardError:
    return ShardError(
        f"{url} has changed since it was indexed: {key!r} is not where it was ({found}); restore "
        "the shard, or score it again"
    )


def _named_members(stream: ForwardStream, name: str) -> Iterator[tuple[str, str, Member]]:
    """Members that are part of samples, with their keys and suffixes."""
    for member in members(stream, name):
        match = _MEMBER_NAME.match(member.name)
        if match is not None and not _META.match(member.name):
            yield match[1], match[2].lower(), member


def _check_end(stream: ForwardStream, name: str, is_whole: Callable[[], bool]) -> None:
    """Raise if data follows the end mark; a zeroed hole looks like one."""
    if not stream.last:
        if not is_whole():
            raise ShardError(
                f"{name} ends at byte {stream.tell():,} without an end mark, and nothing tells its "
                "length: it was cut off between two members, or has to be packed again"
            )
        warn(f"{name} has no end mark; it may have been cut off between two members")
        return
    end = stream.tell()
    try:
        while part := stream.read(1 << 16):
            if part.count(0) < len(part):
                lost = stream.tell() - len(part.lstrip(b"\0"))
                raise ShardError(
                    f"{name} goes on at byte {lost:,}, after its end mark at {end - BLOCK:,}: "
                    "what follows would be lost. If it was damaged, copy it again; if archives "
                    "were joined, unpack it by tar --ignore-zeros and pack it again"
                )
            if stream.tell() - end > _TAIL:
                warn(f"{name} has over {_TAIL:,} zeros after its end mark, the rest was not read")
                return
    except DAMAGED as error:
        raise ShardError(f"{name} is corrupt after its end mark: {error}") from error
