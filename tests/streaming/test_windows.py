"""What reading windows of draws holds: bytes, threads, open files; in which order it reads."""

import contextlib
import math
import os
import threading
import weakref

import numpy as np
import pyarrow as pa
import pytest

from flowdata import Access, ShardError
from flowdata.streaming.order import Window
from flowdata.streaming.windows import WindowReader
from flowdata.table.shard_index import ShardIndex
from flowdata.tar import reader
from flowdata.transport import pool, speeds
from flowdata.transport.fetching import Fetch
from flowdata.transport.identity import UNKNOWN

SHARDS, SAMPLES, SIZE = 24, 40, 50_000


class Store:
    """Shards of which each byte tells its place, and the bytes that somebody holds of them."""

    supports_ranges = True

    def __init__(self):
        self.held = self.peak = 0
        self.open = set()
        self.spans = []
        self.lock = threading.Lock()
        self.broken = set()
        self.late = lambda offset: False
        self.gate = threading.Event()

    def connect(self, url, access, expected, share, counts):
        return _Shard(self, url, access)


class _Shard:
    supports_ranges = True

    def __init__(self, store, url, access):
        self.store, self.url, self.access = store, url, access
        self.number = int(url.rpartition("-")[2].split(".")[0])
        store.open.add(self)

    def identity(self):
        return UNKNOWN

    def fetch(self, offset, size):
        def attempt(fetch):
            fetch.begins()
            store = self.store
            if store.late(offset):
                store.gate.wait(5)
            if self.number in store.broken:
                raise ShardError(f"shard {self.number} is broken")
            content = bytes_of(self.number, offset, size)
            with store.lock:
                store.spans.append((self.number, offset, size))
                store.held += size
                store.peak = max(store.peak, store.held)
            weakref.finalize(content, self.let_go, size)
            return memoryview(content)

        return Fetch(attempt, self.url, self.access)

    def let_go(self, size):
        with self.store.lock:
            self.store.held -= size

    def close(self):
        self.store.open.discard(self)


