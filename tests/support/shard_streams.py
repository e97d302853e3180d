"""Streams over small shards, and loaders over them."""

from shard_files import name_of
from torch.utils.data import DataLoader

from flowdata import FlowShards

DRAWS, SEED = 300, 3
OPTIONS = {"epoch_size": DRAWS, "seed": SEED}
SMALL = OPTIONS | {"window": 20, "shards_open": 2}


def make(urls, table, **options):
    return FlowShards(urls, table, **SMALL | options).map(name_of)


def loader_over(stream, workers, batch_size=8, **options):
    if workers:
        options |= {"multiprocessing_context": "fork"}
    return DataLoader(stream, batch_size=batch_size, num_workers=workers, **options)


def one_pass(loader):
    return [name for batch in loader for name in batch]
