"""Streams of the shards of several data sets, mixed."""

from collections import Counter

import numpy as np
import pytest
from shard_files import make_table, name_of, write_shards

from flowdata import FlowShards, LossTable, mix
from flowdata.core.shard_plan import ShardPlan

SIZES = {"web": (60, 80), "code": (50, 3, 200)}


@pytest.fixture
def urls(tmp_path):
    found = []
    for name, sizes in SIZES.items():
        write_shards(tmp_path, sizes, content=20)
        for shard in range(len(sizes)):
            (tmp_path / f"s-{shard}.tar").rename(tmp_path / f"{name}-{shard}.tar")
        found.append(str(tmp_path / f"{name}-{{0..{len(sizes) - 1}}}.tar"))
    return found


def test_shards_in_a_row_are_drawn_by_the_weights_of_a_mix(urls):
    tables = dict(zip(SIZES, map(make_table, urls), strict=True))
    weights = mix(tables, shares={"web": 3, "code": 1})
    together = LossTable.concat(list(tables.values()))
    stream = FlowShards(urls, together, weights=weights, seed=5, epoch_size=300)
    seen = Counter((sample["__url__"], name_of(sample)) for sample in stream)
    plan = ShardPlan(weights, together.index.bounds(), seed=5, epoch_size=300)
    counts = plan.counts()
    assert sorted(seen.values()) == sorted(counts[counts > 0].tolist())
    drawn = Counter()
    for (url, _), times in seen.items():
        drawn["web" if "/web-" in url else "code"] += times
    # Each row is drawn floor or ceil of what is expected: a group is near its share.
    assert drawn.total() == 300
    assert drawn["web"] == np.bincount(weights.groups, weights=counts)[0]
    assert abs(drawn["web"] - 225) < 15
