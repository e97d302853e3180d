"""Which rows a step of training had, without a log of them."""

import json
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

import flowdata
from flowdata.core.saved_plan import saved_plan

LOSSES = np.random.default_rng(0).gamma(2.0, size=23)
LENGTHS = np.random.default_rng(1).integers(1, 30, 23)
TABLE = flowdata.LossTable.from_losses(LOSSES, lengths=LENGTHS)
WEIGHTS = TABLE.weights()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_rows_of_a_step_are_those_that_loaders_gave_its_ranks(batch_size, ranks, drop_last):
    samplers = [
        flowdata.FlowSampler(WEIGHTS, seed=3, num_replicas=ranks, rank=rank, drop_last=drop_last)
        for rank in range(ranks)
    ]
    for epoch in range(2):
        plan = samplers[0].plan
        loaders = [
            DataLoader(range(23), batch_size, sampler=sampler, collate_fn=list)
            for sampler in samplers
        ]
        step = -1
        for step, batches in enumerate(zip(*loaders, strict=True)):
            where = (step, batch_size, ranks)
            for rank, batch in enumerate(batches):
                assert plan.rows_of_step(*where, rank, drop_last=drop_last).tolist() == batch
            together = plan.rows_of_step(*where, drop_last=drop_last).tolist()
            assert together == np.stack(batches, axis=1).reshape(-1).tolist()
        assert plan.epoch == epoch
        with pytest.raises(IndexError, match=f"has steps 0 to {step:,}"):
            plan.rows_of_step(step + 1, batch_size, ranks, drop_last=drop_last)


def test_the_packs_of_a_step_are_those_that_a_loader_gave():
    packs = flowdata.FlowPackSampler(TABLE, max_length=40, batch_size=2, seed=3)
    loader = DataLoader(range(23), batch_sampler=packs, collate_fn=list)
    plan = packs.plan
    given = list(loader)
    for step in range(len(given) // 2):
        found = plan.rows_of_step(step, 2)
        assert [rows.tolist() for rows in found] == given[2 * step : 2 * step + 2]


def test_a_step_that_counts_from_the_begin_of_a_run_is_said_to_be_of_another_epoch():
    plan = flowdata.EpochPlan(WEIGHTS, epoch=4)
    with pytest.raises(IndexError, match="there is no step 14; if steps count from the begin of "):
        plan.rows_of_step(14, 2, ranks=2)
    with pytest.raises(IndexError, match=r"it is step 2 of epoch 2$"):
        plan.rows_of_step(14, 2, ranks=2)
    with pytest.raises(IndexError, match=r"there is no step -1$"):
        plan.rows_of_step(-1, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "batch_size must be an int >= 1, got 0"),
        ((0, 2, 0), "ranks must be an int >= 1, got 0"),
        ((0, 2, 2, 2), r"rank must be in \[0, ranks\), got rank=2, ranks=2"),
    ],
)
def test_steps_of_no_loop_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        flowdata.EpochPlan(WEIGHTS).rows_of_step(*arguments)


# The plan of a state.


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.5, "epoch_size": 31}, {"scheme": "multinomial"}], ids=str
)
def test_the_plan_of_a_sampler_is_made_of_its_state_and_the_weights(options):
    sampler = flowdata.FlowSampler(WEIGHTS, seed=3, **options)
    list(sampler)
    rows = list(islice(sampler, 9))
    state = json.loads(json.dumps(sampler.state_dict()))
    found = saved_plan(state, WEIGHTS)
    assert (found.plan.epoch, found.position) == (1, 9)
    assert found.plan[:9].tolist() == rows


def test_the_plan_of_a_data_set_of_draws_is_made_of_its_state():
    data = flowdata.FlowDataset(range(23), WEIGHTS, seed=3)
    data.set_epoch(2)
    found = saved_plan(data.state_dict(), WEIGHTS)
    assert found.position is None
    assert found.plan[:].tolist() == list(DataLoader(data, None))


def test_the_packs_of_a_state_are_made_of_its_lengths():
    packs = flowdata.FlowPackSampler(TABLE, max_length=40, batch_size=2, seed=3)
    given = list(packs)
    found = saved_plan(packs.state_dict(0), WEIGHTS, TABLE)
    assert [rows.tolist() for rows in found.plan.rows_of_step(1, 2)] == given[2:4]
    with pytest.raises(flowdata.MismatchError, match="the loss table has no lengths"):
        saved_plan(packs.state_dict(0), WEIGHTS)
    other = flowdata.LossTable.from_losses(LOSSES, lengths=LENGTHS + 1)
    with pytest.raises(flowdata.MismatchError, match="does not belong here: it has lengths="):
        saved_plan(packs.state_dict(0), WEIGHTS, other)


def test_states_that_do_not_say_which_rows_a_step_had_are_refused():
    state = flowdata.FlowSampler(WEIGHTS).state_dict(0)
    with pytest.raises(flowdata.MismatchError, match=r"it has weights=.*, here it is"):
        saved_plan(state, TABLE.weights(0.5))
    for wrong in ({}, [], {**state, "plan": {}}, {**state, "plan": {"epoch_size": 1}}):
        with pytest.raises(flowdata.MismatchError, match="not a sampler state"):
            saved_plan(wrong, WEIGHTS)
    arranged = flowdata.FlowSampler(WEIGHTS, arrange=flowdata.ByLength(LENGTHS, 4)).state_dict(0)
    with pytest.raises(flowdata.MismatchError, match="a plan that is arranged"):
        saved_plan(arranged, WEIGHTS)
    given = [flowdata.ByLength(LENGTHS, 5), flowdata.ByLength(LENGTHS, 4)]
    assert saved_plan(arranged, WEIGHTS, arrange=given).plan.arrange is given[1]
    with pytest.raises(flowdata.MismatchError, match="the sizes, of the run"):
        saved_plan(arranged, WEIGHTS, arrange=given[:1])
    with pytest.raises(flowdata.MismatchError, match="leave arrange out"):
        saved_plan(state, WEIGHTS, arrange=given)
    stream = {**state, "stream": {}}
    with pytest.raises(flowdata.MismatchError, match="the state is of a stream"):
        saved_plan(stream, WEIGHTS)
