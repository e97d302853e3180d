"""Weighted losses, and streams of shards, in each framework, on one process and on two."""

import itertools

import frameworks_weighted
import numpy as np
import pytest
import torch
from framework_runs import by_hand, by_step, flat, same_rows, torchrun
from frameworks_common import WEIGHTS, logged
from launching import OUTPUT
from shard_files import make_table, write_shards

from flowdata.core.shard_plan import ShardPlan

pytestmark = pytest.mark.slow

FRAMEWORKS = ("accelerate", "trainer", "lightning")
MAPPED = {f"{name}, weighted": {"weighted": True} for name in FRAMEWORKS}
STREAMS = {
    "accelerate, stream": {},
    "lightning, stream": {},
    "accelerate, stream read by all": {"alone": True},
    "trainer, stream read by all": {"alone": True},
    "accelerate, stream sent": {"alone": True, "send": True},
    "trainer, stream sent": {"alone": True, "send": True},
    "accelerate, weighted stream": {"weighted": True},
    "lightning, weighted stream": {"weighted": True},
    "trainer, weighted stream read by all": {"alone": True, "weighted": True},
}
LIVES = {
    "lightning, stream": {},
    "lightning, stream, workers": {"workers": 2},
    "lightning, stream, stateful": {"saves": "loader"},
}
LOST = {"framework": "trainer", "alone": True, "weighted": True, "send": True}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def runs(request, tmp_path_factory):
    """For each run: what it brought back and logged, by rank."""
    processes = request.param
    folder = tmp_path_factory.mktemp("weighted")
    shards, losses = written(folder)
    asked = {name: dict(options) for name, options in MAPPED.items()}
    asked |= {name: options | shards for name, options in STREAMS.items()}
    steps = 8 // processes
    for (name, options), (moment, save) in itertools.product(
        LIVES.items(), {"inside": steps + 2, "last batch": steps}.items()
    ):
        for life, ends in (("stopped", {"save": save}), ("resumed", {"resume": save})):
            asked[f"{name} at {moment}.{life}"] = options | shards | ends
    for name, options in asked.items():
        options["framework"] = name.partition(",")[0]
        options |= {
            "log": f"{folder}/{name}",
            "folder": f"{folder}/{name.rpartition('.')[0] or name}.out",
        }
    if processes == 1:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACCELERATE_USE_CPU", "true")
            found = {name: [frameworks_weighted.run(**asked[name])] for name in asked}
    else:
        found = torchrun("frameworks_weighted.py", asked, folder)
    for name in found:
        found[name] = logged(asked[name]["log"], processes)
    return losses, found


def written(folder):
    """Shards, as the programs are told of them, and their losses."""
    urls = write_shards(folder, frameworks_weighted.SIZES, content=10)
    losses = make_table(urls)
    losses.save(folder / "losses.parquet")
    return {"shards": urls, "losses": str(folder / "losses.parquet")}, losses


def check_losses(outcomes, weights):
    values = torch.from_numpy(np.asarray(weights, dtype=np.float32))
    expected = by_hand(by_step([outcome["rows"] for outcome in outcomes]), values)
    found = by_step([outcome["losses"] for outcome in outcomes])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", MAPPED)
def test_a_weighted_loss_is_that_of_a_hand_written_loop(runs, name):
    outcomes = runs[1][name]
    rows = [flat(outcome["rows"]) for outcome in outcomes]
    assert set(flat(rows)) == set(range(len(WEIGHTS)))
    check_losses(outcomes, WEIGHTS)


def planned(losses, epoch, alpha):
    """The rows that a stream draws in an epoch."""
    bounds = losses.index.bounds()
    plan = ShardPlan(losses, bounds, epoch=epoch, seed=5, epoch_size=16, alpha=alpha)
    return np.repeat(np.arange(len(losses)), plan.counts()).tolist()


@pytest.mark.parametrize("name", STREAMS)
def test_all_ranks_together_draw_the_epochs_of_a_stream(runs, name):
    losses, found = runs
    outcomes = found[name]
    per_epoch = len(outcomes[0]["rows"]) // 2
    assert {len(outcome["rows"]) for outcome in outcomes} == {2 * per_epoch}
    for epoch in range(2):
        part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        drawn = [row for outcome in outcomes for row in flat(outcome["rows"][part])]
        alpha = 0.0 if STREAMS[name].get("weighted") else 1.0
        assert same_rows(drawn, planned(losses, epoch, alpha))
    weights = losses.weights(normalize="mean").values
    check_losses(outcomes, weights if STREAMS[name].get("weighted") else np.ones(len(losses)))


@pytest.mark.parametrize("moment", ["inside", "last batch"])
@pytest.mark.parametrize("name", LIVES)
def test_a_stream_goes_on_where_the_checkpoint_was_taken(runs, name, moment):
    losses, found = runs
    stopped, resumed = (found[f"{name} at {moment}.{life}"] for life in ("stopped", "resumed"))
    steps = 8 // len(stopped)
    kept = steps + 2 if moment == "inside" else steps
    lives = [
        before["rows"][:kept] + after["rows"]
        for before, after in zip(stopped, resumed, strict=True)
    ]
    assert {len(batches) for batches in lives} == {2 * steps}
    for epoch in range(2):
        part = slice(epoch * steps, (epoch + 1) * steps)
        drawn = [row for batches in lives for row in flat(batches[part])]
        alpha = 0.0 if LIVES[name].get("weighted") else 1.0
        assert same_rows(drawn, planned(losses, epoch, alpha))


@pytest.mark.guard
def test_weights_that_would_be_lost_on_the_way_are_refused(tmp_path):
    shards, _ = written(tmp_path)
    places = {"log": f"{tmp_path}/log", "folder": f"{tmp_path}/out"}
    torchrun("frameworks_weighted.py", {"lost": LOST | places | shards}, tmp_path, fails=True)
    assert "RuntimeError: accelerate reads this stream" in (tmp_path / OUTPUT).read_text()
