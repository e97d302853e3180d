import bz2
import gc
import io
import lzma
import tarfile
import warnings

import numpy as np
import pytest
import torch
import webdataset as wds

from flowdata import LossTable, ShardError, ShardRows, score
from flowdata.tar.samples import walk

SAMPLES = 37


def write(path, members, *, format=tarfile.PAX_FORMAT, mode="w"):
    """A tar file of (name, content) members."""
    with tarfile.open(path, mode, format=format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def members(number, samples=SAMPLES):
    """Samples of several members, of sizes on and off the block boundary, and what is skipped."""
    random = np.random.default_rng(number)
    yield "__index__", b"skipped"
    for sample in range(samples):
        key = f"part{number}/{'long' * (40 * (sample % 3 == 0))}{sample:04d}"
        yield f"{key}.value.txt", str(sample + 1000 * number).encode()
        yield f"{key}.BIN", random.bytes(int(random.choice([0, 1, 511, 512, 513, 5000])))
    yield "without_extension", b"skipped"


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        write(tmp_path / f"shard-{number:03d}.tar", members(number))
    return str(tmp_path / "shard-{000..002}.tar")


def webdataset_samples(shards):
    return list(wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node))


@pytest.mark.parametrize(
    "format",
    [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT],
    ids=["ustar", "gnu", "pax"],
)
def test_every_row_is_the_sample_webdataset_reads(tmp_path, format):
    names = [(name, content) for name, content in members(1) if format or len(name) < 100]
    path = write(tmp_path / "a.tar", names, format=format)
    rows = ShardRows(path, progress=False)
    expected = webdataset_samples(str(path))
    assert len(rows) == len(expected) > 20
    for row in np.random.default_rng(0).permutation(len(rows)).tolist():
        found, wanted = rows[row], expected[row]
        assert {name: found[name] for name in found if not name.startswith("__")} == {
            name: wanted[name] for name in wanted if not name.startswith("__")
        }
        assert found["__key__"] == wanted["__key__"]


def test_rows_run_through_the_shards_in_the_order_given(shards):
    rows = ShardRows(shards, decode=lambda sample: int(sample["value.txt"]), progress=False)
    assert [rows[row] for row in range(len(rows))] == [
        sample + 1000 * number for number in range(3) for sample in range(SAMPLES)
    ]


def test_samples_fill_their_shard_without_gap_or_overlap(shards, tmp_path):
    for path in sorted(tmp_path.glob("*.tar")):
        samples = list(walk(path.open("rb"), path.name))
        ends = [sample.offset + sample.size for sample in samples]
        assert all(end <= sample.offset for end, sample in zip(ends, samples[1:], strict=False))
        assert ends[-1] <= path.stat().st_size


class Distance(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.center = torch.nn.Parameter(torch.tensor(50.0))

    def forward(self, values):
        return (values - self.center).abs()


def test_a_loss_table_of_shards_is_their_index_too(shards, tmp_path):
    rows = ShardRows(shards, decode=lambda sample: float(sample["value.txt"]), progress=False)
    path = tmp_path / "losses.parquet"
    score(Distance(), rows, lambda model, batch: model(batch), output=path, progress=False)
    table = LossTable.load(path, dataset=rows)
    assert table.losses.tolist() == [abs(rows[row] - 50) for row in range(len(rows))]
    index = table.index
    assert index.shards == ("shard-000.tar", "shard-001.tar", "shard-002.tar")
    for row in (0, SAMPLES - 1, SAMPLES, len(rows) - 1):
        content = (tmp_path / index.shards[index.shard[row]]).read_bytes()
        sample = content[index.offsets[row] : index.offsets[row] + index.sizes[row]]
        with tarfile.open(fileobj=io.BytesIO(sample)) as tar:
            assert {name.split(".")[0] for name in tar.getnames()} == {index.key(row)}
            assert float(tar.extractfile(tar.getnames()[0]).read()) == rows[row]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no shard"),
        (lambda path: path.write_bytes(b"not a tar file" * 100), "must be a tar file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(999)), "zstandard: unpack it"),
        (lambda path: path.write_bytes(bz2.compress(b"content")), "bzip2: unpack it"),
        (lambda path: path.write_bytes(lzma.compress(b"content")), "xz: unpack it"),
        (lambda path: write(path, [("__only__", b"1")]), "no sample"),
        (lambda path: write(path, [(n, b"") for n in ("a.x", "b.x", "a.y")]), "key 'a' twice"),
    ],
)
def test_a_shard_that_cannot_be_indexed_is_named_with_the_reason(tmp_path, make, message):
    path = tmp_path / "broken.tar"
    make(path)
    with pytest.raises(ShardError, match=message) as caught:
        ShardRows(path, progress=False)
    assert "broken.tar" in str(caught.value)


def test_a_shard_cut_off_in_a_member_is_refused(tmp_path):
    path = write(tmp_path / "cut.tar", [("a.bin", b"x" * 2000), ("b.bin", b"y" * 20_000)])
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(ShardError, match=r"cut\.tar is cut off .* 'b\.bin'"):
        ShardRows(path, progress=False)


def test_a_shard_that_changed_after_indexing_is_noticed(tmp_path):
    path = write(tmp_path / "a.tar", [("a.x", b"1" * 600), ("b.x", b"2")])
    rows = ShardRows(path, progress=False)
    write(path, [("b.x", b"2"), ("a.x", b"1" * 600)])
    with pytest.raises(ShardError, match="changed since it was indexed"):
        rows[1]
    with pytest.raises(IndexError, match="outside 2 samples"):
        rows[2]


def test_pickled_members_stay_bytes(tmp_path):
    path = write(tmp_path / "a.tar", [("a.pickle", b"cos\nsystem\n(S'false'\ntR.")])
    assert ShardRows(path, progress=False)[0]["pickle"].startswith(b"cos")


def test_rows_may_be_given_the_file_of_an_index(shards, tmp_path):
    whole = ShardRows(shards, progress=False)
    whole.index.save(tmp_path / "index.parquet")
    rows = ShardRows(shards, index=tmp_path / "index.parquet")
    assert [rows[row] for row in (0, 50, 110)] == [whole[row] for row in (0, 50, 110)]


def test_rows_that_are_let_go_of_leave_no_file_open(shards, tmp_path):
    folder, rows = str(tmp_path), ShardRows(shards, progress=False)
    assert rows[0]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        del rows
        gc.collect()
    # Other tests leave files of their own.
    assert [text for text in (str(warning.message) for warning in seen) if folder in text] == []
