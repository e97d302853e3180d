"""Tar files of all kinds, damaged ones and hostile ones."""

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import tracemalloc

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdata import FlowDataWarning, ShardError, ShardIndex, ShardRows
from flowdata.shards.forward import ForwardStream, decompressed
from flowdata.shards.tar import parsed, walk

BLOCK = 512
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


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
        parsed(view[sample.offset : sample.offset + sample.size], sample.key, "a.tar")
        for sample in samples_in(content)
    ]


def by_webdataset(content, folder):
    path = folder / "a.tar"
    path.write_bytes(content)
    dataset = wds.WebDataset(str(path), shardshuffle=False, nodesplitter=None, empty_check=False)
    return [dict(sample) for sample in dataset]


def bare(sample):
    return {
        name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")
    }


names = st.one_of(
    st.from_regex(
        r"[a-z]{1,3}(/[a-zä-ö_]{1,3}){0,2}\.[a-cA-C]{1,3}(\.[a-c]{1,2})?", fullmatch=True
    ),
    st.sampled_from(["__index__", "__meta__/a.txt", "plain", "dir.d/plain", ".hidden", "./a.txt"]),
    st.integers(90, 300).map(lambda length: "x" * length + ".txt"),
)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1200)), max_size=8))
def test_samples_are_those_webdataset_reads(tmp_path_factory, format, members):
    if format == tarfile.USTAR_FORMAT:
        members = [(name, content) for name, content in members if len(name.encode()) < 100]
    content = packed(members, format)
    folder = tmp_path_factory.mktemp("tar")
    try:
        expected = by_webdataset(content, folder)
    except ValueError:
        # The same name twice in a sample.
        with pytest.raises(ShardError, match="twice in one sample"):
            samples_in(content)
        return
    assert [bare(sample) for sample in read_all(content)] == [bare(sample) for sample in expected]


def test_what_is_no_file_is_passed_over(tmp_path):
    content = packed(
        [
            ("dir.x", (tarfile.DIRTYPE, "")),
            ("a.txt", b"1"),
            ("link.txt", (tarfile.SYMTYPE, "/etc/passwd")),
            ("hard.txt", (tarfile.LNKTYPE, "a.txt")),
            ("pipe.txt", (tarfile.FIFOTYPE, "")),
            ("a.bin", b"2"),
            ("b.txt", b"3"),
        ]
    )
    # WebDataset takes what is left of a hard link for a file without content.
    found = [bare(sample) for sample in read_all(content)]
    assert found == [
        {"__key__": "a", "txt": b"1", "bin": b"2"},
        {"__key__": "b", "txt": b"3"},
    ]


def test_names_that_lead_out_of_the_folder_are_keys_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = packed([("/etc/evil.txt", b"1"), ("../../evil.txt", b"2")])
    assert [sample["__key__"] for sample in read_all(content)] == ["/etc/evil", "../../evil"]
    assert list(tmp_path.iterdir()) == []


COMPRESSORS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "two gz": lambda content: gzip.compress(content[:1000]) + gzip.compress(content[1000:]),
}


@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_compressed_shards_are_read_in_their_order_and_out_of_it(tmp_path, compress):
    content = packed([(f"{number:03d}.txt", bytes([number]) * 700) for number in range(30)])
    path = tmp_path / "a.tar.packed"
    path.write_bytes(compress(content))
    rows = ShardRows(path, progress=False)
    assert rows.index.compressed.tolist() == [True]
    order = [*range(30), *np.random.default_rng(0).permutation(30).tolist()]
    assert [rows[row]["txt"] for row in order] == [bytes([row]) * 700 for row in order]


@pytest.mark.parametrize("damage", ["cut", "changed"])
@pytest.mark.parametrize("compress", COMPRESSORS.values(), ids=COMPRESSORS)
def test_damaged_compressed_shards_are_refused(tmp_path, compress, damage):
    noise = np.random.default_rng(0).bytes(30_000)
    content = compress(packed([("a.bin", noise), ("b.bin", noise)]))
    middle = len(content) // 2
    path = tmp_path / "a.tar.packed"
    changed = content[:middle] + bytes(100) + content[middle + 100 :]
    path.write_bytes(content[:middle] if damage == "cut" else changed)
    with pytest.raises(ShardError, match=r"a\.tar\.packed"):
        ShardRows(path, progress=False)


def test_a_file_cut_anywhere_is_refused_or_warned_of():
    members = [(f"{number}.{ext}", b"x" * 700) for number in range(3) for ext in ("a", "b")]
    content = packed(members)
    whole = samples_in(content)
    end = whole[-1].offset + whole[-1].size
    for length in {*range(0, end, BLOCK), *random.Random(0).sample(range(end), 60)}:
        if length and length in {sample.offset for sample in whole} | {
            sample.offset + 3 * BLOCK for sample in whole
        }:
            with pytest.warns(FlowDataWarning, match="no end mark"):
                samples_in(content[:length])
        else:
            with pytest.raises(ShardError, match=r"a\.tar"):
                samples_in(content[:length])
    with pytest.warns(FlowDataWarning, match="no end mark"):
        assert samples_in(content[:end]) == whole


def test_a_corrupt_header_in_the_middle_is_not_taken_for_the_end():
    content = bytearray(packed([(f"{number}.txt", b"x") for number in range(5)]))
    content[2 * 2 * BLOCK + 10] ^= 0xFF
    with pytest.raises(ShardError, match=r"a\.tar has a corrupt header"):
        samples_in(bytes(content))


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


