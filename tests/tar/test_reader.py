"""Reading by offset and size, the transports under it, the cache and the index."""

import gzip
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import ShardServer
from shard_files import make_table, write_shards

from flowdata import (
    Access,
    FlowShards,
    LossTable,
    MismatchError,
    ShardError,
    ShardIndex,
    ShardRows,
    TableFileError,
)
from flowdata.tar.indexing import index_shards
from flowdata.tar.names import match_all, shard_names
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.planner import GAP, ON_DISK, plan_requests
from flowdata.transport.urls import expand_braces, local_path, redact

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path


sample_spans = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(1, 3_000_000)), min_size=1, max_size=40
).map(
    lambda steps: (
        np.cumsum([gap for gap, _ in steps])
        + np.concatenate([[0], np.cumsum([size for _, size in steps])[:-1]]),
        np.array([size for _, size in steps]),
    )
)


@given(sample_spans)
def test_spans_of_files_skip_wide_gaps_and_stay_small(found):
    offsets, sizes = found
    firsts = plan_requests(offsets, sizes, ON_DISK, connections=1, most_overread=np.inf)
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    ends = offsets + sizes
    for first, last in zip(firsts, [*firsts[1:], offsets.size], strict=True):
        assert (offsets[first + 1 : last] - ends[first : last - 1] <= GAP).all()
        assert last - first == 1 or ends[last - 1] - offsets[first] <= 1 << 23
    for first in firsts[1:]:
        if offsets[first] - ends[first - 1] <= GAP:
            gaps = offsets[1:] - ends[:-1] > GAP
            begin = np.flatnonzero(np.append(True, gaps[: first - 1]))[-1]
            end = np.append(np.flatnonzero(gaps[first:]) + first, offsets.size - 1)[0]
            assert ends[end] - offsets[begin] > 1 << 23


SERVERS = {
    "ranges": {},
    "no ranges": {"ranges": False},
    "cuts": {"cut_after": 700, "cuts": 5},
    "cuts, no ranges": {"ranges": False, "cut_after": 70_000, "cuts": 4},
    "busy": {"fail_status": 503, "fails": 4},
}


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("order", ["onwards", "backwards"])
def test_samples_are_read_whatever_the_server_does(folder, options, order):
    random = np.random.default_rng(1)
    offsets = np.sort(random.choice(290, 40, replace=False)) * 1000
    sizes = random.integers(1, 1000, 40)
    groups = [slice(start, start + 10) for start in range(0, 40, 10)]
    with ShardServer(folder, **options) as server:
        reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), Access())
        for part in groups if order == "onwards" else groups[::-1]:
            views = reader.read(offsets[part], sizes[part])
            assert [bytes(view) for view in views] == [
                CONTENT[offset : offset + size]
                for offset, size in zip(offsets[part], sizes[part], strict=True)
            ]
        reader.close()


def test_a_server_that_is_silent_is_given_up_after_its_time(folder):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.bin?token=secret"
        reader = ShardReader(ShardInfo(url, 100, False), Access(timeout=0.1, retries=2))
        with pytest.raises(ShardError, match=r"a\.bin could not be read in 3 attempts") as caught:
            reader.read(np.array([0]), np.array([10]))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_for_good_is_not_asked_again(folder, status):
    with ShardServer(folder, fail_status=status, fails=100, head=False) as server:
        reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), Access())
        with pytest.raises(ShardError, match=f"HTTP {status}"):
            reader.read(np.array([0]), np.array([10]))
        assert len(server.requests) == 1


def test_a_sample_after_the_end_is_an_error(folder):
    for url in (str(folder / "a.bin"), None):
        with ShardServer(folder) as server:
            shard = ShardInfo(url or server.url("a.bin"), -1, False)
            reader = ShardReader(shard, Access(retries=1))
            with pytest.raises(ShardError, match=r"a\.bin"):
                reader.read(np.array([len(CONTENT) - 5]), np.array([10]))


