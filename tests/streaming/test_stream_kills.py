"""Runs over streams that are killed at any moment: what was left is drawn, nothing else."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import webdataset as wds
from fuzzing import TIMES
from launching import PROGRAMS
from long_run import some
from shard_files import make_table, name_of, planned, write_shards
from token_shards import MAX_LENGTH, make_token_table, write_token_shards
from torch.utils.data import DataLoader

from flowdata import FlowShards

pytestmark = pytest.mark.slow

EPOCHS = 2
STREAM = {"epoch_size": 66, "seed": 3, "window": 9, "shards_open": 2}
# In an ordinary run one of each kind, in a long one 20 of each.
SEEDS = range(TIMES)
LAYOUTS = [[2, 0], [1, 2], [2, 2]] if TIMES > 1 else [[2, 2]]


@pytest.fixture
def run(tmp_path):
    urls = write_shards(tmp_path, (20, 3, 30, 1, 9))
    table = make_table(urls)
    table.save(tmp_path / "losses.parquet")
    (tmp_path / "lives").mkdir()

    def run(**options):
        config = {
            "urls": urls,
            "table": str(tmp_path / "losses.parquet"),
            "stream": STREAM,
            "folder": str(tmp_path / "lives"),
            "epochs": EPOCHS,
            "lives": 4,
            "out": str(tmp_path / "out.json"),
        }
        (tmp_path / "config.json").write_text(json.dumps(config | options))
        subprocess.run(
            [sys.executable, PROGRAMS / "killed_stream.py", tmp_path / "config.json"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            check=True,
            timeout=300,
        )
        return urls, table, json.loads((tmp_path / "out.json").read_text())

    return run


@pytest.mark.parametrize("seed", SEEDS)
def test_lives_on_other_ranks_and_workers_draw_what_was_left(run, seed):
    layouts = [[1, 0], [1, 2], [2, 0], [2, 1], [3, 0], [3, 2]]
    _, table, found = run(loader="plain", seed=seed, layouts=layouts)
    assert 2 <= found["lives"] <= 5
    for epoch in range(EPOCHS):
        drawn = Counter(name for own in found["trained"][str(epoch)].values() for name in own)
        expected = planned(table, epoch=epoch, epoch_size=66, seed=3)
        assert not expected - drawn
        # Where ranks do not divide what is left, each life may repeat a draw for each rank but one.
        assert (drawn - expected).total() <= found["repeats"]


@pytest.mark.parametrize("loader", some(("plain", "stateful"), "plain"))
@pytest.mark.parametrize("seed", SEEDS)
def test_lives_of_packs_are_those_of_one_life(run, tmp_path, seed, loader):
    urls = write_token_shards(tmp_path, (60, 3, 90, 1, 20))
    make_token_table(urls).save(tmp_path / "tokens.parquet")
    stream = {"epoch_size": 200, "seed": 3, "shards_open": 2}
    _, _, found = run(
        loader=loader,
        seed=seed,
        layouts=[[2, 2]] if loader == "stateful" else [[1, 0], [1, 2], [2, 1], [3, 2]],
        urls=urls,
        table=str(tmp_path / "tokens.parquet"),
        stream=stream,
        packed=True,
    )
    packs = FlowShards(urls, tmp_path / "tokens.parquet", **stream).packed(MAX_LENGTH).packs
    for epoch in range(EPOCHS):
        of_epoch = packs.at_epoch(epoch).of(np.arange(len(packs)))
        expected = Counter(tuple(sorted(pack.tolist())) for pack in of_epoch)
        trained = chain.from_iterable(found["trained"][str(epoch)].values())
        drawn = Counter(tuple(sorted(ast.literal_eval(name))) for name in trained)
        assert not expected - drawn
        repeats = found["repeats"] if loader == "plain" else len(packs) % 2
        assert (drawn - expected).total() <= repeats


def kept(name):
    if name.endswith("7"):
        raise ValueError(name)
    return name


@pytest.mark.filterwarnings("ignore:.*draws were dropped:flowdata.FlowDataWarning")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_lives_of_the_same_ranks_and_workers_draw_the_same_as_one_life(run, layout, seed):
    urls, table, found = run(loader="stateful", seed=seed, layouts=[layout])
    ranks, workers = layout
    for rank in range(ranks):
        whole = FlowShards(urls, table, **STREAM, batch_size=4, num_replicas=ranks, rank=rank)
        whole = whole.map(name_of).map(kept, handler=wds.ignore_and_continue)
        loader = DataLoader(whole, 4, num_workers=workers)
        for epoch in range(EPOCHS):
            expected = [name for batch in loader for name in batch]
            assert found["trained"][str(epoch)][str(rank)] == expected
