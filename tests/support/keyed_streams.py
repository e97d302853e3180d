"""Files of rows with keys, the streams that datasets makes of them, and what a plan draws."""

import json
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import EpochPlan, LossTable

ROWS = 230
SEED = 3
KEYS = [f"k{number:03d}" for number in np.random.default_rng(1).permutation(ROWS)]


def make_table():
    """A table in another order than the files, its losses of a wide spread."""
    losses = np.random.default_rng(0).gamma(2, size=ROWS)
    return LossTable.from_losses(losses, keys=KEYS)


def write_files(folder, kind, shards):
    """As many files of unequal sizes, in the order of the keys."""
    edges = [0, *(sorted((5 * shard) ** 2 for shard in range(1, shards))), ROWS]
    names = []
    for shard in range(shards):
        ids = sorted(KEYS)[edges[shard] : edges[shard + 1]]
        rows = [{"id": key, "number": int(key[1:])} for key in ids]
        names.append(str(folder / f"{kind}-{shards}-{shard}"))
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), names[-1], row_group_size=17)
        else:
            with open(names[-1], "w") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    return names


def open_stream(files, cache):
    """The stream of them, as load_dataset makes it."""
    kind = "parquet" if "parquet" in files[0] else "json"
    return datasets.load_dataset(
        kind, data_files=files, split="train", streaming=True, cache_dir=cache
    )


def rank_of(stream, rank, ranks):
    """What one rank has of it."""
    return stream if ranks == 1 else split_dataset_by_node(stream, rank, ranks)


def loader_of(stream, workers):
    """Rows one by one: the stream itself, or a loader of it that has states."""
    if not workers:
        return stream
    return StatefulDataLoader(stream, batch_size=None, num_workers=workers)


def rows_of(stream, workers):
    """All rows of a pass."""
    return list(DataLoader(stream, batch_size=None, num_workers=workers) if workers else stream)


def ids_of(rows):
    """Their keys, in order."""
    return [row["id"] for row in rows]


def planned(table, epoch, seed=SEED, **options):
    """How often each key is drawn in an epoch."""
    counts = EpochPlan(table, epoch=epoch, seed=seed, **options).counts().tolist()
    return +Counter(dict(zip(table.keys, counts, strict=True)))
