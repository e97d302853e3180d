"""Tar files made byte by byte, and what webdataset reads in them."""

import io
import tarfile

import webdataset as wds

from flowdata import ShardRows
from flowdata.tar.samples import parse_sample, walk

BLOCK = 512


def packed(members, format=tarfile.PAX_FORMAT):
    """A tar file of (name, content or TarInfo change) members, as bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)
    return file.getvalue()


def samples_in(content, name="a.tar"):
    return list(walk(io.BytesIO(content), name))


def read_all(content):
    """Every sample as it is walked to and then parsed."""
    view = memoryview(content)
    return [
        parse_sample(view[sample.offset : sample.offset + sample.size], sample.key, "a.tar")
        for sample in samples_in(content)
    ]


def by_webdataset(content, folder):
    path = folder / "a.tar"
    path.write_bytes(content)
    dataset = wds.WebDataset(str(path), shardshuffle=False, nodesplitter=None, empty_check=False)
    return [dict(sample) for sample in dataset]


def indexed(content, folder):
    """Every sample of a file as it is read by its index."""
    path = folder / "a.tar"
    path.write_bytes(content)
    rows = ShardRows(path, progress=False)
    return [rows[row] for row in range(len(rows))]


def bare(sample):
    return {
        name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")
    }


def header(name=b"a.txt", size=b"00000000001\0", kind=b"0"):
    """A header with a right checksum whatever it says."""
    made = bytearray(512)
    made[: len(name)] = name
    made[100:108], made[108:116], made[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    made[124 : 124 + len(size)] = size
    made[136:148], made[148:156], made[156:157] = b"00000000000\0", b" " * 8, kind
    made[257:265] = b"ustar\x0000"
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def record(key, value):
    """A line of a pax header."""
    text = b" " + key + b"=" + value + b"\n"
    length = len(text) + 1
    while len(b"%d" % length) + len(text) != length:
        length = len(b"%d" % length) + len(text)
    return b"%d" % length + text


def extended(kind, body):
    """A header for the member after it."""
    return header(name=b"x", kind=kind, size=b"%011o\0" % len(body)) + padded(body)


def padded(content):
    return content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")


A_FILE = header() + padded(b"1")
TERABYTE = b"\x80" + (1 << 40).to_bytes(11, "big")
NEGATIVE = b"\xff" * 4 + (-5_000_000 & (1 << 64) - 1).to_bytes(8, "big")
