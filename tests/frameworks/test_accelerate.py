"""Loaders that accelerate prepared, on one process and on two under torchrun."""

import itertools
from collections import Counter

import numpy as np
import pytest
from framework_runs import by_step, dealt, flat, planned, same_rows, torchrun
from frameworks_accelerate import run
from frameworks_common import plain_loop

pytestmark = pytest.mark.slow

WHOLE, RAGGED, BATCH = 24, 22, 4
DOORS = {
    "sampler": {"door": "sampler"},
    "dataset": {"door": "dataset"},
    "dataset of datasets": {"door": "dataset", "rows": "hugging face"},
    "sampler of datasets": {"door": "sampler", "rows": "hugging face"},
}
CONFIGS = {
    "default": {},
    "split_batches": {"config": {"split_batches": True}},
    "dispatch_batches": {"config": {"dispatch_batches": True}},
    "dispatch and split": {"config": {"dispatch_batches": True, "split_batches": True}},
    "even_batches off": {"config": {"even_batches": False}},
    "seedable sampler": {"config": {"use_seedable_sampler": True}},
    "stateful": {"config": {"use_stateful_dataloader": True}},
    "workers": {"num_workers": 2},
    "stateful with workers": {"config": {"use_stateful_dataloader": True}, "num_workers": 2},
}
RAGGED_CONFIGS = ["split_batches", "dispatch_batches", "dispatch and split", "stateful"]
SHUFFLED = {"door": "dataset", "shuffle": True}
# Longer than what workers fetch ahead.
LONG = CONFIGS["stateful with workers"] | {"draws": 120}
RUNS = {
    **{
        f"{door}, {config}": options | settings
        for (door, options), (config, settings) in itertools.product(DOORS.items(), CONFIGS.items())
        if door in ("sampler", "dataset") or config == "default"
    },
    "ragged sampler": DOORS["sampler"] | {"draws": RAGGED},
    "ragged dataset": DOORS["dataset"] | {"draws": RAGGED},
    "dropped": DOORS["sampler"] | {"draws": RAGGED, "drop_last": True},
    "nobody names": DOORS["sampler"] | {"name_epochs": False},
    "nobody names, dataset": DOORS["dataset"] | {"name_epochs": False},
    "shuffled, random sampler": SHUFFLED | {"config": {"use_seedable_sampler": False}},
    "shuffled, seedable sampler": SHUFFLED | {"config": {"use_seedable_sampler": True}},
    "rank sampler": {"door": "rank sampler"},
    "skip, dataset": DOORS["dataset"] | {"epochs": [1, 2], "skip": 1},
    "skip, sampler": DOORS["sampler"] | {"epochs": [1, 2], "skip": 1},
    "skip, sampler not told": DOORS["sampler"]
    | {"epochs": [1, 2], "skip": 1, "name_epochs": False},
    "state": DOORS["sampler"] | {"epochs": [1, 2], "resume": {"epoch": 1, "position": 8}},
    "state, epoch not named": DOORS["sampler"]
    | {"epochs": [1, 2], "resume": {"epoch": 1, "position": 8}, "name_epochs": False},
    "state, too late": DOORS["sampler"]
    | LONG
    | {"epochs": [1, 2], "resume": {"epoch": 1, "position": 8}},
    "epoch, too late": DOORS["sampler"] | LONG | {"epochs": [1, 2]},
    "broken off": DOORS["sampler"] | {"name_epochs": False, "epochs": [0, 0], "leave": 2},
    **{
        f"ragged {door}, {config}": DOORS[door] | CONFIGS[config] | {"draws": RAGGED}
        for door in ("sampler", "dataset")
        for config in RAGGED_CONFIGS
    },
    **{
        f"uneven {door}": DOORS[door] | CONFIGS["even_batches off"] | {"draws": 18, "only": "warn"}
        for door in ("sampler", "dataset")
    },
}
STATEFUL = {
    f"{door}, {workers} workers": {
        **DOORS[door],
        "config": {"use_stateful_dataloader": True},
        "num_workers": workers,
    }
    for door in ("sampler", "dataset")
    for workers in (0, 2)
}


