"""SamplerGuard: who divides the draws of a sampler, and who reads ahead of them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import flowdata
from flowdata import DistributedFlowSampler, EpochPlan, FlowSampler
from flowdata.errors import FlowDataWarning
from flowdata.guards.detection import Caller

pytestmark = pytest.mark.guard

ROWS, DRAWS, SEED = 11, 18, 2
WEIGHTS = np.random.default_rng(5).random(ROWS)


def make(kind=FlowSampler, **options):
    return kind(WEIGHTS, seed=SEED, epoch_size=DRAWS, **options)


def one_epoch(loader):
    return torch.cat(list(loader)).tolist()


@pytest.fixture
def two_ranks(monkeypatch):
    monkeypatch.setattr("flowdata.guards.sampler.group_size", lambda: 2)


@pytest.mark.usefixtures("two_ranks")
def test_a_sampler_of_all_draws_warns_where_each_rank_would_draw_them_all():
    with pytest.warns(FlowDataWarning, match=r"use DistributedFlowSampler\(weights\)"):
        one_epoch(DataLoader(range(ROWS), 4, sampler=make()))


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_sampler_in_a_plain_loader_is_as_it_should_be():
    sampler = make(DistributedFlowSampler, num_replicas=2, rank=1)
    assert (
        one_epoch(DataLoader(range(ROWS), 4, sampler=sampler))
        == EpochPlan(WEIGHTS, seed=SEED, epoch_size=DRAWS)[:].tolist()[1::2]
    )


@pytest.mark.usefixtures("two_ranks")
def test_guards_that_are_off_say_nothing():
    loader = DataLoader(range(ROWS), 4, sampler=make())
    flowdata.guards.off()
    try:
        one_epoch(loader)
    finally:
        flowdata.guards.on()
    with pytest.warns(FlowDataWarning, match="DistributedFlowSampler"):
        one_epoch(loader)


@pytest.mark.usefixtures("two_ranks")
@pytest.mark.parametrize("value", ["off", "0", "FALSE", "no"])
def test_the_environment_switches_guards_off(monkeypatch, value):
    monkeypatch.setenv("FLOWDATA_GUARDS", value)
    one_epoch(DataLoader(range(ROWS), 4, sampler=make()))


@pytest.mark.usefixtures("two_ranks")
def test_where_a_framework_has_renamed_what_divides_draws_nothing_is_said(monkeypatch):
    import accelerate.data_loader

    monkeypatch.delattr(accelerate.data_loader, "BatchSamplerShard")
    one_epoch(DataLoader(range(ROWS), 4, sampler=make()))


def test_a_state_of_a_loader_that_reads_ahead_warns(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate import Accelerator

    sampler = make()
    loader = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=sampler))
    for batch in loader:
        with pytest.warns(FlowDataWarning, match="position=steps x batch size x ranks"):
            sampler.state_dict()
        state = sampler.state_dict(position=len(batch))
        break
    assert (state["epoch"], state["position"]) == (0, 4)
    loader.set_epoch(0)
    one_epoch(loader)
    assert sampler.state_dict()["epoch"] == 1


def test_an_epoch_that_was_loaded_is_drawn_without_a_word(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate import Accelerator

    state = make().state_dict(position=4) | {"epoch": 1}
    sampler = make()
    sampler.load_state_dict(state)
    loader = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=sampler))
    one_epoch(loader)
    again = make()
    again.load_state_dict(state)
    loader = Accelerator(cpu=True).prepare(DataLoader(range(ROWS), 4, sampler=again))
    loader.set_epoch(1)
    assert (
        one_epoch(loader) == EpochPlan(WEIGHTS, seed=SEED, epoch=1, epoch_size=DRAWS)[4:].tolist()
    )


@pytest.fixture
def lightning_resumes(monkeypatch):
    caller = Caller(lightning_fits=True, lightning_resumes=True)
    monkeypatch.setattr("flowdata.guards.sampler.find_caller", lambda: caller)


@pytest.mark.usefixtures("lightning_resumes")
def test_a_resumed_lightning_run_warns_unless_a_loader_says_where_it_goes_on():
    with pytest.warns(FlowDataWarning, match="without saying at which draw"):
        list(make())
    resumed = iter(make())
    resumed.load_state_dict(make().state_dict(position=4))
    assert len(list(resumed)) == DRAWS - 4
    at_its_end = iter(make())
    at_its_end.load_state_dict(make().state_dict(position=DRAWS - 1) | {"position": DRAWS})
    with pytest.warns(FlowDataWarning, match="without saying at which draw"):
        assert list(at_its_end) == []
