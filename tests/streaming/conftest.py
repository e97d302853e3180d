"""The shards that most tests of streams read, wherever these lie."""

import contextlib
from pathlib import Path

import pytest
import shard_places
from shard_files import make_table, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def local_urls(folder):
    return write_shards(folder)


@pytest.fixture(scope="module")
def place():
    """Tests that hold in all places are given this one by `parametrize`."""
    return "local"


@pytest.fixture(scope="module")
def urls(local_urls, place):
    path = Path(local_urls)
    with shard_places.at(place, path.parent) as root:
        yield f"{root}/{path.name}"


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)


@pytest.fixture
def moved(place):
    """Moves local shards to the place: their URL there, until the test ends."""
    with contextlib.ExitStack() as stack:

        def moved(urls):
            path = Path(urls)
            return f"{stack.enter_context(shard_places.at(place, path.parent))}/{path.name}"

        yield moved
