"""Lightning's Trainer, on one process and on two under torchrun."""

import frameworks_lightning
import numpy as np
import pytest
from framework_runs import by_step, flat, planned, same_rows, torchrun
from frameworks_common import logged, plain_loop
from long_run import some

pytestmark = pytest.mark.slow

DRAWS, RAGGED, BATCH, EPOCHS = 24, 23, 4, 3
WORKERS = {"num_workers": 2}
RANK_SAMPLERS = {
    "rank sampler": {},
    "rank sampler, not split": {"split": False},
    "rank sampler, workers": WORKERS,
    "rank sampler, persistent workers": WORKERS | {"persistent_workers": True},
    "rank sampler, stateful": {"stateful": True},
    "rank sampler, stateful, workers": {"stateful": True} | WORKERS,
    "rank sampler, stateful, no callback": {"stateful": True, "callback": False},
}
OTHER_DOORS = {
    "rank sampler, no callback": {"callback": False},
    "wrapped sampler": {"door": "sampler"},
    "wrapped sampler, workers": {"door": "sampler"} | WORKERS,
    "dataset": {"door": "dataset"},
    "dataset, workers": {"door": "dataset"} | WORKERS,
    "dataset, not told of, workers": {"door": "dataset", "told": False} | WORKERS,
    "dataset, loaded anew": {"door": "dataset", "reload": 1},
    "dataset, loaded anew, workers": {"door": "dataset", "reload": 1} | WORKERS,
    "rank sampler, loaded anew, workers": {"reload": 1} | WORKERS,
    "rank sampler, loaded anew, workers, no callback": {"reload": 1, "callback": False} | WORKERS,
}
DOORS = RANK_SAMPLERS | OTHER_DOORS
MISUSED = {
    "not split": {"door": "sampler", "split": False},
    "dataset, nobody names": {"door": "dataset", "callback": False},
}
RAGGED_DOORS = {
    "ragged rank sampler": {"draws": RAGGED},
    "ragged dataset": {"draws": RAGGED, "door": "dataset"},
}
PAIR = {"second": DRAWS // 2} | WORKERS
SINGLE = {
    "shorter": {"second": 2},
    "unknown batch size": {"bare": True},
    "unsaved": {"callback": False},
}
BETWEEN = ["rank sampler, workers", "rank sampler, stateful, workers", "wrapped sampler, workers"]
BETWEEN += ["dataset, workers", "rank sampler"]
# What several processes do not change.
ALONE = ("last", "late", "rank sampler at", "dataset, loaded", *SINGLE)
# What is run on two processes.
DOORS_OF_TWO = some(
    DOORS,
    "rank sampler",
    "rank sampler, workers",
    "rank sampler, stateful, workers",
    "rank sampler, no callback",
    "wrapped sampler, workers",
    "dataset, workers",
)
INSIDE_OF_TWO = some(
    [*RANK_SAMPLERS, "pair", "dataset", "wrapped sampler"],
    "rank sampler",
    "rank sampler, stateful, workers",
    "pair",
    "dataset",
    "wrapped sampler",
)
BETWEEN_OF_TWO = some(
    [f"{name} at {moment}" for name in BETWEEN for moment in ("last batch", "epoch end")],
    "rank sampler, workers at last batch",
    "rank sampler, stateful, workers at epoch end",
    "wrapped sampler, workers at epoch end",
    "dataset, workers at last batch",
)
LATE = WORKERS | {"callback": False}


def lives(folder, steps):
    """Runs to their end, runs stopped inside epoch 1 or after epoch 0, and runs that go on."""

    def life(name, kind, options):
        return options | {"folder": f"{folder}/{name}", "log": f"{folder}/{name}.{kind}"}

    runs = {
        f"{name}.whole": life(name, "whole", options)
        for name, options in (DOORS | MISUSED | RAGGED_DOORS).items()
    }
    inside = RANK_SAMPLERS | SINGLE | {"pair": PAIR}
    inside |= {name: OTHER_DOORS[name] for name in ("dataset", "wrapped sampler")}
    for name, options in inside.items():
        stopped = options | {"stop": steps + 2, "save_steps": steps + 1}
        runs[f"{name}.stopped"] = life(name, "stopped", stopped)
        runs[f"{name}.resumed"] = life(name, "resumed", options | {"resume": steps + 1})
    last = {"stop": steps + 1, "save_steps": steps}
    epochs = {"stop": steps + 1, "save_steps": "epochs"}
    for name in BETWEEN:
        for moment, stop in (("last batch", last), ("epoch end", epochs)):
            where, options = f"{name} at {moment}", DOORS[name]
            runs[f"{where}.stopped"] = life(where, "stopped", options | stop)
            runs[f"{where}.resumed"] = life(where, "resumed", options | {"resume": steps})
    runs["late.stopped"] = life("late", "stopped", LATE | epochs)
    runs["late.resumed"] = life("late", "resumed", LATE | {"resume": steps})
    for name, workers in (("last", {}), ("last, workers", WORKERS)):
        options = {"stateful": True, "callback": False} | workers
        runs[f"{name}.stopped"] = life(name, "stopped", options | last)
        runs[f"{name}.resumed"] = life(name, "resumed", options | {"resume": steps})
    runs["unsaved.resumed"] |= {"callback": True}
    smaller = {"resume": steps + 1, "batch_size": 2}
    runs["smaller.resumed"] = life("rank sampler", "smaller", smaller)
    return runs


def is_for_two(run):
    """Whether a run is made on two processes too."""
    name, _, kind = run.rpartition(".")
    if kind == "whole":
        known = [*DOORS_OF_TWO, *MISUSED, *RAGGED_DOORS]
    else:
        known = [*INSIDE_OF_TWO, *BETWEEN_OF_TWO, "smaller"]
    return name in known and not name.startswith(ALONE)


class Outcomes:
    def __init__(self, folder, ranks, outcomes):
        self.folder, self.ranks, self._outcomes = folder, ranks, outcomes
        self.steps = DRAWS // BATCH // ranks

    def __getitem__(self, name):
        if self.ranks > 1 and not is_for_two(name):
            pytest.skip("one process is enough")
        return self._outcomes(name)

    def sound(self, name):
        states = [(rank["error"], rank["warnings"]) for rank in self[name]]
        assert states == [(None, [])] * self.ranks
        return logged(self.folder / name, self.ranks)

    def batches(self, name):
        by_rank = [rank["rows"] for rank in self.sound(name)]
        assert len({len(batches) for batches in by_rank}) == 1
        return by_rank

    def life(self, name, kept, what="rows"):
        lives = self.sound(f"{name}.stopped"), self.sound(f"{name}.resumed")
        return [a[what][:kept] + b[what] for a, b in zip(*lives, strict=True)]

    def epochs(self, by_rank):
        """What all ranks drew in each epoch."""
        steps = len(by_rank[0]) // EPOCHS
        return [
            flat(flat(batches[e * steps : (e + 1) * steps]) for batches in by_rank)
            for e in range(EPOCHS)
        ]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("one"), {}
    runs = lives(folder, DRAWS // BATCH)

    def outcome(name):
        if name not in done:
            if name.endswith("resumed"):
                outcome(name.replace("smaller", "rank sampler").replace("resumed", "stopped"))
            done[name] = [frameworks_lightning.run(**runs[name])]
        return done[name]

    return Outcomes(folder, 1, outcome)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    runs = lives(folder, DRAWS // BATCH // 2)
    runs = {name: run for name, run in runs.items() if is_for_two(name)}
    outcomes = torchrun("frameworks_lightning.py", runs, folder)
    return Outcomes(folder, 2, outcomes.__getitem__)


@pytest.fixture(params=["one process", "two processes"])
def outcomes(request):
    return request.getfixturevalue(request.param.replace(" ", "_"))


PLANS = [planned(epoch, DRAWS) for epoch in range(EPOCHS)]


def shares(ranks):
    """Batches of each rank in turn, of all epochs, under DistributedFlowSampler."""
    return [
        [
            plan[rank::ranks][start : start + BATCH]
            for plan in PLANS
            for start in range(0, DRAWS // ranks, BATCH)
        ]
        for rank in range(ranks)
    ]


def are_the_plans(drawn):
    return all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))


@pytest.mark.parametrize("door", DOORS)
def test_each_epoch_draws_its_plan(outcomes, door):
    assert are_the_plans(outcomes.epochs(outcomes.batches(f"{door}.whole")))


@pytest.mark.parametrize("door", RANK_SAMPLERS)
def test_ranks_draw_their_shares_in_order_with_the_losses_of_a_plain_loop(outcomes, door):
    trained = outcomes.sound(f"{door}.whole")
    assert [rank["rows"] for rank in trained] == shares(outcomes.ranks)
    losses = by_step([rank["losses"] for rank in trained])
    expected = plain_loop(by_step(shares(outcomes.ranks)))
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


@pytest.mark.parametrize("door", RANK_SAMPLERS)
def test_a_run_resumed_inside_an_epoch_repeats_and_misses_nothing(outcomes, door):
    kept = outcomes.steps + 1
    assert outcomes.life(door, kept) == shares(outcomes.ranks)
    losses = by_step(outcomes.life(door, kept, "losses"))
    expected = plain_loop(by_step(shares(outcomes.ranks)))
    np.testing.assert_allclose(losses, expected, rtol=1e-9)


def test_each_of_two_loaders_goes_on_at_its_own_draw(outcomes):
    kept = 2 * (outcomes.steps + 1)
    by_rank = outcomes.life("pair", kept)
    assert are_the_plans(outcomes.epochs([batches[::2] for batches in by_rank]))
    for epoch, rows in enumerate(outcomes.epochs([batches[1::2] for batches in by_rank])):
        assert same_rows(rows, planned(epoch, DRAWS // 2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shorter", "one of the loaders has 1 only"),
        ("unknown batch size", "how many draws a batch takes is not known"),
        ("unsaved", "by a run without FlowCallback"),
    ],
)
def test_an_unknown_place_inside_an_epoch_is_refused(one_process, name, reason):
    assert one_process[f"{name}.stopped"][0]["error"] is None
    assert reason in one_process[f"{name}.resumed"][0]["error"]


@pytest.mark.guard
@pytest.mark.parametrize("name", ["last", "last, workers", "late"])
def test_resuming_without_the_callback_warns_where_draws_would_be_lost(one_process, name):
    (warning,) = one_process[f"{name}.resumed"][0]["warnings"]
    assert "flowdata.frameworks.lightning.FlowCallback" in warning


@pytest.mark.parametrize("moment", ["last batch", "epoch end"])
@pytest.mark.parametrize("door", BETWEEN)
def test_a_run_resumed_between_two_epochs_begins_the_next_one(outcomes, door, moment):
    assert are_the_plans(outcomes.epochs(outcomes.life(f"{door} at {moment}", outcomes.steps)))


@pytest.mark.parametrize("door", RAGGED_DOORS)
def test_a_ragged_epoch_is_padded_with_one_of_its_own_draws(two_processes, door):
    drawn = two_processes.epochs(two_processes.batches(f"{door}.whole"))
    for epoch, rows in enumerate(drawn):
        plan = planned(epoch, RAGGED)
        assert len(rows) == RAGGED + 1
        assert not set(rows) - set(plan)
        if "sampler" in door:
            assert same_rows(rows, plan + plan[:1])


@pytest.mark.guard
def test_a_sampler_that_nobody_splits_warns_on_several_ranks(two_processes):
    for rank in two_processes["not split.whole"]:
        assert rank["warnings"]
        assert all("use DistributedFlowSampler" in warning for warning in rank["warnings"])


@pytest.mark.guard
def test_a_data_set_whose_epochs_nobody_names_warns(outcomes):
    for rank in outcomes["dataset, nobody names.whole"]:
        (warning,) = rank["warnings"]
        assert "flowdata.frameworks.lightning.FlowCallback(dataset)" in warning


def test_a_data_set_does_not_go_on_inside_an_epoch(outcomes):
    for rank in outcomes["dataset.resumed"]:
        assert "DistributedFlowSampler(weights)" in rank["error"]


def test_a_wrapped_sampler_does_not_go_on_inside_an_epoch(two_processes):
    for rank in two_processes["wrapped sampler.resumed"]:
        assert "DistributedFlowSampler(weights)" in rank["error"]


def test_another_batch_size_does_not_go_on_inside_an_epoch(outcomes):
    for rank in outcomes["smaller.resumed"]:
        assert "as large batches as before" in rank["error"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    run = {"folder": str(tmp_path / "run"), "log": str(tmp_path / "killed"), "save_steps": 4}
    killed = {"killed": run | WORKERS | {"kill": 5}}
    torchrun("frameworks_lightning.py", killed, tmp_path, fails=True)
    resumed = run | WORKERS | {"log": str(tmp_path / "resumed"), "resume": 4}
    outcome = torchrun("frameworks_lightning.py", {"resumed": resumed}, tmp_path)
    assert [rank["warnings"] for rank in outcome["resumed"]] == [[], []]
    first, second = (logged(tmp_path / name, 2) for name in ("killed", "resumed"))
    assert [a["rows"][:4] + b["rows"] for a, b in zip(first, second, strict=True)] == shares(2)
    losses = [a["losses"][:4] + b["losses"] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(by_step(losses), plain_loop(by_step(shares(2))), rtol=1e-9)