TERABYTE = b"\x80" + (1 << 40).to_bytes(11, "big")
NEGATIVE = b"\xff" * 4 + (-5_000_000 & (1 << 64) - 1).to_bytes(8, "big")
HOSTILE = {
    "a member of 1 TB": header(size=TERABYTE),
    "a member of negative size": header(size=NEGATIVE) + header() + b"x" * 512,
    "a long name of 1 TB": header(kind=b"L", size=TERABYTE),
    "a long link of 1 TB": header(kind=b"K", size=TERABYTE),
    "a pax header of 1 TB": header(kind=b"x", size=TERABYTE),
    "a global pax header of 1 TB": header(kind=b"g", size=TERABYTE),
    "a pax header of negative size": header(kind=b"x", size=NEGATIVE) + b"x" * 512,
    "a long name of negative size": header(kind=b"L", size=NEGATIVE) + b"x" * 512,
    "a pax record of length 0": header(kind=b"x", size=b"00000000020\0") + b"0 path=a\n".ljust(512),
    "a sparse member of 1 TB": header(kind=b"S", size=b"00000000000\0"),
    "an empty file": b"",
    "text": b"hello, this is no tar file\n" * 40,
    "a gzip bomb": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_at_once_and_in_little_memory(tmp_path, content, request):
    if "bomb" in request.node.callspec.id:
        content = gzip.compress(header(size=TERABYTE) + bytes(50 << 20))
    path = tmp_path / "evil.tar"
    path.write_bytes(content + bytes(1024) * (content != b"" and not content.startswith(b"\x1f")))
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match=r"evil\.tar"):
            ShardIndex.of(path, progress=False)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


def test_a_sparse_member_is_refused_before_it_is_filled_with_zeros(tmp_path):
    import subprocess

    hole = tmp_path / "hole.bin"
    with hole.open("wb") as file:
        file.seek(1 << 40)
        file.write(b"x")
    path = tmp_path / "a.tar"
    made = subprocess.run(["tar", "-cSf", path, "-C", tmp_path, "hole.bin"], check=False)
    if made.returncode:
        pytest.skip("no tar with sparse files here")
    with pytest.raises(ShardError, match=r"hole\.bin as a sparse member"):
        ShardIndex.of(path, progress=False)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_members_of_a_shard(tmp_path):
    path = tmp_path / "many.tar"
    with path.open("wb") as file:
        for number in range(100_000):
            file.write(header(name=b"%06d.t" % number, size=b"00000000000\0"))
        file.write(bytes(1024))
    tracemalloc.start()
    try:
        assert sum(1 for _ in walk(path.open("rb"), "many.tar")) == 100_000
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_forward_stream_never_goes_back():
    stream = ForwardStream(io.BytesIO(b"0123456789"), "a.tar", largest=4)
    assert stream.read(4) == b"0123"
    stream.seek(6)
    assert stream.read(4) == b"6789"
    with pytest.raises(ShardError, match="back to 3"):
        stream.seek(3)
    for size in (5, -1):
        with pytest.raises(ShardError, match="bytes of header"):
            stream.read(size)


def test_a_stream_that_cannot_seek_is_told_from_a_compressed_one():
    class Once:
        def __init__(self, content):
            self._file = io.BytesIO(content)

        def read(self, size):
            return self._file.read(min(size, 3))

        def close(self):
            self._file.close()

    content = packed([("a.txt", b"1" * 900), ("b.txt", b"2")])
    for raw, is_packed in ((content, False), (gzip.compress(content), True)):
        stream, compressed = decompressed(Once(raw), "a.tar")
        assert compressed == is_packed
        assert [sample.key for sample in walk(stream, "a.tar")] == ["a", "b"]


def damaged(content, chance):
    """Content with some bytes flipped, put in, taken out, or cut."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(max(len(made), 1))
        kind = chance.randrange(5)
        if kind == 0 and made:
            made[place % len(made)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[place:place] = chance.randbytes(chance.choice([1, 12, BLOCK]))
        elif kind == 2:
            del made[place : place + chance.choice([1, 12, BLOCK])]
        elif kind == 3:
            made[place : place + 12] = chance.choice([TERABYTE, NEGATIVE, b"\0" * 12, b"7" * 12])
        elif chance.random() < 0.3:
            del made[place:]
    return bytes(made)


@pytest.mark.filterwarnings("ignore::flowdata.FlowDataWarning")
def test_random_damage_gives_samples_or_a_shard_error():
    """Longer at the command line: FUZZ_SECONDS=3600 pytest -k random_damage."""
    import time

    chance = random.Random(0)
    files = [
        packed(
            [("a.txt", b"1" * 600), ("a.bin", b""), ("b/c.d.e", b"2"), ("é" * 120 + ".t", b"3")], f
        )
        for f in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    files += [gzip.compress(files[0]), bz2.compress(files[1]), lzma.compress(files[1])]
    ending = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "4"))
    tried = 0
    while tried < 3000 or ("FUZZ_SECONDS" in os.environ and time.monotonic() < ending):
        tried += 1
        content = damaged(chance.choice(files), chance)
        try:
            stream, compressed = decompressed(io.BytesIO(content), "a.tar")
            samples = list(walk(stream, "a.tar"))
        except ShardError:
            continue
        if compressed:
            continue
        for sample in samples:
            part = memoryview(content)[sample.offset : sample.offset + sample.size]
            try:
                found = parsed(part, sample.key, "a.tar")
            except ShardError:
                continue
            assert found["__key__"] == sample.key
