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


def by_ranks(config, tmp_path, **options):
    """For each epoch the names that each of two ranks drew, and the plan."""
    drawn = torchrun("shard_training.py", config | {"batch_size": 4} | options, tmp_path)
    table = make_table(config["urls"])
    assert len(drawn) == options["epochs"]
    for epoch, names in enumerate(drawn):
        assert [len(own) for own in names] == [25, 25]
        expected = planned(table, epoch=epoch, epoch_size=50, seed=2)
        yield Counter(chain.from_iterable(names)), expected


def test_epochs_on_uneven_shards_never_hang_and_draw_the_plan(config, tmp_path):
    for drawn, expected in by_ranks(config, tmp_path, workers=0, epochs=200):
        assert drawn == expected


def test_ranks_whose_workers_drop_samples_stay_together(config, tmp_path):
    """A stage drops a third of the samples, on each rank another number."""
    for drawn, expected in by_ranks(config, tmp_path, workers=2, epochs=20, dropped="036"):
        assert drawn.keys() == {name for name in expected if name[-1] not in "036"}
