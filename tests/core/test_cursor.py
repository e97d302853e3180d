"""Cursor: what one replica has left of an epoch, and its state."""

import json

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import EpochPlan, MismatchError
from flowdata.core.cursor import Cursor
from flowdata.core.states import save_state

laws = examples(100)
WEIGHTS = np.linspace(0.2, 1.0, 23)


def plan(**options):
    return EpochPlan(WEIGHTS, seed=3, **options)


def replicas(count, **options):
    return [Cursor(plan(), rank=rank, replicas=count, **options) for rank in range(count)]


def rows_left(cursor):
    return cursor.rows(0, len(cursor)).tolist()


@laws
@given(st.integers(0, 23), st.integers(1, 9))
def test_replicas_take_turns_and_fill_the_last_step_with_the_first_draws(position, count):
    draws = plan()[:].tolist()
    cursors = replicas(count, position=position)
    steps = {len(cursor) for cursor in cursors}
    assert steps == {-(-(23 - position) // count)}
    in_turns = np.stack([rows_left(cursor) for cursor in cursors], axis=1).reshape(-1).tolist()
    assert in_turns == (draws + draws)[position : position + len(in_turns)]


def test_numbers_are_those_of_the_draws_that_rows_are_of():
    for cursor in replicas(4, position=6):
        numbers = cursor.numbers(1, len(cursor))
        assert numbers[0] == 6 + cursor.rank + 4
        assert plan().rows(numbers).tolist() == rows_left(cursor)[1:]


@laws
@given(st.integers(0, 23), st.integers(1, 9))
def test_an_incomplete_step_is_left_out_if_asked(position, count):
    cursors = replicas(count, position=position, drop_last=True)
    assert {len(cursor) for cursor in cursors} == {(23 - position) // count}
    in_turns = np.stack([rows_left(cursor) for cursor in cursors], axis=1).reshape(-1).tolist()
    assert in_turns == plan()[position : position + len(in_turns)].tolist()


@laws
@given(st.integers(0, 8), st.integers(1, 4))
def test_steps_lead_to_the_rest_and_not_beyond_the_epoch(steps, count):
    for cursor in replicas(count):
        after = cursor.step(steps)
        assert after.position == min(steps * count, 23)
        assert rows_left(after) == rows_left(cursor)[steps:]
        assert (after.rank, after.replicas) == (cursor.rank, count)


def test_rows_are_those_of_steps_from_here_on():
    cursor = Cursor(plan(), position=4, rank=1, replicas=3)
    assert cursor.rows(2, 5).tolist() == plan()[11:20:3].tolist()
    assert cursor.rows(2, 2).size == 0


def test_a_position_beyond_the_epoch_has_nothing_left():
    cursor = Cursor(plan(), position=99)
    assert len(cursor) == 0
    assert len(Cursor(plan(), position=99, drop_last=True)) == 0


def test_another_epoch_begins_at_its_first_draw():
    cursor = Cursor(plan(), position=5, rank=1, replicas=2)
    other = cursor.at(4)
    assert (other.plan.epoch, other.position, other.rank, other.replicas) == (4, 0, 1, 2)
    assert rows_left(other) == [*plan(epoch=4)[1::2].tolist(), plan(epoch=4)[0]]
    assert cursor.at(4, 6).position == 6


def test_an_epoch_that_is_done_is_followed_by_the_next():
    assert Cursor(plan(), position=22).or_next_epoch().plan.epoch == 0
    begun = Cursor(plan(epoch=2), position=23).or_next_epoch()
    assert (begun.plan.epoch, begun.position) == (3, 0)
    # Of an incomplete step that is left out, nothing is left.
    left_out = Cursor(plan(), position=22, replicas=2, drop_last=True)
    assert left_out.or_next_epoch().plan.epoch == 1


def test_a_state_leads_to_the_same_place_on_any_replica_under_the_seed_it_was_saved_with():
    saved = json.loads(json.dumps(Cursor(plan(epoch=2), position=9).state()))
    assert saved == save_state(plan(epoch=2), position=9)
    elsewhere = Cursor(EpochPlan(WEIGHTS, seed=8), rank=1, replicas=2, drop_last=True)
    found = elsewhere.load(saved, owner="FlowSampler")
    assert (found.plan.seed, found.plan.epoch, found.position) == (3, 2, 9)
    assert (found.rank, found.replicas, found.drop_last) == (1, 2, True)
    assert rows_left(found) == plan(epoch=2)[10:23:2].tolist()


@pytest.mark.parametrize("position", [-1, 1.5, None, True])
def test_a_position_that_is_no_count_is_refused(position):
    state = Cursor(plan()).state() | {"position": position}
    with pytest.raises(MismatchError, match="position must be an int >= 0"):
        Cursor(plan()).load(state, owner="FlowSampler")


def test_a_position_beyond_the_epoch_is_refused():
    state = Cursor(plan()).state()
    assert Cursor(plan()).load(state | {"position": 23}, owner="FlowSampler").position == 23
    for position in (24, 10**30):
        with pytest.raises(MismatchError, match=r"position must be an int in \[0, 23\], got"):
            Cursor(plan()).load(state | {"position": position}, owner="FlowSampler")


def test_a_state_without_a_position_or_of_another_plan_is_refused_in_the_name_of_its_owner():
    cursor = Cursor(plan())
    with pytest.raises(MismatchError, match=r"not a FlowSampler state: \['position'\] missing"):
        cursor.load(save_state(plan()), owner="FlowSampler")
    state = Cursor(plan(epoch_size=20)).state()
    with pytest.raises(MismatchError, match="the saved FlowSampler state does not belong here"):
        cursor.load(state, owner="FlowSampler")
