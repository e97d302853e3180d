"""Compressed shards and members unpack within a limit."""

import gzip
import io
import tracemalloc
import zlib

import numpy as np
import pytest
from tar_files import packed

from flowdata import Access, FlowShards, ShardError, ShardIndex, ShardRows, index_shards

ZEROS = 320 << 20
MOST_MEMORY = 300 << 20


@pytest.fixture(scope="module")
def bomb():
    """320 MB of zeros in 320 kB of gzip, made without holding them."""
    packer, parts = zlib.compressobj(9, zlib.DEFLATED, 31), []
    for _ in range(ZEROS >> 20):
        parts.append(packer.compress(bytes(1 << 20)))
    return b"".join(parts) + packer.flush()


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def decoded(folder, name, content, **options):
    path = folder / "a.tar"
    path.write_bytes(packed([(name, content)]))
    index = index_shards(path, progress=False)
    [sample] = FlowShards(path, index, np.ones(1)).decode(**options)
    return sample


@pytest.mark.parametrize("name", ["key.txt.gz", "key.a.b.gz", "key.TXT.GZ"])
def test_a_member_that_unpacks_to_too_much_is_an_error_that_names_it(tmp_path, bomb, name):
    with pytest.raises(
        ShardError, match=r"\.?gz of the sample 'key' of .*a\.tar cannot be decoded: its 3.* bytes"
    ) as caught:
        decoded(tmp_path, name, bomb)
    assert "max_expansion" in str(caught.value)


def test_a_member_in_a_member_is_unpacked_once_as_by_webdataset(tmp_path, bomb):
    assert decoded(tmp_path, "key.bin.gz.gz", gzip.compress(bomb))["bin.gz.gz"] == bomb


@pytest.mark.parametrize("claim", [300 << 20, 1 << 50])
def test_an_archive_of_arrays_is_refused_by_what_it_claims(tmp_path, claim):
    content = npz(x=np.zeros(10, np.uint8))
    # The size in the directory of a zip archive: 24 bytes after its mark, 4 bytes.
    place = content.rindex(b"PK\x01\x02") + 24
    claimed = min(claim, (1 << 32) - 2).to_bytes(4, "little")
    content = content[:place] + claimed + content[place + 4 :]
    with pytest.raises(ShardError, match=r"npz of the sample 'key' .* unpack to more than"):
        decoded(tmp_path, "key.npz", content)


def test_what_is_harmless_is_decoded(tmp_path):
    text = b"0123456789" * 1_000_000
    assert decoded(tmp_path, "key.txt.gz", gzip.compress(text))["txt.gz"] == text.decode()
    two = gzip.compress(b"ab") + gzip.compress(b"cd")
    assert decoded(tmp_path, "key.txt.gz", two)["txt.gz"] == "abcd"
    arrays = decoded(tmp_path, "key.npz", npz(x=np.zeros(1 << 20)))["npz"]
    assert arrays["x"].shape == (1 << 20,)


def test_the_limit_of_a_member_can_be_set(tmp_path, bomb):
    sample = decoded(tmp_path, "key.bin.gz", bomb, max_expansion=2000)
    assert len(sample["bin.gz"]) == ZEROS


def test_a_damaged_member_is_an_error_that_names_it(tmp_path):
    for content in (gzip.compress(b"1" * 1000)[:-9], b"\x1f\x8b" + bytes(50), b"no gzip"):
        with pytest.raises(ShardError, match=r"gz of the sample 'key' of .*a\.tar cannot be"):
            decoded(tmp_path, "key.txt.gz", content)
    for content in (npz(x=np.zeros(9))[:-30], b"no zip"):
        with pytest.raises(ShardError, match=r"npz of the sample 'key' of .*a\.tar cannot be"):
            decoded(tmp_path, "key.npz", content)


def shard_bomb(folder):
    """A shard whose one sample is 320 MB of zeros."""
    packer, parts = zlib.compressobj(9, zlib.DEFLATED, 31), []
    head = packed([("0.txt", b"1"), ("1.bin", b"1")])
    header = bytearray(head[1024:1536])
    header[124:136] = b"%011o\0" % ZEROS
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    parts.append(packer.compress(head[:1024] + header))
    for _ in range(ZEROS >> 20):
        parts.append(packer.compress(bytes(1 << 20)))
    parts.append(packer.compress(bytes(1024)) + packer.flush())
    path = folder / "a.tar.gz"
    path.write_bytes(b"".join(parts))
    return path


def test_a_shard_that_unpacks_to_too_much_is_an_error_in_little_memory(tmp_path):
    path = shard_bomb(tmp_path)
    with pytest.raises(
        ShardError, match=r"a\.tar\.gz unpacks from .* set a max_expansion above 100"
    ):
        index_shards(path, progress=False)
    index = index_shards(path, access=Access(max_expansion=2000), progress=False)
    assert len(index) == 2
    assert isinstance(index, ShardIndex)
    rows = ShardRows(path, index=index)
    assert rows[0]["txt"] == b"1"
    tracemalloc.start()
    try:
        with pytest.raises(ShardError, match=r"a\.tar\.gz unpacks from"):
            rows[1]
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()
