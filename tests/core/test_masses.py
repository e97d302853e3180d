"""Masses: integers that sum to exactly an epoch, each the expected count of its row.

An error of some of their units shows in the draws of one epoch in 10^10 or fewer, so these tests
look at the integers themselves.
"""

from fractions import Fraction

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowWeights
from flowdata.core.masses import MOST_DRAWS, Masses, count_draws, draw_bits
from flowdata.core.permutation import CHUNK

laws = examples(150)
some_weights = st.lists(
    st.one_of(
        st.just(0.0),
        st.sampled_from([1.0, 2.0, 0.5]),
        st.floats(-12, 0).map(lambda exponent: 10.0**exponent),
    ),
    min_size=1,
    max_size=60,
).filter(any)


def masses(weights, size):
    """The masses of an epoch of so many draws, and what a draw is worth."""
    bits = draw_bits(size)
    weights = FlowWeights.from_weights(weights)
    return Masses(weights, size << bits, bits).all(len(weights)), 1 << bits


@laws
@given(some_weights, st.integers(1, 500))
def test_they_are_the_expected_counts_to_2_to_the_minus_44_and_sum_to_the_epoch(weights, size):
    found, draw = masses(weights, size)
    assert draw == 2**44
    assert sum(found.tolist()) == size * draw
    total = sum(map(Fraction, weights))
    for mass, weight in zip(found.tolist(), weights, strict=True):
        expected = Fraction(weight) * size / total
        # Half a unit of its own and, for one row, of each other; 2^-50 of float64 arithmetic.
        assert abs(mass - expected * draw) <= 1 + len(weights) / 2 + expected * draw / 2**50
        assert mass == 0 or expected > 0


@laws
@given(st.lists(st.integers(0, 64), min_size=1, max_size=60).filter(any))
def test_a_whole_expected_count_up_to_64_has_exactly_its_mass(counts):
    # The first row is half of all draws; the others are whole, or not with one draw in three.
    total = sum(counts)
    whole, draw = masses(np.array(counts) / 3, total)
    assert whole.tolist() == [count * draw for count in counts]
    half, draw = masses([7.0 * total, *(7.0 * np.array(counts))], 2)
    assert half[0] == draw


@pytest.mark.parametrize("zeros", [0, CHUNK + 5])
def test_those_of_many_blocks_sum_to_the_epoch(zeros):
    weights = np.random.default_rng(2).gamma(2.0, size=3 * CHUNK + 17)
    weights[:zeros] = 0
    found, draw = masses(weights, weights.size)
    assert found.sum() == weights.size * draw
    assert not found[:zeros].any()
    assert found.min() >= 0


def test_blocks_are_asked_for_in_any_order_of_their_rows():
    weights = FlowWeights.from_weights(np.random.default_rng(3).gamma(2.0, size=CHUNK + 50))
    bits = draw_bits(1000)
    made = Masses(weights, 1000 << bits, bits)
    every = made.all(len(weights))
    for start, size in ((0, CHUNK), (CHUNK, 50)):
        rows = np.random.default_rng(start).permutation(size)
        np.testing.assert_array_equal(made.of(start, rows), every[start + rows])


@laws
@given(some_weights, st.integers(1, 500))
def test_the_remainder_goes_to_a_row_whose_number_of_draws_it_cannot_change(weights, size):
    made = FlowWeights.from_weights(weights)
    found, draw = masses(weights, size)
    plain = np.rint(made.relative * (size * draw / made.total)).astype(np.int64)
    (changed,) = np.nonzero(found != plain)
    assert changed.size <= 1
    slack = np.minimum(plain % draw, -plain % draw)
    for row in changed:
        assert slack[row] == slack.max()
        # One that is whole already takes it only where all are.
        assert plain[row] // draw == found[row] // draw or not slack.any()


@pytest.mark.parametrize(
    ("draws", "bits"),
    [(1, 44), (2**18 - 1, 44), (2**18, 43), (2**20, 41), (2**30, 31), (MOST_DRAWS, 12)],
)
def test_a_draw_is_worth_as_many_units_as_64_bits_have_room_for(draws, bits):
    assert draw_bits(draws) == bits
    assert draws << bits < 2**62


def test_draws_are_where_the_running_sum_passes_a_whole_number():
    counts, carry = count_draws(np.array([3, 4, 0, 9]), 2, bits=2)
    # The running sum is 5, 9, 9, 18 and a draw is worth 4.
    assert counts.tolist() == [1, 1, 0, 2]
    assert carry == 2


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_an_epoch_of_a_million_draws_has_all_of_them(scheme):
    weights = np.random.default_rng(4).gamma(2.0, size=70_001)
    draws = (1 << 20) + 37
    counts = EpochPlan(weights, epoch_size=draws, seed=1, scheme=scheme).counts()
    assert counts.sum() == draws
    expected = draws * weights / weights.sum()
    if scheme == "systematic":
        assert (np.abs(counts - expected) < 1 + 1e-9).all()
    else:
        # Poisson, with sqrt(expected) < 15: ten standard deviations.
        assert (np.abs(counts - expected) < 10 * np.sqrt(expected) + 10).all()
