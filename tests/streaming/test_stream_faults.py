"""Streams over a server that fails: what is drawn, and what is left of it, stays the same."""

import contextlib
import gc
import os
import signal
from collections import Counter

import psutil
import pytest
from long_run import LONG, some
from serving import serving
from shard_files import name_of, planned
from torch.utils.data import DataLoader

from flowdata import Access, FlowShards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]

BATCH, DRAWS = 8, 300
OPTIONS = {"epoch_size": DRAWS, "seed": 3}
STALL = {"stall": 0.05, "stall_seconds": 2.0}
FAULTS = {
    "reset": {"reset": 0.05},
    "503": {"refuse": 0.05},
    "stall": STALL,
    "stall in the body": STALL | {"stall_body": True},
    "short body": {"short": 0.05},
    "all": {"reset": 0.05, "refuse": 0.05, "short": 0.05} | STALL | {"stall_body": True},
}
# The whole chain of one request fails once in 1e7 times, where a fifth of requests do.
ACCESS = Access(retries=10, timeout=0.5, connections=4, most_overread=1)
SEEDS = range(5) if LONG else range(1)


@contextlib.contextmanager
def failing(folder, faults, seed):
    """A server that fails from the second request on, and has failed in the end."""
    with serving(folder, latency=0.002, **FAULTS[faults], seed=seed) as server:
        yield f"{server.url}/s-{{0..4}}.tar"
        assert server.stats()["faults"] > 0


def stream_of(urls, table, **options):
    options = OPTIONS | {"window": 20, "shards_open": 2, "batch_size": BATCH} | options
    return FlowShards(urls, table, access=ACCESS, **options).map(name_of)


def loader_over(stream, workers):
    return DataLoader(stream, BATCH, num_workers=workers)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("faults", FAULTS)
def test_epochs_draw_the_plan(folder, table, faults, workers, seed):
    with failing(folder, faults, seed) as urls:
        stream = stream_of(urls, table)
        for epoch in range(6 if LONG else 2):
            drawn = [name for batch in loader_over(stream, workers) for name in batch]
            assert Counter(drawn) == planned(table, epoch=epoch, **OPTIONS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("faults", some(FAULTS, "reset", "all"))
def test_a_run_that_is_left_early_goes_on_with_what_is_left_on_other_ranks(
    folder, table, faults, seed
):
    done, state, position = Counter(), None, 0
    with failing(folder, faults, seed) as urls:
        for ranks, workers, steps in [(1, 2, 5), (2, 0, 3), (2, 2, 4), (1, 0, 4), (3, 0, 2)]:
            streams = [stream_of(urls, table, num_replicas=ranks, rank=r) for r in range(ranks)]
            for stream in streams:
                if state is not None:
                    stream.load_state_dict(state)
                drawing = iter(loader_over(stream, workers))
                done.update(name for _ in range(steps) for name in next(drawing))
                del drawing
            position += ranks * steps * BATCH
            state = streams[0].state_dict(position=position)
        last = stream_of(urls, table)
        last.load_state_dict(state)
        done.update(last)
    assert done == planned(table, **OPTIONS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("faults", some(FAULTS, "all"))
def test_a_worker_that_is_killed_ends_the_pass_and_loses_no_draw(folder, table, faults, seed):
    with failing(folder, faults, seed) as urls:
        stream = stream_of(urls, table)
        before = set(psutil.Process().children())
        drawing = iter(loader_over(stream, 2))
        taken = [next(drawing) for _ in range(4)]
        workers = [
            process for process in psutil.Process().children() if is_new_worker(process, before)
        ]
        workers[0].send_signal(signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"DataLoader worker .*(killed by|exited)"):
            taken.extend(drawing)
        del drawing
        gc.collect()
        state = stream.state_dict(position=len(taken) * BATCH)
        after = stream_of(urls, table)
        after.load_state_dict(state)
        done = Counter(name for batch in taken for name in batch)
        done.update(after)
    assert done == planned(table, **OPTIONS)


def is_new_worker(process, before):
    """Not the server, which is a child too."""
    return process not in before and process.cmdline() == psutil.Process(os.getpid()).cmdline()