def bytes_of(shard, offset, size):
    """What a shard has there."""
    places = np.arange(offset, offset + size, dtype=np.uint32)
    return (places * 7 + places // 251 + shard).astype(np.uint8)


@pytest.fixture
def store(monkeypatch):
    store = Store()
    monkeypatch.setattr(reader, "connect", store.connect)
    monkeypatch.setattr(speeds, "_of_host", {})
    # On a machine that is busy, what is read from memory may be overdue.
    monkeypatch.setattr(pool, "_FIRST_HEDGES", -1_000_000)
    return store


@pytest.fixture(scope="module")
def index():
    return ShardIndex(
        tuple(f"s-{number}.tar" for number in range(SHARDS)),
        np.repeat(np.arange(SHARDS, dtype=np.int32), SAMPLES),
        pa.array([f"k{row}" for row in range(SHARDS * SAMPLES)]),
        np.tile(np.arange(SAMPLES) * SIZE, SHARDS),
        np.full(SHARDS * SAMPLES, SIZE),
        np.full(SHARDS, SAMPLES * SIZE),
        np.zeros(SHARDS, dtype=bool),
    )


def windows(shards_open=4, draws=20, shards=SHARDS):
    """Windows of every second row, some of them twice."""
    random = np.random.default_rng(0)
    for group, first in enumerate(range(0, shards, shards_open)):
        numbers = list(range(first, first + shards_open))
        for begin in range(0, SAMPLES, draws):
            rows = [
                np.sort(np.append(np.arange(begin, begin + draws, 2), [begin])) + n * SAMPLES
                for n in numbers
            ]
            size = sum(map(len, rows))
            yield Window(group, numbers, rows, random.permutation(size), [1.0] * len(numbers)), 0


def reading(index, **options):
    urls = [f"http://host/{name}" for name in index.shards]
    return WindowReader(index, urls, Access(**options))


def expected_rows():
    return [
        row for window, _ in windows() for row in np.concatenate(window.rows)[window.order].tolist()
    ]


def alive():
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowdata-")]


def test_draws_come_in_their_order_with_their_bytes(store, index):
    found = []
    read = reading(index)
    for row, shard, key, content in read.draws(windows()):
        found.append(row)
        assert (shard, key) == (row // SAMPLES, f"k{row}")
        assert bytes(content) == bytes_of(shard, row % SAMPLES * SIZE, SIZE).tobytes()
    assert found == expected_rows()
    assert not alive()
    assert not store.open
    owed = len(set(found)) * SIZE
    assert read.reading.bytes_owed == owed
    assert read.bytes_read == sum(size for _, _, size in store.spans) >= owed


def test_each_byte_is_read_once(store, index):
    read = reading(index, most_overread=1.0)
    for _ in read.draws(windows()):
        pass
    spans = set(store.spans)
    assert sum(size for _, _, size in spans) == read.reading.bytes_owed
    # But for what was read first, to learn how soon the server answers.
    assert len(store.spans) - len(spans) <= 4


def test_all_may_be_read_over(store, index):
    read = reading(index, most_overread=math.inf)
    assert [draw.row for draw in read.draws(windows())] == expected_rows()


@pytest.mark.parametrize("ahead", [1, 3_000_000, 12_000_000])
def test_bytes_held_are_those_allowed_and_one_window(store, index, ahead):
    window = 4 * 10 * SIZE
    read = reading(index, ahead=ahead, connections=3, most_overread=1)
    draws = read.draws(windows())
    for number, _ in enumerate(draws):
        if number % 11 == 0:
            # As slow as any training: all that may be read is read.
            settle(store)
    # One window is always read ahead.
    most = max(ahead, window) // window * window + window
    # Somebody may hold the last sample of the window before.
    assert most <= store.peak <= most + SIZE
    del draws, _
    assert store.held == 0


def settle(store):
    before = -1
    while before != (before := len(store.spans)):
        threading.Event().wait(0.005)


def test_threads_are_bounded_and_end_where_a_pass_is_left(store, index):
    draws = reading(index, connections=3).draws(windows())
    most = 0
    for _ in range(300):
        next(draws)
        most = max(most, len(alive()))
    assert 1 <= most <= 3 + 1
    draws.close()
    assert not alive()
    assert not store.open


def test_shards_are_closed_when_their_last_window_was_read(store, index):
    draws = reading(index, ahead=1).draws(windows())
    most = 0
    for number, _ in enumerate(draws):
        if number % 11 == 0:
            settle(store)
            most = max(most, len(store.open))
    assert most == 4
    assert not store.open


def test_samples_of_a_broken_shard_are_errors_and_the_others_come(store, index):
    store.broken = {2, 9}
    found = []
    for row, shard, _, content in reading(index).draws(windows()):
        found.append(row)
        assert isinstance(content, ShardError) == (shard in store.broken)
    assert found == expected_rows()
    assert not alive()


def test_a_window_that_is_done_in_part_gives_the_rest(store, index):
    [(window, _), *others] = windows()
    found = [drawn.row for drawn in reading(index).draws([(window, 30), *others])]
    assert found == expected_rows()[30:]


def test_a_large_window_is_gone_on_with_in_two_parts(store, index):
    """The first draws do not wait for the samples of all the others."""
    [(window, _)] = windows(shards_open=SHARDS, draws=SAMPLES)
    rows = np.concatenate(window.rows)[window.order].tolist()
    for done, begun in ((0, len(rows)), (30, 128), (len(rows) - 200, 200)):
        reader = reading(index, ahead=0)
        draws = reader.draws([(window, done)])
        first = next(draws)
        # What is owed is counted when it is asked for: the first part, and then one part ahead.
        owed = len({*rows[done : done + begun]}) + len({*rows[done + begun :]})
        assert reader.reading.bytes_owed == owed * SIZE
        assert [first.row, *(drawn.row for drawn in draws)] == rows[done:]


def test_the_first_draw_waits_for_no_other_request(store, index):
    window, _ = next(windows(shards_open=1, draws=SAMPLES))
    rows = window.rows[0][window.order].tolist()
    draws = reading(index, most_overread=1.0).draws([(window, 0)])
    # The first bytes of a shard are asked for to learn how soon the server answers.
    store.late = lambda offset: offset not in (0, rows[0] * SIZE)
    assert rows[0] > 0
    found = [next(draws).row]
    assert store.held <= 2 * SIZE
    store.gate.set()
    assert [*found, *(drawn.row for drawn in draws)] == rows


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_may_forget_a_pass_that_runs(store, index):
    draws = reading(index).draws(windows())
    next(draws)
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            draws.close()
            own = reading(index)
            status = 0 if len(list(own.draws(windows()))) == len(expected_rows()) else 2
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(draws)) == len(expected_rows()) - 1