@pytest.mark.parametrize("kind", ["gzip", "pipe", "server"])
def test_a_sample_that_is_cut_off_in_a_stream_is_an_error(folder, kind):
    # None of them tells its length beforehand.
    shard = ShardInfo("pipe:cat " + str(folder / "a.bin"), -1, False)
    if kind == "gzip":
        (folder / "a.gz").write_bytes(gzip.compress(CONTENT))
        shard = ShardInfo(str(folder / "a.gz"), -1, True)
    with ShardServer(folder, ranges=False, head=False) as server:
        if kind == "server":
            shard = ShardInfo(server.url("a.bin"), -1, False)
        reader = ShardReader(shard, Access(retries=1, allow_pipe=True))
        [whole] = reader.read(np.array([len(CONTENT) - 10]), np.array([10]))
        assert bytes(whole) == CONTENT[-10:]
        with pytest.raises(ShardError, match=r"a\.(bin|gz) is cut off or corrupt: .*300,000"):
            reader.read(np.array([len(CONTENT) - 5]), np.array([6]))
        reader.close()


def test_a_failing_command_is_named(tmp_path):
    access = Access(allow_pipe=True)
    with pytest.raises(ShardError, match="exit status 3"):
        index_shards("pipe:exit 3", access=access, progress=False)


def test_a_shard_on_a_server_without_ranges_is_sent_once(folder):
    with ShardServer(folder, ranges=False) as server:
        reader = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), Access())
        for start in range(0, 200_000, 50_000):
            offsets = start + np.arange(0, 50_000, 25_000)
            assert (
                bytes(reader.read(offsets, np.array([10, 10]))[1])
                == (CONTENT[offsets[1] : offsets[1] + 10])
            )
        again = ShardReader(ShardInfo(server.url("a.bin"), len(CONTENT), False), Access())
        again.read(np.array([5]), np.array([5]))
        assert [span for _, span in server.requests] == ["bytes=0-9", None]
        reader.close()
        again.close()


# URLs and names


def test_braces_are_expanded_but_not_those_of_a_command():
    assert expand_braces("a-{0..2}.tar") == ["a-0.tar", "a-1.tar", "a-2.tar"]
    assert expand_braces(["x.tar", "y-{a,b}.tar"]) == ["x.tar", "y-a.tar", "y-b.tar"]
    # Of a shell command, as webdataset does, only what can be nothing else.
    assert expand_braces("pipe:cat {a,b}") == ["pipe:cat {a,b}"]
    assert expand_braces(r"pipe:cat a-{09..10}.{1..1}|awk '{print \"$1\"}'") == [
        rf"pipe:cat a-{number}.1|awk '{{print \"$1\"}}'" for number in ("09", "10")
    ]
    for nothing in ([], ["a.tar", "a.tar"]):
        with pytest.raises(ShardError):
            expand_braces(nothing)


def test_names_are_what_shards_do_not_share():
    assert shard_names(["s3://b/x/a-0.tar", "s3://b/x/a-1.tar"]) == ("a-0.tar", "a-1.tar")
    assert shard_names(["/d/x/a.tar", "/d/y/a.tar"]) == ("x/a.tar", "y/a.tar")
    assert shard_names(["https://u:p@h/a.tar?sig=1#f"]) == ("a.tar",)
    with pytest.raises(ShardError, match="twice"):
        shard_names(["/d/a.tar", "/d/../d/a.tar"])


def test_urls_are_matched_by_their_ends():
    names = ("x/a.tar", "y/a.tar", "b.tar")
    urls = ["https://h/p/y/a.tar?k=1", "/local/b.tar", "s3://bucket/x/a.tar"]
    assert match_all(urls, names) == [urls[2], urls[0], urls[1]]
    with pytest.raises(MismatchError, match=r"are both x/a\.tar"):
        match_all(["/1/x/a.tar", "/2/x/a.tar", "/b.tar"], names)


def test_what_is_local_and_what_is_shown():
    assert str(local_path("file:///d/a%20b.tar")) == "/d/a b.tar"
    assert local_path("s3://b/a.tar") is None
    assert local_path("simplecache::s3://b/a.tar") is None
    with pytest.raises(ShardError, match="three slashes"):
        local_path("file://d/a.tar")
    assert redact("https://user:password@h/a.tar?signature=1") == "https://h/a.tar"
    assert redact("abfs://container@account/a.tar?sig=1") == "abfs://container@account/a.tar"
    assert redact("abfs://user:password@account/a.tar") == "abfs://account/a.tar"


@pytest.mark.parametrize(
    ("urls", "hint"),
    [
        ("{folder}", r"it is a folder; give its shards: .*/data-{000\.\.009}\.tar"),
        ("{folder}/*.tar", r"sorted\(glob\.glob\('.*/\*\.tar'\)\)"),
        ("{folder}/{{0..4.tar", "a brace without its partner"),
        ("{folder}/0..4}}.tar", "a brace without its partner"),
    ],
)
def test_what_is_no_shard_is_told_with_what_to_write(tmp_path, urls, hint):
    with pytest.raises(ShardError, match=hint):
        index_shards(urls.format(folder=tmp_path), progress=False)


