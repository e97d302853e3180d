"""What a stream over a server takes: connections, threads, files and memory, pass after pass."""

import gc
import os
import threading
import tracemalloc

import numpy as np
import pytest
from serving import serving
from shard_files import name_of, write_shards
from shard_places import LATENCY

from flowdata import Access, FlowShards
from flowdata.tar.indexing import index_shards

CONNECTIONS = 4
# Some more repeat requests that are overdue.
MOST = CONNECTIONS + max(CONNECTIONS // 4, 1)


def our_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("flowdata")]


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("ranges", ["single", "multi", "none"])
def test_connections_threads_and_files_are_bounded_and_no_thread_is_left(folder, table, ranges):
    access = Access(connections=CONNECTIONS, most_overread=1)
    with serving(folder, ranges=ranges, latency=LATENCY) as server:
        urls = f"{server.url}/s-{{0..4}}.tar"
        stream = FlowShards(urls, table, window=20, shards_open=2, access=access).map(name_of)
        before, after = open_files(), []
        for most in (20, 100, 400):
            for number, _ in enumerate(stream):
                if number % 10 == 0:
                    assert len(our_threads()) <= MOST
                    assert open_files() - before <= MOST + 2
                # The first passes are left early.
                if number == most:
                    break
            gc.collect()
            assert not our_threads()
            after.append(open_files() - before)
        assert max(after) <= MOST
        assert 1 < server.stats()["most_answering"] <= MOST or ranges == "none"


def test_memory_is_bounded_by_what_is_read_ahead_and_a_window(tmp_path):
    urls = write_shards(tmp_path, (150,) * 4, content=120_000)
    index = index_shards(urls, progress=False)
    window = 20 * index.sizes.mean()
    ahead = 3_000_000
    access = Access(connections=CONNECTIONS, ahead=ahead)
    with serving(tmp_path, latency=LATENCY) as server:
        served = f"{server.url}/s-{{0..3}}.tar"
        stream = FlowShards(served, index, np.ones(600), window=20, shards_open=2, access=access)
        next(iter(stream))
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(2):
                assert len(list(map(len, stream))) == 600
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < ahead + 2 * window < index.sizes.sum() / 4, (peak, window)
