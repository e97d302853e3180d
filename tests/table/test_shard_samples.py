"""ShardSamples: the samples of one shard, without those of the others."""

import itertools

import numpy as np
import pyarrow as pa
import pytest

from flowdata import FlowWeights, ShardIndex


def index_of(counts, seed=0):
    """An index of shards of so many samples each."""
    rows = sum(counts)
    sizes = np.random.default_rng(seed).integers(1, 40, rows) * 512
    starts = np.cumsum([0, *counts])
    offsets = np.concatenate(
        [np.cumsum(sizes[a:b]) - sizes[a:b] for a, b in itertools.pairwise(starts)]
    )
    return ShardIndex(
        tuple(f"{number:03}.tar" for number in range(len(counts))),
        np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        pa.array([f"key{row}" for row in range(rows)]),
        offsets,
        sizes,
        np.full(len(counts), -1),
        np.zeros(len(counts), dtype=bool),
    )


@pytest.mark.parametrize("counts", [[3, 0, 5, 1], [0, 4], [7], [0, 0, 2, 0]])
def test_the_samples_of_each_shard_are_its_part_of_the_columns(counts):
    index = index_of(counts)
    bounds = index.bounds()
    assert bounds.tolist() == np.cumsum([0, *counts]).tolist()
    for number, count in enumerate(counts):
        samples = index.of_shard(number)
        rows = slice(bounds[number], bounds[number + 1])
        assert (samples.first, len(samples)) == (bounds[number], count)
        assert samples.keys.to_pylist() == index.keys[rows].to_pylist()
        assert samples.offsets.tolist() == index.offsets[rows].tolist()
        assert samples.sizes.tolist() == index.sizes[rows].tolist()
        assert [samples.key(i) for i in range(count)] == samples.keys.to_pylist()


def test_a_part_of_the_weights_is_that_of_all_of_them():
    losses = np.random.default_rng(1).exponential(size=1000).astype(np.float32)
    weights = FlowWeights.from_losses(losses)
    for start, stop in ((0, 1000), (0, 0), (17, 400), (990, 2000)):
        assert weights.part(start, stop).tolist() == weights.relative[start:stop].tolist()
