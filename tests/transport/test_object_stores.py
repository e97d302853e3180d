"""Shards in an object store, by its own URLs and by those that are signed."""

import tarfile
import time
from collections import Counter

import fsspec
import numpy as np
import pytest
from hostile import HostileServer
from object_store import object_store, signed
from shard_files import make_table, planned, write_shards
from shard_streams import OPTIONS, loader_over, make

from flowdata import Access, FlowShards, LossTable, ShardError, ShardRows, index_shards
from flowdata.transport import signed as signed_urls
from flowdata.transport.access import AbandonedError
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

SIZES = (30, 3, 50)


@pytest.fixture(scope="module")
def store():
    with object_store() as client:
        yield client


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, SIZES)
    for path in folder.iterdir():
        store.put_object(Bucket="bucket", Key=f"run 1/{path.name}", Body=path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return make_table(str(folder / "s-{0..2}.tar"))


def keys():
    return [f"run 1/s-{number}.tar" for number in range(3)]


PLACES = {
    "s3": lambda client: [f"s3://bucket/{key}" for key in keys()],
    "signed": lambda client: [signed(client, key) for key in keys()],
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_shards_in_an_object_store_are_indexed_and_drawn_as_those_on_a_disk(
    store, folder, table, place, tmp_path
):
    urls = place(store)
    index = index_shards(urls, progress=False)
    assert index.sizes.tolist() == table.index.sizes.tolist()
    assert all('"' in version for version in index.versions)
    LossTable.from_losses(np.asarray(table.losses), index=index).save(tmp_path / "t.parquet")
    saved = (tmp_path / "t.parquet").read_bytes()
    assert b"Signature" not in saved
    drawn = Counter(make(urls, tmp_path / "t.parquet"))
    assert drawn == planned(table, **OPTIONS)
    # In workers that are forked from a process that has read from the store.
    loader = loader_over(make(urls, tmp_path / "t.parquet"), 2)
    assert Counter(name for batch in loader for name in batch) == planned(table, **OPTIONS)
    rows = ShardRows(urls, index=index)
    assert [rows[row]["txt"] for row in (0, 31, 82)] == [b"0/0", b"1/1", b"2/49"]


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_an_object_that_was_replaced_is_an_error_also_between_two_requests(store, folder, place):
    path = folder / "s-0.tar"
    content = path.read_bytes()
    index = index_shards(place(store)[0], progress=False)
    transport = connect(place(store)[0], Access(), Identity.parse(len(content), index.versions[0]))
    assert bytes(transport.fetch(0, 100).run()) == content[:100]
    try:
        store.put_object(Bucket="bucket", Key=keys()[0], Body=content[::-1])
        with pytest.raises(ShardError, match=r"s-0\.tar was changed: its ETag") as caught:
            transport.fetch(0, 100).run()
        assert "ignature" not in str(caught.value)
        with pytest.raises(ShardError, match=r"s-0\.tar was changed: its ETag"):
            list(FlowShards(place(store)[:1], index, np.ones(30)))
    finally:
        store.put_object(Bucket="bucket", Key=keys()[0], Body=content)


def test_an_object_is_read_by_signed_urls_and_by_its_file_system_where_these_lead_nowhere(
    store, folder, monkeypatch
):
    content, files = (folder / "s-2.tar").read_bytes(), fsspec.filesystem("s3")
    url = f"s3://bucket/{keys()[2]}"
    asked, cat_file = [], files.cat_file

    def counted(*arguments, **options):
        asked.append(arguments)
        return cat_file(*arguments, **options)

    monkeypatch.setattr(files, "cat_file", counted)
    transport = connect(url, Access())
    assert bytes(transport.fetch(7, 1000).run()) == content[7:1007]
    assert asked == []
    abandoned = transport.fetch(0, 9)
    abandoned.abandon()
    with pytest.raises(AbandonedError):
        abandoned.run()
    with HostileServer(content, lambda request: request.answer(403, {})) as denying:
        for astray in (
            lambda path, **options: denying.url(),
            lambda path, **options: "http://127.0.0.1:9/nobody",
            lambda path, **options: 1 / 0,
        ):
            monkeypatch.setattr(files, "sign", astray)
            monkeypatch.setattr(signed_urls, "FAILURES", Counter())
            transport, count = connect(url, Access(retries=0)), len(asked)
            for start in range(5):
                assert bytes(transport.fetch(start, 10).run()) == content[start : start + 10]
            assert len(asked) == count + 5
            assert set(signed_urls.FAILURES.values()) == {3}


def test_a_url_whose_time_is_over_is_signed_anew(store, folder, monkeypatch):
    content, files = (folder / "s-1.tar").read_bytes(), fsspec.filesystem("s3")
    url, sign, made = f"s3://bucket/{keys()[1]}", files.sign, []

    def counted(path, **options):
        # As one of keys that hold no longer than this.
        made.append(sign(path + ("-over" if len(made) == 1 else ""), **options))
        return made[-1]

    monkeypatch.setattr(files, "sign", counted)
    transport, now = connect(url, Access(retries=0)), time.monotonic
    for hours in range(5):
        monkeypatch.setattr(signed_urls.time, "monotonic", lambda hours=hours: now() + 3600 * hours)
        assert bytes(transport.fetch(hours, 10).run()) == content[hours : hours + 10]
    assert len(made) == 5
    assert len(set(made)) > 1


def test_what_is_not_there_or_not_allowed_is_named_without_secrets(store, folder):
    for number in range(5):
        with pytest.raises(ShardError, match=f"there is no shard s3://bucket/none-{number}"):
            connect(f"s3://bucket/none-{number}.tar", Access()).fetch(0, 10).run()
    failed = {bucket: times for (_, bucket), times in signed_urls.FAILURES.items()}
    assert failed.get("bucket", 0) < 3
    for url in ("s3://bucket/none.tar", signed(store, "none.tar"), "s3://other/none.tar"):
        with pytest.raises(ShardError, match=r"none\.tar") as caught:
            index_shards(url, access=Access(retries=0), progress=False)
        assert "not-to-be-shown" not in str(caught.value)
        assert "ignature" not in str(caught.value)
    options = {
        "key": "key",
        "secret": "other",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    access = Access(retries=0, storage_options=options)
    assert "other" not in repr(access)
    with pytest.raises(ShardError, match=r"s-0\.tar could not be read"):
        index_shards(f"s3://bucket/{keys()[0]}", access=access, progress=False)


def test_a_whole_shard_of_a_store_is_kept(store, folder, tmp_path):
    access = Access(cache_dir=tmp_path)
    index = index_shards(f"s3://bucket/{keys()[0]}", access=access, progress=False)
    [copy] = tmp_path.iterdir()
    assert copy.read_bytes() == (folder / "s-0.tar").read_bytes()
    with tarfile.open(copy) as tar:
        assert len(tar.getnames()) == 60
    assert len(index) == 30
