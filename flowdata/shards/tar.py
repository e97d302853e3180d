"""Samples in a tar file: where each begins and ends, grouped as WebDataset groups."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flowdata.errors import ShardError

_BLOCK = tarfile.BLOCKSIZE
# Members WebDataset skips: __meta__ files and folders.
_META = re.compile(r"__[^/]*__($|/)")


class TarSample(NamedTuple):
    """The members of one sample: ``size`` bytes from ``offset`` on, headers included."""

    key: str
    offset: int
    size: int


def walk(path: Path) -> Iterator[TarSample]:
    """The samples of an uncompressed tar file, in order, by reading its headers alone.

    A key is the path of a member up to the first dot of its base name; members of a sample are
    neighbours (WebDataset's ``group_by_keys``).

    Raises:
        ShardError: for a file that cannot be opened, is compressed, or is cut off.
    """
    from webdataset.tariterators import base_plus_ext

    open_sample: TarSample | None = None
    length = path.stat().st_size if path.exists() else 0
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                # tarfile keeps all members it has seen.
                tar.members = []  # type: ignore[attr-defined]
                key, _ = base_plus_ext(member.name)
                if not member.isreg() or key is None or _META.match(member.name):
                    continue
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if member.offset_data + member.size > length:
                    raise ShardError(
                        f"{path} is cut off inside {member.name}: it has {length:,} bytes, the "
                        f"member ends at {member.offset_data + member.size:,}; copy it again"
                    )
                if open_sample is not None and key == open_sample.key:
                    open_sample = open_sample._replace(size=end - open_sample.offset)
                    continue
                if open_sample is not None:
                    yield open_sample
                open_sample = TarSample(key, member.offset, end - member.offset)
    except (tarfile.TarError, OSError) as error:
        raise ShardError(
            f"{path} cannot be read as an uncompressed tar file ({error}); compressed shards have "
            "no places to go to: unpack them first"
        ) from error
    if open_sample is not None:
        yield open_sample
