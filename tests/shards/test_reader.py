"""Reading by places, the transports under it, the cache and the index."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import ShardServer
from shard_files import make_table, write_shards

from flowdata import Access, MismatchError, ShardError, ShardIndex, ShardRows, TableFileError
from flowdata.shards import transport
from flowdata.shards.cache import cached
from flowdata.shards.reader import GAP, Place, ShardReader, spans
from flowdata.shards.urls import expanded, local_path, matched, shard_names, shown

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "_WAIT", 0.001)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    return tmp_path


places = st.lists(
    st.tuples(st.integers(0, 40_000), st.integers(1, 3_000_000)), min_size=1, max_size=40
).map(
    lambda steps: (
        np.cumsum([gap for gap, _ in steps])
        + np.concatenate([[0], np.cumsum([size for _, size in steps])[:-1]]),
        np.array([size for _, size in steps]),
    )
)


@given(places)
def test_spans_skip_wide_gaps_and_stay_small(found):
    offsets, sizes = found
    firsts = spans(offsets, sizes)
    assert firsts[0] == 0
    assert firsts == sorted(set(firsts))
    ends = offsets + sizes
    for first, last in zip(firsts, [*firsts[1:], offsets.size], strict=True):
        assert (offsets[first + 1 : last] - ends[first : last - 1] <= GAP).all()
        assert last - first == 1 or ends[last - 1] - offsets[first] <= 1 << 23
    for first in firsts[1:]:
        wide = offsets[first] - ends[first - 1] > GAP
        before = max(start for start in firsts if start < first)
        assert wide or ends[first] - offsets[before] > 1 << 23


SERVERS = {
    "ranges": {},
    "one range": {"multipart": False},
    "no ranges": {"ranges": False},
    "cuts": {"cut_after": 700, "cuts": 5},
    "cuts, no ranges": {"ranges": False, "cut_after": 70_000, "cuts": 4},
    "busy": {"fail_status": 503, "fails": 4},
}


@pytest.mark.parametrize("options", SERVERS.values(), ids=SERVERS)
@pytest.mark.parametrize("order", ["onwards", "backwards"])
def test_places_are_read_whatever_the_server_does(folder, options, order):
    random = np.random.default_rng(1)
    offsets = np.sort(random.choice(290, 40, replace=False)) * 1000
    sizes = random.integers(1, 1000, 40)
    groups = [slice(start, start + 10) for start in range(0, 40, 10)]
    with ShardServer(folder, **options) as server:
        reader = ShardReader(Place(server.url("a.bin"), len(CONTENT), False), Access())
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
        reader = ShardReader(Place(url, 100, False), Access(timeout=0.1, retries=2))
        with pytest.raises(ShardError, match=r"a\.bin could not be read in 3 attempts") as caught:
            reader.read(np.array([0]), np.array([10]))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_for_good_is_not_asked_again(folder, status):
    with ShardServer(folder, fail_status=status, fails=100, head=False) as server:
        reader = ShardReader(Place(server.url("a.bin"), len(CONTENT), False), Access())
        with pytest.raises(ShardError, match=f"HTTP {status}"):
            reader.read(np.array([0]), np.array([10]))
        assert len(server.requests) == 1


def test_a_place_behind_the_end_is_an_error(folder):
    for url in (str(folder / "a.bin"), None):
        with ShardServer(folder) as server:
            place = Place(url or server.url("a.bin"), -1, False)
            reader = ShardReader(place, Access(retries=1))
            with pytest.raises(ShardError, match=r"a\.bin"):
                reader.read(np.array([len(CONTENT) - 5]), np.array([10]))


def test_a_failing_command_is_named(tmp_path):
    access = Access(allow_pipe=True)
    with pytest.raises(ShardError, match="exit status 3"):
        ShardIndex.of("pipe:exit 3", access=access, progress=False)


# The cache


def test_a_cached_shard_is_whole_and_is_fetched_once(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache")
    with ShardServer(folder, cut_after=1000, cuts=2) as server:
        path = cached(server.url("a.bin"), access)
        assert path is not None
        assert path.read_bytes() == CONTENT
        asked = len(server.requests)
        assert cached(server.url("a.bin"), access) == path
        assert len(server.requests) == asked
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [path.name]


def test_the_cache_makes_room_for_what_is_new(folder, tmp_path):
    for name in "bcd":
        (folder / f"{name}.bin").write_bytes(CONTENT)
    access = Access(cache_dir=tmp_path / "cache", cache_size=2 * len(CONTENT) + 10)
    with ShardServer(folder) as server:
        first, second = (cached(server.url(f"{name}.bin"), access) for name in "ab")
        os.utime(second, (1, 1))
        cached(server.url("a.bin"), access)
        third = cached(server.url("c.bin"), access)
        assert (first.exists(), second.exists(), third.exists()) == (True, False, True)


def test_a_shard_larger_than_the_cache_is_read_through(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache", cache_size=1000)
    with ShardServer(folder) as server:
        assert cached(server.url("a.bin"), access) is None
        reader = ShardReader(Place(server.url("a.bin"), len(CONTENT), False), access)
        assert bytes(reader.read(np.array([5]), np.array([7]))[0]) == CONTENT[5:12]


def test_a_download_that_fails_leaves_nothing(folder, tmp_path):
    access = Access(cache_dir=tmp_path / "cache", retries=1)
    with (
        ShardServer(folder, cut_after=1000, cuts=10**9) as server,
        pytest.raises(ShardError, match="2 attempts"),
    ):
        cached(server.url("a.bin"), access)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_processes_that_fetch_the_same_shard_do_not_disturb_each_other(folder, tmp_path):
    code = (
        "import sys, pathlib\n"
        "from flowdata import Access\n"
        "from flowdata.shards.cache import cached\n"
        "path = cached(sys.argv[1], Access(cache_dir=pathlib.Path(sys.argv[2])))\n"
        "print(len(path.read_bytes()))"
    )
    with ShardServer(folder) as server:
        command = [sys.executable, "-c", code, server.url("a.bin"), str(tmp_path / "cache")]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate()[0].strip() for process in running] == ["300000"] * 3


# URLs and names


def test_braces_are_expanded_but_not_those_of_a_command():
    assert expanded("a-{0..2}.tar") == ["a-0.tar", "a-1.tar", "a-2.tar"]
    assert expanded(["x.tar", "y-{a,b}.tar"]) == ["x.tar", "y-a.tar", "y-b.tar"]
    assert expanded("pipe:cat {a,b}") == ["pipe:cat {a,b}"]
    for nothing in ([], ["a.tar", "a.tar"]):
        with pytest.raises(ShardError):
            expanded(nothing)


def test_names_are_what_shards_do_not_share():
    assert shard_names(["s3://b/x/a-0.tar", "s3://b/x/a-1.tar"]) == ("a-0.tar", "a-1.tar")
    assert shard_names(["/d/x/a.tar", "/d/y/a.tar"]) == ("x/a.tar", "y/a.tar")
    assert shard_names(["https://u:p@h/a.tar?sig=1#f"]) == ("a.tar",)
    with pytest.raises(ShardError, match="twice"):
        shard_names(["/d/a.tar", "/d/../d/a.tar"])


def test_urls_are_matched_by_their_ends():
    names = ("x/a.tar", "y/a.tar", "b.tar")
    urls = ["https://h/p/y/a.tar?k=1", "/local/b.tar", "s3://bucket/x/a.tar"]
    assert matched(urls, names) == [urls[2], urls[0], urls[1]]
    with pytest.raises(MismatchError, match=r"are both x/a\.tar"):
        matched(["/1/x/a.tar", "/2/x/a.tar", "/b.tar"], names)


def test_what_is_local_and_what_is_shown():
    assert str(local_path("file:///d/a%20b.tar")) == "/d/a b.tar"
    assert local_path("s3://b/a.tar") is None
    assert local_path("simplecache::s3://b/a.tar") is None
    with pytest.raises(ShardError, match="three slashes"):
        local_path("file://d/a.tar")
    assert shown("https://user:password@h/a.tar?signature=1") == "https://h/a.tar"


# The index


def test_an_index_is_saved_and_loaded(tmp_path):
    urls = write_shards(tmp_path, (3, 4), suffix="tar.gz", mode="w:gz")
    index = ShardIndex.of(urls, progress=False)
    index.save(tmp_path / "index.parquet")
    again = ShardIndex.load(tmp_path / "index.parquet")
    assert again.shards == index.shards
    assert again.keys.equals(index.keys)
    for name in ("shard", "offsets", "sizes", "lengths", "compressed"):
        assert getattr(again, name).tolist() == getattr(index, name).tolist()
    assert again.bounds().tolist() == [0, 3, 7]


def test_what_is_no_index_is_refused(tmp_path):
    from flowdata import LossTable

    path = tmp_path / "table.parquet"
    LossTable.from_losses([1.0]).save(path)
    with pytest.raises(TableFileError, match="is no index of shards"):
        ShardIndex.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(TableFileError, match="not a readable index"):
        ShardIndex.load(path)
    with pytest.raises(TableFileError, match="not a readable index"):
        ShardIndex.load(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.offsets.__setitem__(1, 0),
        lambda index: index.offsets.__setitem__(0, -512),
        lambda index: index.sizes.__setitem__(2, 1 << 50),
        lambda index: index.sizes.__setitem__(0, 0),
        lambda index: index.shard.__setitem__(0, 1),
    ],
    ids=["overlap", "negative", "huge", "empty", "order"],
)
def test_places_that_contradict_each_other_are_refused(tmp_path, change):
    table = make_table(write_shards(tmp_path, (3, 2)))
    change(table.index)
    table.index.save(tmp_path / "index.parquet")
    with pytest.raises(TableFileError, match="contradict each other"):
        ShardIndex.load(tmp_path / "index.parquet")


def test_rows_are_read_by_workers_from_the_index_of_a_table(tmp_path):
    from torch.utils.data import DataLoader

    urls = write_shards(tmp_path, (5, 6))
    index = make_table(urls).index
    rows = ShardRows(urls, index=index, decode=lambda sample: sample["txt"].decode())
    rows[3]
    loader = DataLoader(rows, batch_size=4, num_workers=2, multiprocessing_context="fork")
    expected = [f"0/{n}" for n in range(5)] + [f"1/{n}" for n in range(6)]
    assert [name for batch in loader for name in batch] == expected
