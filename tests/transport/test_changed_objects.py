"""What is read is what was indexed: an object that changed since is an error, the same is not."""

import io
import json
import os
import shutil
import tarfile

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hostile import HostileServer, Request, times

from flowdata import (
    Access,
    FlowShards,
    LossTable,
    ShardError,
    ShardIndex,
    ShardRows,
    TableFileError,
    index_shards,
)
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

FIRST, LATER = "Thu, 01 Jan 2026 00:00:00 GMT", "Fri, 02 Jan 2026 00:00:00 GMT"


def tar(letter, samples=4, size=30_000):
    """A shard whose layout is that of all letters."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(samples):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = size
            archive.addfile(member, io.BytesIO(letter * size))
    return file.getvalue()


OLD, NEW = tar(b"A"), tar(b"B")


class Store(HostileServer):
    """Serves one object, with headers that say which one it is."""

    def __init__(self, *, serve=Request.ranged, **headers):
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.serve = serve
        super().__init__(OLD, lambda request: self.serve(request, headers=self.headers))

    def replace(self, content=NEW, **headers):
        self.content = content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def without_ranges(request, headers):
    request.whole(headers)


def matching(request, headers):
    """As object stores do."""
    wanted = request.headers.get("if-match")
    if wanted is None or wanted == headers.get("ETag"):
        request.ranged(headers)
    else:
        request.answer(412, {})


def without_head(request, headers):
    if request.method == "HEAD":
        request.answer(403, {})
    else:
        request.ranged(headers)


CHANGES = {
    "ETag": ({"ETag": '"1"'}, {"ETag": '"2"'}),
    "weak ETag": ({"ETag": 'W/"1"'}, {"ETag": 'W/"2"'}),
    "ETag in one second": (
        {"ETag": '"1"', "Last_Modified": FIRST},
        {"ETag": '"2"', "Last_Modified": FIRST},
    ),
    "time": ({"Last_Modified": FIRST}, {"Last_Modified": LATER}),
    "time, of which the ETag is not told": (
        {"ETag": '"1"', "Last_Modified": FIRST},
        {"Last_Modified": LATER},
    ),
}
SERVED = {
    "ranges": Request.ranged,
    "If-Match": matching,
    "no ranges": without_ranges,
    "no HEAD": without_head,
}


def read_on(stream):
    return b"".join(iter(lambda: stream.read(10_000), b""))


def texts(url, index, access):
    return {
        bytes(sample["txt"][:1]) for sample in FlowShards(url, index, np.ones(4), access=access)
    }


def rows(url, index, access):
    return {sample["txt"][:1] for sample in ShardRows(url, index=index, access=access)}


@pytest.mark.parametrize("read", [texts, rows])
@pytest.mark.parametrize("serve", SERVED.values(), ids=SERVED)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_object_that_changed_is_an_error_before_its_bytes_are_used(change, serve, read):
    before, after = change
    with Store(serve=serve, **before) as store:
        index = index_shards(store.url(), progress=False)
        assert read(store.url(), index, Access()) == {b"A"}
        store.replace(**after)
        with pytest.raises(ShardError, match=r"a\.tar was changed: its (ETag|time)") as caught:
            read(store.url(), index, Access())
        assert "check_version=False" in str(caught.value)
        # Who knows better may say so.
        assert read(store.url(), index, Access(check_version=False)) == {b"B"}


@pytest.mark.parametrize("serve", SERVED.values(), ids=SERVED)
def test_an_object_of_another_length_is_an_error(serve):
    with Store(serve=serve) as store:
        index = index_shards(store.url(), progress=False)
        store.replace(tar(b"B", samples=5))
        for access in (Access(), Access(check_version=False)):
            with pytest.raises(
                ShardError, match=r"a\.tar has .* bytes, but .* when it was indexed"
            ):
                texts(store.url(), index, access)


SAME = {
    "ETag": ({"ETag": '"1"'}, {"ETag": '"1"', "Last_Modified": LATER}),
    "an ETag that became weak": ({"ETag": '"1"'}, {"ETag": 'W/"1"'}),
    "an ETag that is told no more": ({"ETag": '"1"'}, {}),
    "one that is told now": ({}, {"ETag": '"1"'}),
    "nothing": ({}, {}),
}


@pytest.mark.parametrize("headers", SAME.values(), ids=SAME)
def test_what_is_the_same_as_far_as_a_server_tells_is_read(headers):
    before, after = headers
    with Store(**before) as store:
        index = index_shards(store.url(), progress=False)
        store.replace(OLD, **after)
        assert texts(store.url(), index, Access()) == {b"A"}


def test_another_server_has_other_etags(monkeypatch):
    """Scored from one host and trained from its mirror."""
    with Store(ETag='"1"') as store, Store(ETag='"x"') as mirror:
        index = index_shards(store.url(), progress=False)
        url = mirror.url().replace("127.0.0.1", "localhost")
        assert texts(url, index, Access()) == {b"A"}


CHANGE_BETWEEN = {
    "ranges": (Request.ranged, [0, 60_000]),
    "If-Match": (matching, [0, 60_000]),
}


@pytest.mark.parametrize(("serve", "offsets"), CHANGE_BETWEEN.values(), ids=CHANGE_BETWEEN)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_between_two_requests_is_an_error(change, serve, offsets):
    """Though the index knows no version."""
    before, after = change
    with Store(serve=serve, **before) as store:
        reader = ShardReader(ShardInfo(store.url(), len(OLD), False), Access())
        reader.read(np.array([0]), np.array([512]))
        store.replace(**after)
        with pytest.raises(ShardError, match=r"was changed: .* when it was"):
            reader.read(np.array(offsets), np.full(len(offsets), 512))


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"ETag": '"1"', "Last_Modified": FIRST}, '"1"'),
        ({"Last_Modified": FIRST}, None),
        ({"ETag": 'W/"1"'}, None),
        ({}, None),
    ],
    ids=str,
)
def test_each_range_is_asked_for_only_of_what_was_indexed(headers, sent):
    def asked(access, **options):
        index = ShardInfo(store.url(), len(OLD), False, **options)
        count = len(store.requests)
        ShardReader(index, access).read(np.array([0, 60_000, 90_000]), np.full(3, 512))
        return [request[2].get("if-match") for request in store.requests[count:]]

    with Store(serve=matching, **headers) as store:
        [version] = index_shards(store.url(), progress=False).versions
        assert asked(Access(), version=version) == [sent] * 3
        # Where the index says nothing, the first answer does.
        assert asked(Access()) == [None, sent, sent]
        assert asked(Access(check_version=False), version=version) == [None] * 3


def test_a_server_that_has_the_version_by_a_weak_etag_is_asked_without():
    with Store(serve=matching, ETag='"1"') as store:
        index = index_shards(store.url(), progress=False)
        store.replace(OLD, ETag='W/"1"')
        assert texts(store.url(), index, Access()) == {b"A"}
        assert [status for status in store.requests if "if-match" in status[2]]


def test_a_server_that_says_no_more_than_that_it_was_changed_is_believed():
    def silently(request, headers):
        if "if-match" in request.headers:
            request.answer(412, {})
        else:
            request.ranged()

    with Store(ETag='"1"') as store:
        index = index_shards(store.url(), progress=False)
        store.serve = silently
        with pytest.raises(ShardError, match=r'a\.tar was changed: .* none of ETag "1" as when it'):
            texts(store.url(), index, Access())


@pytest.mark.parametrize("serve", [Request.ranged, without_ranges])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_stream_does_not_go_on_in_another_object(change, serve):
    before, after = change
    with Store(**before) as store:
        cut = times(cut_in_half_with(store), 1, lambda request: serve(request, store.headers))
        store.manner = cut
        stream = connect(store.url(), Access()).stream()
        stream.read(1000)
        store.replace(**after)
        with pytest.raises(ShardError, match="was changed"):
            read_on(stream)


def cut_in_half_with(store):
    def manner(request):
        lines = "".join(f"{name}: {value}\r\n" for name, value in store.headers.items())
        half = len(OLD) // 2
        request.send(f"HTTP/1.1 200 X\r\nContent-Length: {len(OLD)}\r\n{lines}\r\n".encode())
        request.send(request.content[:half])
        request.hang_up()

    return manner


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ({"ETag": '"1"', "Last_Modified": FIRST}, '"1"'),
        ({"Last_Modified": FIRST}, FIRST),
        ({"ETag": 'W/"1"'}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_stream_that_was_cut_goes_on_only_if_the_object_is_the_same(headers, sent):
    with Store(**headers) as store:
        serve = store.manner
        store.manner = times(cut_in_half_with(store), 1, serve)
        stream = connect(store.url(), Access()).stream()
        assert read_on(stream) == OLD
        assert store.requests[-1][2].get("if-range") == sent


# Where versions are kept


def test_an_index_and_a_loss_table_keep_the_version_of_each_shard(tmp_path):
    with Store(ETag='"1"') as store:
        index = index_shards(store.url(), progress=False)
        index.save(tmp_path / "index.parquet")
        LossTable.from_losses(np.ones(4), index=index).save(tmp_path / "table.parquet")
        store.replace(ETag='"2"')
        for name in ("index", "table"):
            loaded = ShardIndex.load(tmp_path / f"{name}.parquet")
            assert loaded.versions == index.versions
            with pytest.raises(ShardError, match='its ETag is "2", but was "1"'):
                texts(store.url(), loaded, Access())
        with pytest.raises(ShardError, match='its ETag is "2", but was "1"'):
            list(FlowShards(store.url(), tmp_path / "table.parquet"))


def test_an_index_of_before_versions_were_kept_is_read(tmp_path):
    path = tmp_path / "index.parquet"
    with Store(ETag='"1"') as store:
        index_shards(store.url(), progress=False).save(path)
        table = pq.read_table(path)
        known = json.loads(table.schema.metadata[b"flowdata.shards"])
        del known["versions"]
        pq.write_table(table.replace_schema_metadata({b"flowdata.shards": json.dumps(known)}), path)
        store.replace(ETag='"2"')
        assert texts(store.url(), ShardIndex.load(path), Access()) == {b"B"}
        known["versions"] = [1]
        pq.write_table(table.replace_schema_metadata({b"flowdata.shards": json.dumps(known)}), path)
        with pytest.raises(TableFileError, match="versions"):
            ShardIndex.load(path)


def test_a_local_copy_may_have_another_time_but_no_other_length(tmp_path):
    (tmp_path / "a.tar").write_bytes(OLD)
    index = index_shards(tmp_path / "a.tar", progress=False)
    os.utime(tmp_path / "a.tar", (1, 1))
    assert texts(tmp_path / "a.tar", index, Access()) == {b"A"}
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    os.replace(tmp_path / "b.tar", tmp_path / "a.tar")
    assert texts(tmp_path / "a.tar", index, Access()) == {b"A"}
    (tmp_path / "a.tar").write_bytes(tar(b"B", samples=5))
    with pytest.raises(ShardError, match=r"a\.tar has .* bytes, but .* when it was indexed"):
        texts(tmp_path / "a.tar", index, Access())


def test_a_shard_that_was_scored_from_a_server_is_read_from_a_disk(tmp_path):
    (tmp_path / "a.tar").write_bytes(OLD)
    with Store(ETag='"1"') as store:
        index = index_shards(store.url(), progress=False)
    assert texts(tmp_path / "a.tar", index, Access()) == {b"A"}


@pytest.mark.parametrize(
    "known",
    [
        {"ETag": '"{}"'},
        {"etag": "{}"},
        {"generation": "{}", "etag": "same"},
        {"blob_id": "{}", "xet_hash": "same"},
        {"xet_hash": "{}", "mtime": "same"},
        {"LastModified": "2026-01-0{}"},
        {"updated": "2026-01-0{}"},
        {"mtime": "{}"},
    ],
    ids=str,
)
def test_an_object_of_a_file_system_that_changed_is_an_error(monkeypatch, known):
    """With what the file systems of S3, Azure, Google Cloud Storage and others tell."""
    files = fsspec.filesystem("memory")
    version = ["1"]
    info = type(files).info

    def told(self, path, **options):
        said = {name: value.format(version[0]) for name, value in known.items()}
        return info(self, path, **options) | said

    monkeypatch.setattr(type(files), "info", told)
    files.pipe_file("/bucket/a.tar", OLD)
    try:
        url = "memory://bucket/a.tar"
        index = index_shards(url, progress=False)
        assert texts(url, index, Access()) == {b"A"}
        files.pipe_file("/bucket/a.tar", NEW)
        version[0] = "2"
        with pytest.raises(ShardError, match=r"a\.tar was changed"):
            texts(url, index, Access())
    finally:
        files.rm("/bucket", recursive=True)


def test_a_file_system_that_tells_no_version_may_tell_a_time():
    files, url = fsspec.filesystem("memory"), "memory://bucket/a.tar"
    files.pipe_file("/bucket/a.tar", OLD)
    try:
        index = index_shards(url, progress=False)
        assert texts(url, index, Access()) == {b"A"}
        files.pipe_file("/bucket/a.tar", NEW)
        with pytest.raises(ShardError, match=r"a\.tar was changed: its time of modification"):
            texts(url, index, Access())
    finally:
        files.rm("/bucket", recursive=True)


def test_a_copy_in_the_cache_is_that_of_the_version(tmp_path):
    access = Access(cache_dir=tmp_path)
    with Store(ETag='"1"') as store:
        index = index_shards(store.url(), access=access, progress=False)
        assert texts(store.url(), index, access) == {b"A"}
        asked = len(store.requests)
        store.replace(ETag='"2"')
        # The copy is of what was scored, so nobody has to be asked.
        assert texts(store.url(), index, access) == {b"A"}
        assert len(store.requests) == asked
        again = index_shards(store.url(), access=access, progress=False)
        assert texts(store.url(), again, access) == {b"B"}
        for path in tmp_path.iterdir():
            path.unlink()
        with pytest.raises(ShardError, match="was changed"):
            texts(store.url(), index, access)
    assert Identity.parse(5, "").version == ""
