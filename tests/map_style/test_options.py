"""What a plan can be asked for is passed on by samplers and data sets."""

import inspect

import numpy as np
import pytest
import torch

from flowdata import (
    ByLength,
    DistributedFlowSampler,
    EpochPlan,
    FlowDataset,
    FlowSampler,
    Strata,
)

ROWS = 24
WEIGHTS = np.random.default_rng(4).random(ROWS)
OPTIONS = {
    "epoch_size": 0.5,
    "seed": 9,
    "scheme": "multinomial",
    "alpha": 0.5,
    "arrange": ByLength(1 + np.arange(ROWS) % 7, batch_size=4, window=3),
    "strata": Strata(np.arange(ROWS) % 3, batch_size=6),
}
ENTRY_POINTS = {
    "FlowSampler": FlowSampler,
    "DistributedFlowSampler": lambda weights, **options: DistributedFlowSampler(
        weights, num_replicas=1, rank=0, **options
    ),
    "FlowDataset": lambda weights, **options: FlowDataset(range(ROWS), weights, **options),
}


def test_these_are_the_options_of_a_plan():
    named = set(inspect.signature(EpochPlan.__init__).parameters)
    # The epoch is set by `set_epoch`.
    assert named - {"self", "weights", "epoch"} == OPTIONS.keys()


@pytest.mark.parametrize("name", [None, *OPTIONS])
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_each_option_makes_the_draws_of_a_plan_with_it(entry_point, name):
    options = {} if name is None else {name: OPTIONS[name]}
    made = ENTRY_POINTS[entry_point](WEIGHTS, **options)
    plan = EpochPlan(WEIGHTS, **options)
    assert made.plan.identity() == plan.identity()
    assert made.plan.seed == plan.seed
    assert len(made) == len(plan)
    found = (
        [made[draw] for draw in range(len(made))] if entry_point == "FlowDataset" else list(made)
    )
    assert found == plan[:].tolist()
    if name is not None:
        assert found != EpochPlan(WEIGHTS)[:].tolist()


@pytest.mark.parametrize("sampler", [FlowSampler, DistributedFlowSampler])
def test_ranks_may_leave_out_what_is_over(sampler):
    whole = [sampler(WEIGHTS, num_replicas=5, rank=rank) for rank in range(5)]
    cut = [sampler(WEIGHTS, num_replicas=5, rank=rank, drop_last=True) for rank in range(5)]
    assert [len(each) for each in whole] == [5] * 5
    assert [len(each) for each in cut] == [4] * 5
    assert cut[2].drop_last
    assert not whole[2].drop_last


@pytest.mark.parametrize("given", [{}, {"num_replicas": 2}, {"rank": 0}])
def test_without_a_process_group_both_rank_and_replicas_are_needed(given):
    assert not torch.distributed.is_initialized()
    with pytest.raises(RuntimeError, match="or num_replicas= and rank=; for one process use Flow"):
        DistributedFlowSampler(WEIGHTS, **given)


@pytest.mark.parametrize(
    ("given", "expected"), [({}, (5, 3)), ({"num_replicas": 7}, (7, 3)), ({"rank": 1}, (5, 1))]
)
def test_what_is_not_given_is_that_of_the_process_group(monkeypatch, given, expected):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 5)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    sampler = DistributedFlowSampler(WEIGHTS, **given)
    assert (sampler.num_replicas, sampler.rank) == expected
