"""A FlowSampler that is stopped anywhere goes on with exactly the draws that were left."""

import json
import os
import random
import subprocess
import sys
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from flowdata import EpochPlan, FlowSampler, FlowWeights
from flowdata.core.permutation import CHUNK

ROWS, DRAWS, SEED, OTHER_SEED = 13, 26, 5, 99
WEIGHTS = np.random.default_rng(1).random(ROWS)
RESUMABLE = Path(__file__).parents[1] / "programs" / "resumable_loop.py"
REPLICAS = [1, 2, 3, 8]


def planned(epoch, draws=DRAWS, weights=WEIGHTS, seed=SEED):
    return EpochPlan(weights, seed=seed, epoch=epoch, epoch_size=draws)[:].tolist()


def make(seed=SEED, draws=DRAWS, weights=WEIGHTS, **options):
    return FlowSampler(weights, seed=seed, epoch_size=draws, **options)


def resumed(state, **options):
    """A sampler of another seed that loaded a state which was stored as JSON."""
    sampler = make(**({"seed": OTHER_SEED} | options))
    sampler.load_state_dict(json.loads(json.dumps(state)))
    return sampler


def ranks(replicas, state=None, **options):
    samplers = [
        make(
            num_replicas=replicas, rank=rank, **({"seed": OTHER_SEED if state else SEED} | options)
        )
        for rank in range(replicas)
    ]
    for sampler in samplers if state else []:
        sampler.load_state_dict(json.loads(json.dumps(state)))
    return samplers


def interleaved(by_rank):
    return list(chain.from_iterable(zip(*by_rank, strict=True)))


def padded(draws, left, replicas):
    """What ranks draw from the draws left of an epoch: all, and its first ones once more."""
    return left + [draws[place % len(draws)] for place in range(-len(left) % replicas)]


@pytest.mark.parametrize("position", range(DRAWS + 1))
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_state_at_any_position_leads_to_the_rest_and_then_the_next_epochs(epoch, position):
    interrupted = make()
    interrupted.set_epoch(epoch)
    done = list(islice(iter(interrupted), position))
    sampler = resumed(interrupted.state_dict())
    lives = [list(sampler) for _ in range(3)]
    following = [planned(epoch + 1), planned(epoch + 2), planned(epoch + 3)]
    if position == DRAWS:
        assert (done, lives) == (planned(epoch), following)
    else:
        assert [done + lives[0], *lives[1:]] == [planned(epoch), *following[:2]]


def test_a_state_before_the_first_draw_leads_to_the_whole_epoch():
    sampler = make()
    sampler.set_epoch(2)
    unstarted = sampler.state_dict()
    iter(sampler)
    assert sampler.state_dict() == unstarted
    assert list(resumed(unstarted)) == planned(2)


def test_a_state_between_two_epochs_leads_to_the_next_one():
    sampler = make()
    list(sampler)
    state = sampler.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0)
    assert list(resumed(state)) == planned(1)


def test_a_process_that_is_stopped_after_every_single_draw_draws_whole_epochs():
    state, drawn = make().state_dict(), []
    for _ in range(2 * DRAWS):
        sampler = resumed(state)
        drawn.append(next(iter(sampler)))
        state = sampler.state_dict()
    assert drawn == planned(0) + planned(1)


@pytest.mark.parametrize("position", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 6])
def test_positions_around_a_chunk_resume_exactly(position):
    draws = 2 * CHUNK + 7
    interrupted = make(draws=draws)
    list(islice(iter(interrupted), position))
    state = interrupted.state_dict()
    assert state["position"] == position
    assert list(resumed(state, draws=draws)) == planned(0, draws)[position:]


