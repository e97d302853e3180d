"""FlowShards in real processes, started by torchrun, with gloo."""

from collections import Counter
from itertools import chain

import pytest
from launching import torchrun
from shard_files import make_table, planned, write_shards

pytestmark = pytest.mark.slow

STREAM = {"epoch_size": 50, "seed": 2, "window": 7, "shards_open": 2}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    urls = write_shards(folder, (1, 90, 4, 17))
    make_table(urls).save(folder / "losses.parquet")
    return {"urls": urls, "table": str(folder / "losses.parquet"), "stream": STREAM}


@pytest.mark.parametrize(("workers", "epochs"), [(0, 200), (2, 20)])
def test_epochs_on_uneven_shards_never_hang_and_draw_the_plan(config, tmp_path, workers, epochs):
    options = {"batch_size": 4, "workers": workers, "epochs": epochs}
    drawn = torchrun("shard_training.py", config | options, tmp_path)
    table = make_table(config["urls"])
    assert len(drawn) == epochs
    for epoch, by_rank in enumerate(drawn):
        assert [len(names) for names in by_rank] == [25, 25]
        expected = planned(table, epoch=epoch, epoch_size=50, seed=2)
        assert Counter(chain.from_iterable(by_rank)) == expected
