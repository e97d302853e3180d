"""The shards that most tests of streams read."""

import pytest
from shard_files import make_table, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def urls(folder):
    return write_shards(folder)


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)
