"""Small tar shards of tokenized texts, in which every token says of which row it is."""

import io
import json
import tarfile

import numpy as np

from flowdata import LossTable
from flowdata.tar.indexing import index_shards

MAX_LENGTH = 40


def lengths_of(rows, longest=MAX_LENGTH, seed=0):
    """Lengths as texts have them."""
    return np.random.default_rng(seed).lognormal(2, 0.8, rows).astype(int).clip(1, longest)


def write_token_shards(folder, sizes, *, mode="w", suffix="tar"):
    """Shards of so many samples, each a list of its row's number in ``json``. Their URL."""
    lengths, row = lengths_of(sum(sizes)).tolist(), 0
    for shard, samples in enumerate(sizes):
        with tarfile.open(folder / f"t-{shard}.{suffix}", mode) as tar:
            for sample in range(samples):
                content = json.dumps([row] * lengths[row]).encode()
                member = tarfile.TarInfo(f"k{sample:04d}.json")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                row += 1
    return str(folder / f"t-{{0..{len(sizes) - 1}}}.{suffix}")


def make_token_table(urls, seed=0):
    """A table with losses of a wide spread, and lengths."""
    index = index_shards(urls, progress=False)
    losses = np.random.default_rng(seed).gamma(2, size=len(index))
    return LossTable.from_losses(losses, index=index, lengths=lengths_of(len(index)))


def as_tokens(sample):
    """What a pack is made of."""
    return {"input_ids": json.loads(sample["json"])}


def rows_in(pack):
    """The rows of a pack, and that it is one."""
    ids, labels, positions = (
        pack[name].numpy() for name in ("input_ids", "labels", "position_ids")
    )
    begins = positions == 0
    assert ids.size <= MAX_LENGTH
    assert (labels[begins] == -100).all()
    assert (labels[~begins] == ids[~begins]).all()
    starts = np.flatnonzero(begins)
    rows = ids[starts]
    assert positions.tolist() == [
        place for length in np.diff([*starts, ids.size]) for place in range(length)
    ]
    assert (ids == np.repeat(rows, np.diff([*starts, ids.size]))).all()
    return tuple(rows.tolist())