# The index


def test_shards_without_samples_stay_in_an_index_and_a_table(tmp_path):
    for number, name in enumerate(["plain", "a.txt", "plain", "b.txt", "plain"]):
        with tarfile.open(tmp_path / f"s-{number}.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
    urls, path = str(tmp_path / "s-{0..4}.tar"), tmp_path / "index.parquet"
    index = index_shards(urls, progress=False)
    index.save(path)
    table = LossTable.from_losses([1.0, 2.0], index=index)
    table.save(tmp_path / "losses.parquet")
    for again in (ShardIndex.load(path), LossTable.load(tmp_path / "losses.parquet").index):
        assert again.shards == tuple(f"s-{number}.tar" for number in range(5))
        assert again.shard.tolist() == [1, 3]
        assert len(list(FlowShards(urls, again, [1.0, 1.0]))) == 2


def test_names_of_shards_may_be_plain_strings(tmp_path):
    index = index_shards(write_shards(tmp_path, (3, 4)), progress=False)
    path = tmp_path / "index.parquet"
    index.save(path)
    saved = pq.read_table(path)
    for names in (saved["shard"].cast(pa.string()), pa.array(["x.tar"] * 7), pa.nulls(7)):
        pq.write_table(saved.set_column(0, "shard", names), path)
        if names[0].as_py() == "s-0.tar":
            assert ShardIndex.load(path).shard.tolist() == index.shard.tolist()
        else:
            named = "the shard 'x.tar'" if names.null_count == 0 else "the column shard is null"
            with pytest.raises(TableFileError, match=named):
                ShardIndex.load(path)


def test_an_index_is_saved_and_loaded(tmp_path):
    urls = write_shards(tmp_path, (3, 4), suffix="tar.gz", mode="w:gz")
    index = index_shards(urls, progress=False)
    index.save(tmp_path / "index.parquet")
    again = ShardIndex.load(tmp_path / "index.parquet")
    assert again.shards == index.shards
    assert again.keys.equals(index.keys)
    for name in ("shard", "offsets", "sizes", "lengths", "compressed"):
        assert getattr(again, name).tolist() == getattr(index, name).tolist()
    assert again.bounds().tolist() == [0, 3, 7]


def test_what_is_no_index_is_refused(tmp_path):
    path = tmp_path / "table.parquet"
    LossTable.from_losses([1.0]).save(path)
    with pytest.raises(TableFileError, match="is no index of shards"):
        ShardIndex.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(TableFileError, match="not a readable Parquet file"):
        ShardIndex.load(path)
    with pytest.raises(TableFileError, match="there is no index at"):
        ShardIndex.load(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.offsets.__setitem__(1, 0),
        lambda index: index.offsets.__setitem__(0, -512),
        lambda index: index.sizes.__setitem__(2, 1 << 50),
        lambda index: index.sizes.__setitem__(0, 0),
    ],
    ids=["overlap", "negative", "huge", "empty"],
)
def test_spans_that_contradict_each_other_are_refused(tmp_path, change):
    table = make_table(write_shards(tmp_path, (3, 2)))
    change(table.index)
    table.index.save(tmp_path / "index.parquet")
    with pytest.raises(TableFileError, match="contradict each other"):
        ShardIndex.load(tmp_path / "index.parquet")


def test_an_index_whose_shards_are_mixed_is_refused(tmp_path):
    path = tmp_path / "index.parquet"
    make_table(write_shards(tmp_path, (3, 2))).index.save(path)
    rows = pq.read_table(path)
    pq.write_table(rows.take([0, 1, 3, 2, 4]), path)
    with pytest.raises(TableFileError, match="is damaged"):
        ShardIndex.load(path)


def test_rows_are_read_by_workers_from_the_index_of_a_table(tmp_path):
    from torch.utils.data import DataLoader

    urls = write_shards(tmp_path, (5, 6))
    index = make_table(urls).index
    rows = ShardRows(urls, index=index, decode=lambda sample: sample["txt"].decode())
    rows[3]
    loader = DataLoader(rows, batch_size=4, num_workers=2, multiprocessing_context="fork")
    expected = [f"0/{n}" for n in range(5)] + [f"1/{n}" for n in range(6)]
    assert [name for batch in loader for name in batch] == expected
