"""Builds streams in processes that are forked after this one has computed with many threads.

Prints, as JSON, what each case gave: the names of an epoch, sorted, or how it ended. A process that
still waits after ``seconds`` is killed: threads of the parent are not there after a fork.
"""

import argparse
import copy
import json
import multiprocessing
import os
import pickle
import sys

import numpy as np
import torch
import webdataset as wds
from shard_files import name_of
from torch.utils.data import DataLoader

import flowdata

OPTIONS = {"epoch_size": 40, "seed": 3, "window": 7, "shards_open": 2, "batch_size": 4}


def stream_over(urls, table, **options):
    return flowdata.FlowShards(urls, table, **OPTIONS | options).map(name_of)


def from_loader(stream, workers, **options):
    loader = DataLoader(stream, batch_size=4, num_workers=workers, **options)
    return [name for batch in loader for name in batch]


def built_there(urls, table):
    return list(stream_over(urls, table))


def built_there_from_tensors(urls, table):
    index = flowdata.LossTable.load(table).index
    return list(stream_over(urls, index, weights=torch.from_numpy(np.ones(len(index)))))


def loaded_there(urls, table):
    first = stream_over(urls, table)
    next(iter(first))
    second = stream_over(urls, table)
    second.load_state_dict(first.state_dict(position=0))
    return list(second)


def copied_there(urls, table):
    return list(pickle.loads(pickle.dumps(copy.deepcopy(stream_over(urls, table)))))


def with_workers_there(urls, table):
    return from_loader(stream_over(urls, table), 2, multiprocessing_context="fork")


def stage_there(urls, table):
    dataset = wds.WebDataset(urls, shardshuffle=False)
    stage = flowdata.resample(table, epoch_size=40, seed=3)
    return [name_of(sample) for sample in dataset.compose(stage)]


def data_set_there(urls, table):
    rows = flowdata.FlowDataset(range(100_000), np.ones(100_000), seed=3)
    rows.set_epoch(1)
    assert len({rows[draw] for draw in range(100)}) > 30
    return built_there(urls, table)


CASES = [
    built_there, built_there_from_tensors, loaded_there, copied_there, with_workers_there,
    stage_there, data_set_there,
]  # fmt: skip


def run(case, urls, table, pipe):
    # A pool of threads that is not there would be waited for here for ever.
    pipe.send(sorted(case(urls, table)))


def outcome(case, urls, table, seconds, start="fork"):
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(case, urls, table, sender))
    process.start()
    found = receiver.recv() if receiver.poll(seconds) else "waits for ever"
    process.kill()
    process.join()
    return found


def forked_alone(urls, table, seconds):
    """The same without multiprocessing."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, json.dumps(sorted(built_there(urls, table))).encode())
        os._exit(0)
    os.close(writer)
    import select

    ready, _, _ = select.select([reader], [], [], seconds)
    found = json.loads(os.read(reader, 1 << 16)) if ready else "waits for ever"
    os.kill(child, 9)
    os.waitpid(child, 0)
    return found


def compute():
    """Let torch and pyarrow start their threads."""
    torch.set_num_threads(4)
    numbers = torch.randn(1000, 1000)
    return float((numbers @ numbers).sum() + (torch.zeros(1 << 21) + 1).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("urls")
    parser.add_argument("table")
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    place = given.urls, given.table
    compute()
    found = {"here": sorted(built_there(*place)), "os.fork": forked_alone(*place, given.seconds)}
    for case in CASES:
        found[case.__name__] = outcome(case, *place, given.seconds)
    found["forkserver"] = outcome(built_there, *place, given.seconds, "forkserver")
    for workers, start in ((2, "fork"), (2, "spawn"), (2, "forkserver")):
        stream = stream_over(*place)
        found[f"workers by {start}"] = sorted(
            from_loader(stream, workers, multiprocessing_context=start, persistent_workers=True)
        )
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
