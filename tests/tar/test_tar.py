"""Tar files of all kinds, damaged ones and hostile ones."""

import gzip
import io
import random
import tarfile
import tracemalloc

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from tar_files import (
    A_FILE,
    BLOCK,
    NEGATIVE,
    TERABYTE,
    bare,
    by_webdataset,
    extended,
    header,
    indexed,
    packed,
    padded,
    read_all,
    record,
    samples_in,
)

from flowdata import FlowDataWarning, FlowShards, ShardError, ShardIndex, ShardRows
from flowdata.table.shard_index import plain_keys
from flowdata.tar.compression import decompress
from flowdata.tar.forward import ForwardStream
from flowdata.tar.indexing import index_shards
from flowdata.tar.samples import walk

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


names = st.one_of(
    st.from_regex(
        r"[a-z]{1,3}(/[a-zä-ö_]{1,3}){0,2}\.[a-cA-C]{1,3}(\.[a-c]{1,2})?", fullmatch=True
    ),
    st.sampled_from(["__index__", "__meta__/a.txt", "plain", "dir.d/plain", ".hidden", "./a.txt"]),
    st.integers(90, 300).map(lambda length: "x" * length + ".txt"),
)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@examples(60)
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
    "a name of two million letters": extended(b"x", record(b"path", b"a/" * 1_000_000 + b".txt")),
    "a long path": extended(b"x", record(b"path", b"a/" * 9999 + b".txt")) + A_FILE,
    "a zero in a path": extended(b"x", record(b"path", b"a\0.txt")) + A_FILE,
    "a size of 1e23": extended(b"x", record(b"size", b"9" * 23)) + A_FILE,
    "a size of 1e19": extended(b"x", record(b"size", b"9" * 19)) + A_FILE,
    "a size below 0": extended(b"x", record(b"size", b"-512")) + A_FILE,
    "a size of 2^94": header(size=b"\x80" + b"\xff" * 11) + padded(b"1"),
    "a pax header of digits": extended(b"x", b"1" * 500_000) + A_FILE,
    "a pax header without =": extended(b"x", b"6 abc\n") + A_FILE,
    "a pax record that goes on": extended(b"x", b"20 path=a\n") + A_FILE,
    "a pax record without its end": extended(b"x", b"10 path=ab") + A_FILE,
    "a global path": extended(b"g", record(b"path", b"a.txt")) + A_FILE,
    "a global size": extended(b"g", record(b"size", b"1")) + A_FILE,
    "a global sparse map": extended(b"g", record(b"GNU.sparse.map", b"0,1")) + A_FILE,
    "a sparse pax member": extended(b"x", record(b"GNU.sparse.size", b"7")) + A_FILE,
    "an end in a long name": extended(b"L", b"a.txt\0"),
    "a member called __key__": A_FILE + header(name=b"a.__key__") + padded(b"1"),
    "a member called __url__": header(name=b"a.__URL__") + padded(b"1"),
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
            index_shards(path, progress=False)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


HARMLESS = {
    "names": extended(b"L", b"a.txt\0") * 3000 + A_FILE,
    "links": extended(b"K", b"a.txt\0") * 3000 + A_FILE,
    "pax headers": extended(b"x", record(b"mtime", b"1.5")) * 3000 + A_FILE,
    "global headers": extended(b"g", record(b"comment", b"x" * 9000)) * 1000 + A_FILE,
}


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS)
def test_thousands_of_headers_before_a_member_are_read_in_little_memory(tmp_path, content):
    content += bytes(1024)
    file = io.BytesIO(content)
    tracemalloc.start()
    try:
        assert len(list(walk(file, "a.tar"))) == 1
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    [sample] = indexed(content, tmp_path)
    assert bare(sample) == {"__key__": "a", "txt": b"1"}


@pytest.mark.parametrize("first", [b"x", b"L"])
def test_of_two_names_before_a_member_the_first_holds(tmp_path, first):
    names = {b"x": extended(b"x", record(b"path", b"p.txt")), b"L": extended(b"L", b"l.txt\0")}
    content = names.pop(first) + next(iter(names.values())) + A_FILE + bytes(1024)
    [sample], [expected] = indexed(content, tmp_path), by_webdataset(content, tmp_path)
    assert bare(sample) == bare(expected)
    assert sample["__key__"] == first.decode().lower().replace("x", "p")


@pytest.mark.parametrize("slashes", [b"/", b"//"])
def test_slashes_after_the_path_of_a_pax_header_do_not_count(tmp_path, slashes):
    content = extended(b"x", record(b"path", b"dir/b.txt" + slashes)) + A_FILE + bytes(1024)
    [sample], [expected] = indexed(content, tmp_path), by_webdataset(content, tmp_path)
    assert bare(sample) == bare(expected) == {"__key__": "dir/b", "txt": b"1"}


def test_names_that_are_no_utf8_are_keys_as_webdataset_makes_them(tmp_path):
    content = header(name=b"caf\xe9.txt") + padded(b"1") + A_FILE + bytes(1024)
    path = tmp_path / "a.tar"
    expected = by_webdataset(content, tmp_path)
    ShardRows(path, progress=False).index.save(tmp_path / "index.parquet")
    index = ShardIndex.load(tmp_path / "index.parquet")
    assert plain_keys(index.keys) == [sample["__key__"] for sample in expected]
    samples = list(FlowShards(path, index, [1.0, 1.0]))
    assert {sample["__key__"] for sample in samples} == {"caf\udce9", "a"}


@pytest.mark.parametrize("mark", [b"", b"1"])
def test_a_sample_marked_as_bad_is_dropped_as_by_webdataset(tmp_path, mark):
    content = packed([("a.txt", b"1"), ("b.txt", b"2"), ("b.__bad__", mark), ("c.txt", b"3")])
    found = [bare(sample) for sample in indexed(content, tmp_path)]
    assert found == [bare(sample) for sample in by_webdataset(content, tmp_path)]
    assert len(found) == 2 + (not mark)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gz"])
def test_what_follows_an_end_mark_is_not_lost_silently(tmp_path, compress):
    first, second = (packed([(f"{name}.txt", b"1" * 700)] * 1) for name in "ab")
    hole = bytearray(packed([(f"{number}.txt", b"1" * 700) for number in range(9)]))
    hole[4 * 3 * BLOCK : 6 * 3 * BLOCK] = bytes(2 * 3 * BLOCK)
    for content, lost in ((first + second, len(first)), (hole, 6 * 3 * BLOCK)):
        with pytest.raises(ShardError, match=rf"a\.tar goes on at byte {lost:,}, after its end"):
            indexed(compress(bytes(content)), tmp_path)
    assert len(indexed(compress(first + bytes(1 << 20)), tmp_path)) == 1
    with pytest.warns(FlowDataWarning, match="zeros after its end mark"):
        indexed(compress(first + bytes(17 << 20)), tmp_path)


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
    with pytest.raises(ShardError, match=r"hole\.bin' as a sparse member"):
        index_shards(path, progress=False)


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
        stream, compressed = decompress(Once(raw), "a.tar")
        assert compressed == is_packed
        assert [sample.key for sample in walk(stream, "a.tar")] == ["a", "b"]
