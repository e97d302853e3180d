"""ShardRows over a server: a batch of rows in few requests, side by side."""

from contextlib import closing

import numpy as np
import pytest
from server import ShardServer
from shard_files import write_shards
from torch.utils.data import DataLoader

from flowdata import Access, ShardError, ShardRows
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.counts import Counts
from flowdata.transport.fetching import Fetch
from flowdata.transport.http import HttpTransport
from flowdata.transport.pool import ReadingPool


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, (40, 30, 20))
    return folder


def name_of(sample):
    return sample["txt"].decode()


@pytest.fixture(scope="module")
def local(folder):
    return ShardRows(str(folder / "s-{0..2}.tar"), decode=name_of, progress=False)


def over(server, local, **options):
    urls = server.url("s-{0..2}.tar")
    return ShardRows(urls, index=local.index, decode=name_of, access=Access(**options))


@pytest.mark.parametrize("options", [{}, {"ranges": False}], ids=["ranges", "no ranges"])
def test_a_batch_of_any_rows_is_that_of_local_shards(folder, local, options):
    rows = [89, 3, 3, 45, 0, 41, 2, 88, 1]
    with ShardServer(folder, **options) as server:
        found = over(server, local)
        assert found.__getitems__(rows) == [local[row] for row in rows]
        assert [found[row] for row in (5, 60)] == [local[5], local[60]]
        assert found.__getitems__([]) == []
        with pytest.raises(IndexError, match="row 90 is outside 90 samples"):
            found.__getitems__([1, 90])


def test_neighbours_of_a_batch_are_read_in_one_request(folder, local):
    with ShardServer(folder) as server:
        rows = over(server, local)
        for batch in DataLoader(rows, batch_size=10, collate_fn=list):
            assert len(batch) == 10
        # Batches, one of which is in two shards, and what tells how soon the server answers.
        assert len(server.requests) <= 9 + 3 + 4


def test_a_row_may_be_changed_by_who_has_it(folder, local):
    with ShardServer(folder) as server:
        rows = ShardRows(server.url("s-{0..2}.tar"), index=local.index)
        first, second = rows.__getitems__([4, 4])
        first["txt"] = b"changed"
        assert second["txt"] == b"0/4"


def test_a_broken_shard_is_an_error_and_others_can_be_read_after_it(folder, local):
    with ShardServer(folder, fail_status=404, fails=1) as server:
        rows = over(server, local)
        with pytest.raises(ShardError, match="404"):
            rows.__getitems__([1, 2])
        assert rows.__getitems__([1, 2]) == ["0/1", "0/2"]


def test_after_an_interrupt_rows_can_be_read(folder, local, monkeypatch):
    def interrupted(pool, is_done):
        raise KeyboardInterrupt

    with ShardServer(folder) as server:
        rows = over(server, local)
        with monkeypatch.context() as changed:
            changed.setattr(ReadingPool, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rows.__getitems__([1, 50])
        assert rows.__getitems__([1, 50]) == [local[1], local[50]]


def test_where_one_request_fails_the_samples_of_the_others_are_there(folder, local, monkeypatch):
    samples = local.index.of_shard(0)
    places = np.array([0, 12, 13, 30])
    offsets, sizes = samples.offsets[places], samples.sizes[places]
    fetch = HttpTransport.fetch

    def fails_once(transport, offset, size):
        if offset != offsets[1]:
            return fetch(transport, offset, size)

        def attempt(_):
            raise ShardError("it cannot be read")

        return Fetch(attempt, "s-0.tar", Access(retries=0))

    monkeypatch.setattr(HttpTransport, "fetch", fails_once)
    with ShardServer(folder) as server, closing(ReadingPool(2, Counts())) as pool:
        info = ShardInfo.from_index(local.index, 0, server.url("s-0.tar"))
        reader = ShardReader(info, Access(most_overread=1))
        piece = reader.submit(pool, (0, 0), offsets, sizes, connections=1)
        pool.wait(piece.is_there)
    assert [isinstance(content, ShardError) for content in piece.contents] == [0, 1, 1, 0]
    assert [len(piece.contents[place]) for place in (0, 3)] == sizes[[0, 3]].tolist()
