"""Batches of samples of similar length, under a budget or about one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdata.scoring.layouts.token_batches import make_batches
from flowdata.scoring.layouts.token_rows import Tokens

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def samples_of(lengths):
    return [Tokens(np.zeros(size, np.int64), np.zeros(size, np.int64)) for size in lengths]


def batches_of(lengths, budget, **options):
    return list(make_batches(np.arange(len(lengths)), samples_of(lengths), budget, **options))


def size_of(lengths, batch):
    return len(batch) * max(lengths[place] for place in batch)


@given(LENGTHS, st.integers(1, 200), st.booleans())
def test_each_sample_is_in_one_batch(lengths, budget, is_limit):
    batches = batches_of(lengths, budget, is_limit=is_limit)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 200))
def test_no_batch_of_several_is_over_a_limit(lengths, budget):
    for batch in batches_of(lengths, budget):
        assert len(batch) == 1 or size_of(lengths, batch) <= budget


@given(st.integers(1, 60), st.integers(1, 200))
def test_batches_of_one_length_are_as_near_to_the_budget_as_whole_rows_can_be(length, budget):
    first, *_ = batches_of([length] * 400, budget, is_limit=False)
    nearest = min(abs(rows * length - budget) for rows in range(1, 400))
    assert abs(size_of([length] * 400, first) - budget) == nearest


@given(LENGTHS, st.integers(1, 200))
def test_batches_about_a_budget_are_over_it_by_half_a_row_at_most(lengths, budget):
    for batch in batches_of(lengths, budget, is_limit=False):
        width = max(lengths[place] for place in batch)
        assert len(batch) == 1 or size_of(lengths, batch) <= budget + width / 2


@pytest.mark.parametrize(("is_limit", "rows"), [(True, 1), (False, 2)])
def test_long_rows_are_not_alone_where_the_budget_is_no_limit(is_limit, rows):
    assert [len(batch) for batch in batches_of([280] * 4, 512, is_limit=is_limit)] == [rows] * (
        4 // rows
    )
