"""FlowSampler in torchdata's StatefulDataLoader: a loader's state goes on with the draws left."""

import json
from itertools import chain

import numpy as np
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import DistributedFlowSampler, EpochPlan, FlowSampler, MismatchError

ROWS, DRAWS, BATCH_SIZE, SEED, OTHER_SEED = 13, 22, 4, 5, 99
WEIGHTS = np.random.default_rng(2).random(ROWS)
EPOCHS = 2
LOADERS = [
    pytest.param({"num_workers": 0}, id="no workers"),
    pytest.param({"num_workers": 2}, id="2 workers", marks=pytest.mark.slow),
    pytest.param(
        {"num_workers": 2, "persistent_workers": True},
        id="2 persistent workers",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"num_workers": 2, "snapshot_every_n_steps": 4},
        id="2 workers, a snapshot every 4 steps",
        marks=pytest.mark.slow,
    ),
]


def planned(epoch, draws=DRAWS):
    return EpochPlan(WEIGHTS, seed=SEED, epoch=epoch, epoch_size=draws)[:].tolist()


def make(seed=SEED, kind=FlowSampler, draws=DRAWS, **options):
    return kind(WEIGHTS, seed=seed, epoch_size=draws, **options)


def make_loader(sampler, **options):
    return StatefulDataLoader(range(ROWS), BATCH_SIZE, sampler=sampler, **options)


def one_epoch(loader):
    return [row for batch in loader for row in batch.tolist()]


def restarted(state, loader_options, **sampler_options):
    """A loader with a sampler of another seed, from a state that was stored as JSON."""
    loader = make_loader(make(OTHER_SEED, **sampler_options), **loader_options)
    loader.load_state_dict(json.loads(state))
    return loader


def states_after_each_batch(loader):
    """(draws of the running epoch so far, epoch, state), and one state after each epoch's end."""
    for epoch in range(EPOCHS):
        done = []
        for batch in loader:
            done += batch.tolist()
            yield list(done), epoch, json.dumps(loader.state_dict())
        yield [], epoch + 1, json.dumps(loader.state_dict())


@pytest.mark.parametrize("options", LOADERS)
def test_a_state_after_any_batch_leads_to_the_draws_left_and_then_the_next_epoch(options):
    loader = make_loader(make(), **options)
    interruptions = list(states_after_each_batch(loader))
    assert len(interruptions) == EPOCHS * (len(loader) + 1)
    for done, epoch, state in interruptions:
        after = restarted(state, options)
        assert done + one_epoch(after) == planned(epoch)
        assert one_epoch(after) == planned(epoch + 1)


@pytest.mark.parametrize("options", LOADERS)
def test_a_state_before_the_first_batch_leads_to_the_whole_epoch(options):
    loader = make_loader(make(), **options)
    after = restarted(json.dumps(loader.state_dict()), options)
    assert one_epoch(after) == planned(0)
    assert one_epoch(after) == planned(1)


@pytest.mark.parametrize("options", LOADERS)
def test_taking_states_does_not_disturb_the_epochs_of_a_loader(options):
    loader = make_loader(make(), **options)
    loader.state_dict()
    drawn = []
    for _ in range(EPOCHS):
        for batch in loader:
            loader.state_dict()
            drawn += batch.tolist()
        loader.state_dict()
    assert drawn == planned(0) + planned(1)


@pytest.mark.parametrize("options", LOADERS)
def test_a_run_restarted_after_every_second_batch_draws_whole_epochs(options):
    state, drawn = json.dumps(make_loader(make(), **options).state_dict()), []
    while len(drawn) < EPOCHS * DRAWS:
        loader = restarted(state, options)
        for _, batch in zip(range(2), loader, strict=False):
            drawn += batch.tolist()
        state = json.dumps(loader.state_dict())
    assert drawn == planned(0) + planned(1)


@pytest.mark.parametrize("options", LOADERS)
def test_a_resumed_loop_may_call_set_epoch_as_usual(options):
    loader = make_loader(make(), **options)
    loader.sampler.set_epoch(6)
    batches = iter(loader)
    done = [row for _ in range(3) for row in next(batches).tolist()]
    after = restarted(json.dumps(loader.state_dict()), options)
    drawn = []
    for epoch in (6, 7, 3):
        after.sampler.set_epoch(epoch)
        drawn.append(one_epoch(after))
    assert [done + drawn[0], *drawn[1:]] == [planned(6), planned(7), planned(3)]


@pytest.mark.parametrize("options", LOADERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_of_a_distributed_sampler_resumes_at_any_batch(rank, options):
    ours = {"kind": DistributedFlowSampler, "num_replicas": 2, "rank": rank, "draws": 41}
    share = [(plan + plan[:1])[rank::2] for plan in (planned(epoch, 41) for epoch in range(4))]
    for done, epoch, state in states_after_each_batch(make_loader(make(**ours), **options)):
        after = restarted(state, options, **ours)
        assert done + one_epoch(after) == share[epoch]
        assert one_epoch(after) == share[epoch + 1]


@pytest.mark.parametrize("options", LOADERS)
def test_a_resumed_loader_that_drops_its_last_batch_draws_whole_batches_only(options):
    loader = make_loader(make(), drop_last=True, **options)
    batches = iter(loader)
    next(batches)
    after = restarted(json.dumps(loader.state_dict()), options | {"drop_last": True})
    assert one_epoch(after) == planned(0)[4:20]
    assert one_epoch(after) == planned(1)[:20]


@pytest.mark.parametrize("options", LOADERS)
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_the_samplers_own_state_carries_a_run_to_another_number_of_ranks(before, after, options):
    draws, steps = 48, 2
    samplers = [make(draws=draws, num_replicas=before, rank=rank) for rank in range(before)]
    done = interleaved_epoch(samplers, options, steps)
    state = samplers[0].state_dict(position=steps * BATCH_SIZE * before)
    restarted_samplers = [
        make(OTHER_SEED, draws=draws, num_replicas=after, rank=rank) for rank in range(after)
    ]
    for sampler in restarted_samplers:
        sampler.load_state_dict(json.loads(json.dumps(state)))
    padding = planned(0, draws)[: -(draws - len(done)) % after]
    assert done + interleaved_epoch(restarted_samplers, options) == planned(0, draws) + padding
    assert interleaved_epoch(restarted_samplers, options) == planned(1, draws)


def interleaved_epoch(samplers, options, steps=None):
    by_rank = []
    for sampler in samplers:
        batches = zip(range(steps or 99), make_loader(sampler, **options), strict=False)
        by_rank.append(torch.cat([batch for _, batch in batches]).tolist())
    return list(chain.from_iterable(zip(*by_rank, strict=True)))


@pytest.mark.parametrize("options", LOADERS)
def test_a_loader_state_of_other_weights_is_refused(options):
    loader = make_loader(FlowSampler(WEIGHTS[::-1].copy(), epoch_size=DRAWS), **options)
    next(iter(loader))
    after = restarted(json.dumps(loader.state_dict()), options)
    with pytest.raises(MismatchError, match="weights"):
        next(iter(after))
