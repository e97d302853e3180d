"""Small tar shards for tests of streams, whose samples say where they are from."""

import io
import tarfile
from collections import Counter

import numpy as np

from flowdata import LossTable
from flowdata.core.shard_plan import ShardPlan
from flowdata.tar.indexing import index_shards

SIZES = (50, 3, 200, 1, 77)


def write_shards(folder, sizes=SIZES, *, mode="w", suffix="tar", content=2000):
    """Shards of so many samples: a name in ``txt`` and some bytes in ``bin``. Their URL."""
    random = np.random.default_rng(0)
    for shard, samples in enumerate(sizes):
        with tarfile.open(folder / f"s-{shard}.{suffix}", mode) as tar:
            for sample in range(samples):
                noise = random.bytes(int(random.integers(0, content)))
                for ext, data in (("txt", f"{shard}/{sample}".encode()), ("bin", noise)):
                    member = tarfile.TarInfo(f"k{sample:04d}.{ext}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(folder / f"s-{{0..{len(sizes) - 1}}}.{suffix}")


def make_table(urls, seed=0):
    """A table with losses of a wide spread."""
    index = index_shards(urls, progress=False)
    losses = np.random.default_rng(seed).gamma(2, size=len(index))
    return LossTable.from_losses(losses, index=index)


def names(table):
    """What ``txt`` holds, row by row."""
    index = table.index
    return [
        f"{index.shards[shard].split('-')[1].split('.')[0]}/{int(key.as_py()[1:])}"
        for shard, key in zip(index.shard, index.keys, strict=True)
    ]


def planned(table, epoch=0, **options):
    """How often each sample is drawn in an epoch."""
    plan = ShardPlan(table, table.index.bounds(), epoch=epoch, **options)
    counts = plan.counts().tolist()
    return Counter({name: n for name, n in zip(names(table), counts, strict=True) if n})


def name_of(sample):
    return sample["txt"].decode()