@pytest.fixture(scope="module")
def one_process():
    """Runs in this process, each once."""
    done = {}

    def outcome(name):
        if name not in done:
            done[name] = [run(**RUNS[name])]
        return done[name]

    return outcome


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerate")
    stopped = {
        f"stopped {name}": settings | {"epochs": [0, 1], "stop": 2}
        for name, settings in STATEFUL.items()
    }
    outcomes = torchrun("frameworks_accelerate.py", RUNS | stopped, folder)
    resumed = {
        f"{life} {name}": settings
        | named
        | {
            "epochs": [1, 2],
            "resume": {"loader": [rank["state"] for rank in outcomes[f"stopped {name}"]]},
        }
        for name, settings in STATEFUL.items()
        for life, named in (("resumed", {}), ("unnamed", {"name_epochs": False}))
        if life == "resumed" or name == "sampler, 0 workers"
    }
    outcomes |= torchrun("frameworks_accelerate.py", resumed, folder)
    return lambda name: outcomes[name]


@pytest.fixture(params=["one process", "two processes"])
def outcome(request):
    return request.getfixturevalue(request.param.replace(" ", "_"))


def drawn(by_rank, epoch):
    return flat(flat(rank["epochs"][epoch]) for rank in by_rank)


def sound(by_rank):
    """Nothing raised, nothing warned, and each rank had as many batches as the others."""
    assert [(rank["error"], rank["warnings"]) for rank in by_rank] == [(None, [])] * len(by_rank)
    counts = [[len(batches) for batches in rank["epochs"]] for rank in by_rank]
    assert counts == counts[:1] * len(by_rank)
    return by_rank


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_all_ranks_together_draw_the_plan_in_each_epoch(outcome, door, config):
    by_rank = sound(outcome(f"{door}, {config}"))
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, WHOLE))


@pytest.mark.parametrize("door", ["sampler of datasets", "dataset of datasets"])
def test_a_hugging_face_data_set_is_drawn_from_as_a_plain_one(outcome, door):
    by_rank = sound(outcome(f"{door}, default"))
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, WHOLE))


@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_batches_are_dealt_to_ranks_in_the_order_of_the_plan(outcome, door):
    by_rank = outcome(f"{door}, default")
    for epoch in (0, 1):
        expected = dealt(planned(epoch, WHOLE), BATCH, len(by_rank))
        assert [rank["epochs"][epoch] for rank in by_rank] == expected


@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_the_losses_are_those_of_a_plain_loop_over_the_same_batches(outcome, door):
    by_rank = outcome(f"{door}, default")
    steps = [
        step
        for epoch in (0, 1)
        for step in by_step(dealt(planned(epoch, WHOLE), BATCH, len(by_rank)))
    ]
    losses = by_step([rank["losses"] for rank in by_rank])
    np.testing.assert_allclose(losses, plain_loop(steps), rtol=1e-9)


@pytest.mark.parametrize("config", RAGGED_CONFIGS)
@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_a_ragged_epoch_is_filled_up_with_draws_of_its_own(two_processes, door, config):
    by_rank = sound(two_processes(f"ragged {door}, {config}"))
    for epoch in (0, 1):
        plan, rows = planned(epoch, RAGGED), Counter(drawn(by_rank, epoch))
        assert Counter(plan) <= rows
        assert rows.total() - RAGGED == (0 if "dispatch" in config else 2)
        assert set(rows - Counter(plan)) <= set(plan)


@pytest.mark.guard
@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_ranks_with_other_numbers_of_batches_warn(two_processes, door):
    for rank in two_processes(f"uneven {door}"):
        assert len(set(rank["warnings"])) == 1
        assert "with even_batches=False" in rank["warnings"][0]


@pytest.mark.guard
def test_an_epoch_that_accelerate_draws_again_after_it_was_left_early_warns(outcome):
    for rank in outcome("broken off"):
        (warning,) = rank["warnings"]
        assert "draws epoch 0 a second time" in warning


@pytest.mark.parametrize("door", ["sampler", "dataset"])
def test_even_batches_repeats_the_first_draws_of_the_epoch_and_no_others(two_processes, door):
    by_rank = sound(two_processes(f"ragged {door}"))
    for epoch in (0, 1):
        plan = planned(epoch, RAGGED)
        assert same_rows(drawn(by_rank, epoch), plan + plan[:2])


def test_a_ragged_epoch_of_one_process_is_the_plan(one_process):
    by_rank = sound(one_process("ragged sampler"))
    assert [drawn(by_rank, epoch) for epoch in (0, 1)] == [planned(0, RAGGED), planned(1, RAGGED)]


