"""Servers in every manner: what is read from them is right, or an error, in a bounded time."""

import io
import random
import tarfile
import tempfile
import threading
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzzing import examples
from hostile import (
    MANNERS_BETWEEN,
    MANNERS_THAT_FAIL,
    MANNERS_THAT_SERVE,
    HostileServer,
    cut_in_half,
    times,
)
from hypothesis import given
from hypothesis import strategies as st

from flowdata import Access, ShardError, index_shards
from flowdata.tar.reader import ShardInfo, ShardReader
from flowdata.transport.cache import open_cached
from flowdata.transport.connect import connect
from flowdata.transport.identity import Identity

SECONDS = 30
# Those that serve are given time, whatever else this machine does.
PATIENT = {"timeout": 20, "retries": 3, "max_wait": 0.2}
HASTY = {"timeout": 0.1, "retries": 1, "max_wait": 0.2}


def tar(samples=8):
    noise, file = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in range(samples):
            member = tarfile.TarInfo(f"{number}.bin")
            member.size = 20_000
            archive.addfile(member, io.BytesIO(noise.bytes(20_000)))
    return file.getvalue()


CONTENT = tar()
SPANS = np.array([100, 50_000, 120_000, 140_000]), np.array([50, 2000, 300, 20_000])


def index(server, access):
    found = index_shards(server.url(), access=access, progress=False)
    assert found.offsets.tolist() == [20_992 * number for number in range(8)]
    assert found.lengths.tolist() == [len(CONTENT)] or found.compressed.all()


def read_whole(server, access):
    stream = connect(server.url(), access, Identity(len(CONTENT))).stream()
    parts = []
    while part := stream.read(30_000):
        parts.append(part)
    stream.close()
    assert b"".join(parts) == CONTENT


def read_ranges(server, access):
    for first in (0, 1):
        reader = ShardReader(ShardInfo(server.url(), len(CONTENT), False), access)
        offsets, sizes = (array[first:] for array in SPANS)
        expected = [
            CONTENT[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)
        ]
        assert [bytes(view) for view in reader.read(offsets, sizes)] == expected
        reader.close()


def go_on(server, access):
    """Read all, after the first answer was cut."""
    server.manner = times(cut_in_half, 1, server.manner)
    read_whole(server, access)


def keep(server, access):
    copy = open_cached(server.url(), access, Identity(len(CONTENT)))
    if copy is not None:
        assert copy.stream().read(10**6) == CONTENT
        copy.close()
    for path in access.cache_dir.iterdir():
        assert path.suffix == ".shard"
        assert path.read_bytes() == CONTENT


OPERATIONS = {
    "index": index,
    "read whole": read_whole,
    "read ranges": read_ranges,
    "go on": go_on,
    "keep": keep,
    "index what is kept": index,
}


def outcome(operation, server, access):
    """None for right bytes, or the ShardError; whatever else happens fails."""
    raised = []

    def run():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                operation(server, access)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), f"it hangs for {SECONDS} s"
    if raised and not isinstance(raised[0], ShardError):
        raise raised[0]
    return raised[0] if raised else None


def tried(name, manner, folder, options):
    """What becomes of an operation."""
    access = Access(**options)
    if "ke" in name:
        folder.mkdir()
        access = replace(access, cache_dir=folder)
    with HostileServer(CONTENT, manner) as server:
        return outcome(OPERATIONS[name], server, access)


@pytest.mark.parametrize("manner", MANNERS_THAT_SERVE)
def test_what_serves_the_shard_in_any_manner_is_read(manner, tmp_path):
    errors = {
        name: tried(name, MANNERS_THAT_SERVE[manner], tmp_path / name, PATIENT)
        for name in OPERATIONS
    }
    assert errors == dict.fromkeys(OPERATIONS)


@pytest.mark.parametrize("manner", MANNERS_THAT_FAIL)
def test_what_does_not_serve_the_shard_is_an_error_that_names_it(manner, tmp_path):
    for name in OPERATIONS:
        error = tried(name, MANNERS_THAT_FAIL[manner], tmp_path / name, HASTY)
        # A copy that nobody can know to be whole is not made.
        if name != "keep" or not manner.endswith("without a length"):
            assert error is not None, name
            assert "a.tar" in str(error)
            assert "secret" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("manner", MANNERS_BETWEEN)
def test_what_is_odd_is_right_or_an_error_that_names_the_shard(manner, tmp_path):
    for name in OPERATIONS:
        error = tried(name, MANNERS_BETWEEN[manner], tmp_path / name, HASTY)
        assert error is None or "a.tar" in str(error)


QUICK = {
    name: manner
    for name, manner in (MANNERS_THAT_SERVE | MANNERS_THAT_FAIL | MANNERS_BETWEEN).items()
    if "silence" not in name and "drip" not in name
}


@examples(40)
@given(
    st.sampled_from(list(OPERATIONS)),
    st.lists(st.sampled_from(list(QUICK)), min_size=2, max_size=5),
    st.integers(0, 1 << 32),
)
def test_a_server_in_changing_manners_is_read_right_or_not_at_all(name, manners, seed):
    chance = random.Random(seed)

    def manner(request):
        QUICK[chance.choice([*manners, "ranges"])](request)

    with tempfile.TemporaryDirectory() as folder:
        options = HASTY | {"retries": 4}
        error = tried(name, manner, Path(folder) / "cache", options)
    assert error is None or "a.tar" in str(error)