def test_the_state_of_an_abandoned_pass_leads_to_its_rest_until_the_next_pass_begins():
    sampler = make()
    list(islice(iter(sampler), 7))
    abandoned = sampler.state_dict()
    next_pass = iter(sampler)
    assert sampler.state_dict() == abandoned
    next(next_pass)
    assert list(resumed(abandoned)) == planned(0)[7:]
    assert list(resumed(sampler.state_dict())) == planned(1)[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stated_position_makes_up_for_draws_that_workers_fetched_ahead(workers):
    sampler = make()
    batches = iter(DataLoader(range(ROWS), 4, sampler=sampler, num_workers=workers))
    done = torch.cat([next(batches) for _ in range(2)]).tolist()
    rest = list(resumed(sampler.state_dict(position=8)))
    assert done + rest == planned(0)
    fetched = sampler.state_dict()["position"]
    assert fetched == (8 if workers == 0 else 24)


@pytest.mark.parametrize("overshoot", [0, 1, 22])
def test_a_stated_position_at_the_end_or_in_the_padding_leads_to_the_next_epoch(overshoot):
    sampler = make(num_replicas=8, rank=1)
    list(sampler)
    assert list(resumed(sampler.state_dict(position=DRAWS + overshoot))) == planned(1)


@pytest.mark.parametrize("begun", [False, True])
def test_a_position_that_counts_epochs_before_is_refused(begun):
    sampler = make()
    if begun:
        next(iter(sampler))
    with pytest.raises(ValueError, match=r"beyond epoch 0.*not those of epochs before"):
        sampler.state_dict(position=DRAWS + 1 if begun else 2 * DRAWS)


@pytest.mark.parametrize("after", REPLICAS)
@pytest.mark.parametrize("before", REPLICAS)
@pytest.mark.parametrize("draws", [24, 26])
def test_a_state_of_any_number_of_ranks_resumes_on_any_other(draws, before, after):
    plan = planned(0, draws)
    for steps in range(-(-draws // before)):
        interrupted = ranks(before, draws=draws)
        done = interleaved([islice(iter(sampler), steps) for sampler in interrupted])
        states = [sampler.state_dict() for sampler in interrupted]
        assert all(state == states[0] for state in states)
        restarted = ranks(after, states[0], draws=draws)
        left = interleaved(map(list, restarted))
        assert done + left == done + padded(plan, plan[len(done) :], after)
        following = planned(1, draws)
        assert interleaved(map(list, restarted)) == padded(following, following, after)


@pytest.mark.parametrize("order", [(1, 2, 3, 8), (8, 3, 2, 1)])
def test_one_epoch_drawn_by_changing_numbers_of_ranks_is_the_plan(order):
    draws, steps = 31, 2
    state, drawn = make(draws=draws).state_dict(), []
    for replicas in order:
        samplers = ranks(replicas, state, draws=draws)
        drawn += interleaved([islice(iter(sampler), steps) for sampler in samplers])
        state = samplers[-1].state_dict()
    drawn += list(resumed(state, draws=draws))
    assert drawn == planned(0, draws)


@pytest.mark.parametrize("replicas", [2, 3, 8])
def test_ranks_that_drop_resume_with_whole_rounds_only(replicas):
    one = make()
    done = list(islice(iter(one), 5))
    restarted = ranks(replicas, one.state_dict(), drop_last=True)
    kept = (DRAWS - 5) // replicas * replicas
    assert done + interleaved(map(list, restarted)) == planned(0)[: 5 + kept]
    assert interleaved(map(list, restarted)) == planned(1)[: DRAWS // replicas * replicas]


def test_too_few_draws_left_for_ranks_that_drop_lead_to_the_next_epoch():
    one = make()
    list(islice(iter(one), DRAWS - 2))
    restarted = ranks(3, one.state_dict(), drop_last=True)
    assert interleaved(map(list, restarted)) == planned(1)[:24]


@examples(150)
@given(st.data())
def test_any_epoch_interrupted_anywhere_resumes_on_any_number_of_ranks(data):
    rows = data.draw(st.integers(1, 40), "rows")
    draws = data.draw(st.integers(1, 90), "draws")
    before = data.draw(st.integers(1, 9), "ranks before")
    after = data.draw(st.integers(1, 9), "ranks after")
    epoch = data.draw(st.integers(0, 400), "epoch")
    position = data.draw(st.integers(0, draws), "position")
    weights = np.random.default_rng(rows).random(rows) + 1e-3
    options = {"draws": draws, "weights": weights}
    plan, following = (planned(number, **options) for number in (epoch, epoch + 1))
    interrupted = make(**options, num_replicas=before, rank=before - 1)
    interrupted.set_epoch(epoch)
    next(iter(interrupted))
    restarted = ranks(after, interrupted.state_dict(position=position), **options)
    if position < draws:
        assert interleaved(map(list, restarted)) == padded(plan, plan[position:], after)
    assert interleaved(map(list, restarted)) == padded(following, following, after)


def test_a_state_is_a_fresh_dict_of_plain_values_without_the_number_of_ranks():
    sampler = make(num_replicas=2, rank=1)
    state = sampler.state_dict()
    plan = state["plan"]
    assert {type(value) for value in [*state.values(), *plan.values()]} == {int, float, str, dict}
    assert state == make().state_dict()
    state["position"] = 7
    assert sampler.state_dict()["position"] == 0


def test_a_state_saved_once_may_be_loaded_many_times():
    interrupted = make()
    list(islice(iter(interrupted), 3))
    state = interrupted.state_dict()
    sampler = make()
    for _ in range(2):
        sampler.load_state_dict(state)
        assert list(sampler) == planned(0)[3:]


def test_loading_in_the_middle_of_an_epoch_leaves_that_epoch_behind():
    state = make().state_dict(position=20)
    sampler = make()
    list(islice(iter(sampler), 4))
    sampler.load_state_dict(state)
    assert sampler.state_dict() == state
    assert list(sampler) == planned(0)[20:]


def test_a_loaded_state_brings_its_seed_for_all_epochs():
    state = make(seed=SEED).state_dict()
    sampler = resumed(state)
    assert sampler.seed == sampler.plan.seed == SEED
    assert sampler.state_dict() == state
    sampler.set_epoch(8)
    assert list(sampler) == planned(8)


def test_equal_weights_and_sizes_said_in_another_way_are_the_same_run():
    state = make(draws="full").state_dict()
    weights = FlowWeights.from_weights(WEIGHTS.tolist())
    assert list(resumed(state, weights=weights, draws=ROWS)) == planned(0, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_random_steps_and_started_again_draws_exactly_its_epochs(tmp_path, workers):
    """Each life ends by SIGKILL before, while or after a step is saved; the last one is let be."""
    saved, errors = tmp_path / "saved.json", tmp_path / "stderr.txt"
    random_steps = random.Random(workers)
    deaths = [
        f"{random_steps.randrange(2, 6)}:{when}"
        for when in ("before_saving", "while_saving", "after_saving")
    ]
    for death in [*deaths, "never"]:
        with errors.open("w") as stderr:
            code = subprocess.run(
                [sys.executable, str(RESUMABLE), str(saved), str(workers), death],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stderr=stderr,
                timeout=60,
            ).returncode
        assert code == (0 if death == "never" else -9), errors.read_text()
    batches = json.loads(saved.read_text())["trained"]
    assert list(chain.from_iterable(batches)) == list(
        chain.from_iterable(planned(epoch, 50, seed=11) for epoch in range(3))
    )
    assert [len(batch) for batch in batches] == 3 * ([4] * 12 + [2])
