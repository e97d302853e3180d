"""SamplerGuard: who divides the draws of a sampler, and who reads ahead of them."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import flowdata
from flowdata import DistributedFlowSampler, EpochPlan, FlowSampler
from flowdata.errors import FlowDataWarning

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
