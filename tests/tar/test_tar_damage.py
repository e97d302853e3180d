"""Tar files damaged at random, and those in which a fuzzer found faults."""

import gzip
import io
import os
import random
import tarfile
import time
from pathlib import Path

import pytest
from tar_files import (
    BLOCK,
    NEGATIVE,
    TERABYTE,
    bare,
    by_webdataset,
    extended,
    indexed,
    packed,
    record,
)
from webdataset import tariterators

from flowdata import Access, ShardError, index_shards
from flowdata.tar.compression import decompress
from flowdata.tar.samples import parse_sample, walk

FOUND = sorted((Path(__file__).parent / "found").iterdir())


@pytest.mark.filterwarnings("ignore::flowdata.FlowDataWarning")
@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_a_fuzzer_found_is_refused_or_read_as_by_webdataset(tmp_path, path):
    content = path.read_bytes()
    try:
        found = [bare(sample) for sample in indexed(content, tmp_path)]
    except ShardError:
        return
    assert found == [bare(sample) for sample in by_webdataset(content, tmp_path)]


SAID = [
    record(key, value)
    for key, value in (
        (b"path", b"q.txt"),
        (b"path", b""),
        (b"path", b"\xff.txt"),
        (b"size", b"1000"),
        (b"size", b"1_0"),
        (b"GNU.sparse.map", b"0,1"),
        (b"mtime", b"nan"),
    )
]
FIELDS = {0: [b"a.__bad__\0", b"b.c/\0", b"\xff.t\0"], 124: [TERABYTE, NEGATIVE, b"0" * 11 + b"\0"]}
FIELDS[156] = [bytes([kind]) for kind in b"0\x001234567LKxgXS "]


def damaged(content, chance):
    """Content with some bytes flipped, put in, taken out, or cut."""
    made = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(max(len(made), 1))
        block = place - place % BLOCK
        kind = chance.randrange(6)
        if kind == 0 and made:
            made[place % len(made)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            made[place:place] = chance.randbytes(chance.choice([1, 12, BLOCK]))
        elif kind == 2:
            del made[place : place + chance.choice([1, 12, BLOCK])]
        elif kind == 3:
            field = chance.choice(list(FIELDS))
            value = chance.choice(FIELDS[field])
            made[block + field : block + field + len(value)] = value
        elif kind == 4:
            body = b"".join(chance.choices(SAID, k=chance.randint(0, 2)))
            made[block:block] = extended(chance.choice([b"x", b"g", b"L", b"K"]), body)
        elif chance.random() < 0.3:
            del made[place:]
    return repaired(made, chance)


def repaired(made, chance):
    """Most headers with right checksums, as otherwise hardly any is looked at."""
    for start in range(0, len(made) - BLOCK + 1, BLOCK):
        if made[start + 257 : start + 262] == b"ustar" and chance.random() < 0.95:
            made[start + 148 : start + 156] = b" " * 8
            made[start + 148 : start + 156] = b"%06o\0 " % sum(made[start : start + BLOCK])
    return bytes(made)


@pytest.mark.filterwarnings("ignore::flowdata.FlowDataWarning")
def test_random_damage_gives_the_samples_of_webdataset_or_a_shard_error(tmp_path):
    """Longer at the command line: FUZZ_SECONDS=3600 pytest -k random_damage."""
    chance = random.Random(0)
    members = [("a.txt", b"1" * 600), ("a.bin", b""), ("b/c.d.e", b"2"), ("é" * 120 + ".t", b"3")]
    files = [packed(members, format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    packers = [bytes, gzip.compress]
    ending = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "0"))
    tried = read = 0
    while tried < 2000 or time.monotonic() < ending:
        tried += 1
        content = damaged(chance.choice(files), chance)
        packer = chance.choice(packers) if tried % 8 == 0 else bytes
        try:
            stream, compressed = decompress(io.BytesIO(packer(content)), "a.tar")
            assert compressed == (packer is not bytes)
            samples = list(walk(stream, "a.tar"))
        except ShardError:
            continue
        read += bool(samples)
        view = memoryview(content)
        found = [
            parse_sample(view[sample.offset : sample.offset + sample.size], sample.key, "a.tar")
            for sample in samples
        ]
        files_in = tariterators.tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(content)}])
        assert found == list(tariterators.group_by_keys(files_in))
    assert read > 0.1 * tried


def test_a_command_whose_output_was_cut_between_two_members_is_no_shorter_shard(tmp_path):
    """Its exit status is that of the last command: a download before it may have failed."""
    path, access = tmp_path / "a.tar", Access(allow_pipe=True)
    path.write_bytes(packed([(f"{number}.txt", b"1" * 600) for number in range(4)]))
    assert len(index_shards(f"pipe:cat {path} | cat", access=access, progress=False)) == 4
    with pytest.raises(ShardError, match=r"ends at byte 3,072 without an end mark"):
        index_shards(f"pipe:head -c 3072 {path} | cat", access=access, progress=False)