def test_drop_last_leaves_out_the_draws_that_make_no_whole_round_of_batches(outcome):
    by_rank = sound(outcome("dropped"))
    kept = RAGGED // (BATCH * len(by_rank)) * BATCH * len(by_rank)
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, RAGGED)[:kept])


@pytest.mark.parametrize("name", ["nobody names", "nobody names, dataset"])
def test_accelerate_counts_the_epochs_itself(outcome, name):
    by_rank = sound(outcome(name))
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, WHOLE))


def test_a_shuffled_data_set_is_told_its_epoch_where_the_sampler_has_none(outcome):
    by_rank = sound(outcome("shuffled, random sampler"))
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, WHOLE))


@pytest.mark.guard
def test_a_seedable_sampler_hides_the_epoch_from_a_data_set_on_several_ranks(two_processes):
    for rank in two_processes("shuffled, seedable sampler"):
        assert len(rank["warnings"]) == 1
        assert "shuffle=False" in rank["warnings"][0]


def test_on_one_process_a_data_set_is_right_under_a_seedable_sampler_too(one_process):
    by_rank = sound(one_process("shuffled, seedable sampler"))
    for epoch in (0, 1):
        assert same_rows(drawn(by_rank, epoch), planned(epoch, WHOLE))


@pytest.mark.guard
def test_a_rank_sampler_that_would_be_split_again_is_refused(two_processes):
    for rank in two_processes("rank sampler"):
        assert "use FlowSampler(weights)" in rank["error"]


@pytest.mark.parametrize("name", ["skip, dataset", "skip, sampler"])
def test_skip_first_batches_leads_to_the_rest_of_the_epoch_that_was_named(outcome, name):
    by_rank = sound(outcome(name))
    skipped = BATCH * len(by_rank)
    assert same_rows(drawn(by_rank, 0), planned(1, WHOLE)[skipped:])
    assert same_rows(drawn(by_rank, 1), planned(2, WHOLE))


@pytest.mark.guard
def test_a_restart_whose_epoch_nobody_names_warns(outcome):
    for rank in outcome("skip, sampler not told"):
        first, second = rank["warnings"]
        assert "skip_first_batches" in first
        assert "draws epoch 0 a second time" in second


@pytest.mark.parametrize("name", ["state", "state, epoch not named"])
def test_a_loaded_state_leads_to_the_rest_without_skipping(outcome, name):
    by_rank = sound(outcome(name))
    assert same_rows(drawn(by_rank, 0), planned(1, WHOLE)[8:])
    assert same_rows(drawn(by_rank, 1), planned(2, WHOLE))


@pytest.mark.guard
@pytest.mark.parametrize("name", ["state, too late", "epoch, too late"])
def test_workers_that_accelerate_started_while_preparing_warn(outcome, name):
    for rank in outcome(name):
        assert len(rank["warnings"]) == 1
        assert "before accelerator.prepare()" in rank["warnings"][0]


@pytest.mark.parametrize("name", STATEFUL)
def test_a_stateful_loader_goes_on_with_the_draws_left(two_processes, name):
    stopped, resumed = two_processes(f"stopped {name}"), two_processes(f"resumed {name}")
    both = sound(stopped), sound(resumed)
    assert same_rows(drawn(both[0], 1) + drawn(both[1], 0), planned(1, WHOLE))
    assert same_rows(drawn(both[1], 1), planned(2, WHOLE))


@pytest.mark.guard
def test_a_stateful_loader_that_goes_on_in_an_epoch_nobody_named_warns(two_processes):
    for rank in two_processes("unnamed sampler, 0 workers"):
        (warning,) = rank["warnings"]
        assert "goes on in epoch 0" in warning


@pytest.mark.parametrize("name", STATEFUL)
def test_a_stateful_loader_of_one_process_goes_on_with_the_draws_left(name):
    stopped = [run(**STATEFUL[name] | {"epochs": [0, 1], "stop": 2})]
    state = {"loader": [stopped[0]["state"]]}
    resumed = [run(**STATEFUL[name] | {"epochs": [1, 2], "resume": state})]
    assert same_rows(drawn(sound(stopped), 1) + drawn(sound(resumed), 0), planned(1, WHOLE))
    assert same_rows(drawn(resumed, 1), planned(2, WHOLE))
