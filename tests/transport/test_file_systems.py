"""What file systems of fsspec are asked for: stubs that answer as those of stores do."""

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from flowdata import Access, ShardError
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

CONTENT = bytes(range(256)) * 4000


class Store(AbstractFileSystem):
    """Files of a store, read by opening them, with versions, and a count of what was asked."""

    cachable = False

    def __init__(self, protocol):
        super().__init__()
        self.protocol = protocol
        self.contents, self.versions, self.asked, self.opened = {}, {}, [], []
        self.listing = None

    def put(self, path, content):
        self.contents[path] = content
        self.versions[path] = self.versions.get(path, 0) + 1

    def info(self, path, refresh=False, **options):
        if path not in self.contents:
            raise FileNotFoundError(path)
        version = {"gs": "generation", "hf": "blob_id"}[self.protocol]
        known = {version: str(self.versions[path])}
        return {"name": path, "type": "file", "size": len(self.contents[path])} | known

    def _open(self, path, mode="rb", block_size=None, generation=None, **options):
        self.opened.append(options)
        if path not in self.contents or generation not in (None, str(self.versions[path])):
            raise FileNotFoundError(path)
        return File(self, path, **{k: v for k, v in options.items() if k == "cache_type"})


class File(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        self.fs.asked.append((start, end))
        return self.fs.contents[self.path][start:end]


class Hub(Store):
    """As huggingface_hub: of a file alone where it is asked so, else by a listing that it keeps."""

    listings = singles = 0

    def info(self, path, refresh=False, expand_info=False, **options):
        if self.listing is None and not expand_info:
            self.listings += 1
            self.listing = {path: Store.info(self, path) for path in self.contents}
        if self.listing is not None and path not in self.listing:
            raise FileNotFoundError(path)
        if not refresh:
            return self.listing[path]
        self.singles += 1
        return Store.info(self, path)

    def invalidate_cache(self, path=None):
        self.listing = None


@pytest.fixture
def opened(monkeypatch):
    def opened(files, name="a.tar"):
        found = (files, f"bucket/{name}")
        monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: found)
        return connect(f"{files.protocol}://bucket/{name}", Access(retries=0))

    return opened


def test_a_range_of_a_file_that_has_to_be_opened_is_all_that_is_read(opened):
    files = Store("hf")
    files.put("bucket/a.tar", CONTENT)
    transport = opened(files)
    assert bytes(transport.fetch(1000, 50).run()) == CONTENT[1000:1050]
    assert [bytes(part) for part in transport.read([(5, 10), (9000, 7)])] == [
        CONTENT[5:15],
        CONTENT[9000:9007],
    ]
    assert files.asked == [(1000, 1050), (5, 15), (9000, 9007)]


def test_no_other_generation_is_read_than_the_one_that_is_known(opened):
    files = Store("gs")
    files.put("bucket/a.tar", CONTENT)
    transport = opened(files)
    assert transport.identity().etag == "1"
    stream = transport.stream()
    assert stream.read(100) == CONTENT[:100]
    assert stream.read(100) == CONTENT[100:200]
    # Not one request for each header.
    assert len(files.asked) == 1
    assert bytes(transport.fetch(0, 10).run()) == CONTENT[:10]
    files.put("bucket/a.tar", CONTENT[::-1])
    changed = r"a\.tar was changed: its ETag is 2, but was 1"
    for read in (lambda: transport.fetch(0, 10).run(), lambda: list(transport.read([(0, 10)]))):
        with pytest.raises(ShardError, match=changed):
            read()
    assert bytes(opened(files).fetch(0, 10).run()) == CONTENT[::-1][:10]
    del files.contents["bucket/a.tar"]
    with pytest.raises(ShardError, match="there is no shard gs://bucket/a"):
        transport.fetch(0, 10).run()


def test_the_hub_is_asked_for_one_file_and_not_for_its_folder_each_time(opened):
    files = Hub("hf")
    for number in range(5):
        files.put(f"bucket/{number}.tar", CONTENT)
    for number in range(5):
        assert opened(files, f"{number}.tar").identity().etag == "1"
    assert (files.listings, files.singles) == (1, 5)
    # A listing that is kept knows nothing of what came after it.
    files.put("bucket/0.tar", CONTENT)
    files.put("bucket/5.tar", CONTENT)
    assert opened(files, "0.tar").identity().etag == "2"
    assert opened(files, "5.tar").identity().etag == "1"
    with pytest.raises(ShardError, match=r"there is no shard hf://bucket/6\.tar"):
        opened(files, "6.tar").identity()


def test_errors_of_file_systems_that_cannot_be_made_show_no_secrets(monkeypatch):
    def failing(url, **options):
        raise OSError("no route to https://auth.example/tokeninfo?access_token=hidden (really)")

    monkeypatch.setattr(fsspec.core, "url_to_fs", failing)
    with pytest.raises(ShardError, match=r"gs://bucket/a\.tar cannot be opened.*really") as caught:
        connect("gs://bucket/a.tar", Access(), Identity(5))
    assert "hidden" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
