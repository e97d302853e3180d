import hashlib
import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowWeights, InvalidLossError

laws = settings(deadline=None, derandomize=True, max_examples=150)
TABLE = 65_536

# Weights up to 12 orders of magnitude apart, often zero, often equal.
some_weights = st.lists(
    st.one_of(
        st.just(0.0),
        st.sampled_from([1.0, 2.0, 0.5]),
        st.floats(-12, 0).map(lambda exponent: 10.0**exponent),
    ),
    min_size=1,
    max_size=60,
).filter(any)
seeds = st.integers(0, 2**63)
epochs = st.integers(0, 10_000)
draws = st.integers(1, 500)


def expected_counts(weights, size):
    """M p_i, exactly."""
    parts = [Fraction(weight) for weight in weights]
    return [size * part / sum(parts) for part in parts]


@laws
@given(some_weights, draws, seeds, epochs)
def test_each_row_is_drawn_floor_or_ceil_of_its_expected_count(weights, size, seed, epoch):
    counts = EpochPlan(weights, epoch_size=size, seed=seed, epoch=epoch).counts()
    assert counts.sum() == size
    for count, expected in zip(counts.tolist(), expected_counts(weights, size), strict=True):
        # Masses are rounded to 2^-44 of a draw or finer, so an expectation that is a rounding
        # error away from a whole number counts as that number.
        slack = Fraction(1, 2**40)
        assert math.floor(expected - slack) <= count <= math.ceil(expected + slack)
        if expected.denominator == 1:
            assert count == expected


@laws
@given(some_weights, draws, seeds)
def test_a_row_of_weight_zero_is_never_drawn(weights, size, seed):
    zeros = np.flatnonzero(np.array(weights) == 0)
    for scheme in ("systematic", "multinomial"):
        plan = EpochPlan(weights, epoch_size=size, seed=seed, scheme=scheme)
        assert not plan.counts()[zeros].any()


@laws
@given(some_weights, draws, seeds, st.floats(0, 1))
def test_alpha_draws_by_the_power_of_the_weight(weights, size, seed, alpha):
    array = np.array(weights)
    power = np.where(array > 0, array**alpha, 0.0)
    counts = EpochPlan(weights, epoch_size=size, seed=seed, alpha=alpha).counts()
    assert np.all(np.abs(counts - size * power / power.sum()) < 1 + 1e-6)


@laws
@given(some_weights, draws, seeds, epochs, st.sampled_from(["systematic", "multinomial"]))
def test_all_ways_to_read_a_plan_agree(weights, size, seed, epoch, scheme):
    plan = EpochPlan(weights, epoch_size=size, seed=seed, epoch=epoch, scheme=scheme)
    rows = plan[:]
    assert rows.dtype == np.int64
    assert len(plan) == len(rows) == size
    assert list(plan) == rows.tolist() == [plan[j] for j in range(size)]
    for part in (slice(2, -3), slice(None, None, -1), slice(1, None, 7), slice(5, 5)):
        assert np.array_equal(plan[part], rows[part])
    assert plan[-1] == rows[-1]
    grid = np.arange(size).reshape(1, size)
    assert np.array_equal(plan.rows(grid), rows[None])
    assert np.array_equal(plan.counts(), np.bincount(rows, minlength=len(weights)))
    for ranks in (1, 2, 3, 8):
        shares = np.full(size, -1)
        for rank in range(ranks):
            shares[rank::ranks] = plan[rank::ranks]
        assert np.array_equal(shares, rows)


def test_reading_in_parts_is_reading_at_once_for_large_plans():
    weights = np.random.default_rng(0).gamma(2.0, size=3 * TABLE + 17)
    rows = EpochPlan(weights, seed=4)[:]
    plan = EpochPlan(weights, seed=4)
    assert plan[100_000] == rows[100_000]
    assert np.array_equal(np.fromiter(plan, dtype=np.int64), rows)
    counts, expected = plan.counts(), len(weights) * weights / weights.sum()
    assert np.abs(counts - expected).max() < 1


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_a_plan_is_a_function_of_seed_epoch_and_weights_alone(scheme):
    weights = FlowWeights.from_losses(np.random.default_rng(1).gamma(2.0, size=500))
    first = EpochPlan(weights, seed=7, epoch=3, scheme=scheme)
    expected = first[:].tolist()
    again = EpochPlan(weights, seed=1, epoch=9, scheme=scheme)
    again[:]
    assert again.at_epoch(3, seed=7)[:].tolist() == expected
    assert pickle.loads(pickle.dumps(first))[:].tolist() == expected
    assert first.at_epoch(3) is first
    others = [
        EpochPlan(weights, seed=seed, epoch=epoch, scheme=scheme)[:].tolist()
        for seed, epoch in ((7, 4), (8, 3), (3, 7))
    ]
    assert all(other != expected for other in others)


@pytest.mark.slow
def test_another_process_draws_the_same():
    program = (
        "import numpy as np; from flowdata import EpochPlan; "
        "print(EpochPlan(np.arange(1.0, 100.0), seed=5, epoch=2)[:].tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    plan = EpochPlan(np.arange(1.0, 100.0), seed=5, epoch=2)
    assert found.stdout.strip() == str(plan[:].tolist())


def digest(rows):
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def test_draws_are_the_same_in_every_release():
    # A checkpoint of an older release must go on with the draws that were left.
    weights = np.arange(1.0, 7.0)
    assert EpochPlan(weights, seed=1, epoch=2, epoch_size=9)[:].tolist() == [
        4,
        2,
        4,
        0,
        1,
        5,
        4,
        5,
        3,
    ]
    multinomial = EpochPlan(weights, seed=1, epoch=2, epoch_size=9, scheme="multinomial")
    assert multinomial[:].tolist() == [2, 3, 1, 2, 2, 4, 5, 3, 2]
    large = 1.0 + np.arange(100_000) % 13
    assert digest(EpochPlan(large, seed=1, epoch=2)[:]) == "1747e40c7d772aed"
    assert digest(EpochPlan(large, seed=1, epoch=2, scheme="multinomial")[:]) == "1bfa7efc490f8ff3"


def test_epoch_sizes_are_what_they_are_called():
    weights = FlowWeights.from_losses(np.random.default_rng(1).gamma(2.0, size=1000))
    sizes = {
        "full": 1000,
        "ess": round(weights.ess),
        "distinct": int(weights.values.sum() / weights.values.max()),
        17: 17,
        np.int64(3000): 3000,
        0.25: 250,
        2.0: 2000,
    }
    for epoch_size, draws_expected in sizes.items():
        assert len(EpochPlan(weights, epoch_size=epoch_size)) == draws_expected


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_one_row_and_one_draw_work(scheme):
    assert EpochPlan([0.3], scheme=scheme)[:].tolist() == [0]
    assert EpochPlan([0.3], epoch_size=5, scheme=scheme)[:].tolist() == [0] * 5
    drawn = {EpochPlan([1.0, 2.0, 0.0], epoch_size=1, epoch=e, scheme=scheme)[0] for e in range(60)}
    assert drawn == {0, 1}


@pytest.mark.parametrize("draw", [5, -6, 10**12])
def test_a_draw_outside_the_epoch_is_an_index_error(draw):
    with pytest.raises(IndexError):
        EpochPlan([1.0, 2.0], epoch_size=5)[draw]


@pytest.mark.parametrize("number", [2**31, 2**63, 2**100])
def test_seeds_and_epochs_of_any_size_work(number):
    plan = EpochPlan([1.0, 2.0, 3.0], seed=number, epoch=number, epoch_size=600)
    assert plan.counts().tolist() == [100, 200, 300]
    assert plan[:].tolist() != EpochPlan([1.0, 2.0, 3.0], epoch_size=600)[:].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "random"}, "'random'"),
        ({"seed": -1}, "seed.*-1"),
        ({"seed": 1.5}, "seed.*1.5"),
        ({"seed": True}, "seed.*True"),
        ({"epoch": -2}, "epoch.*-2"),
        ({"epoch": None}, "epoch.*None"),
        ({"epoch_size": 0}, "0 draws"),
        ({"epoch_size": -3}, "-3"),
        ({"epoch_size": 0.01}, "0 draws"),
        ({"epoch_size": math.nan}, "nan"),
        ({"epoch_size": math.inf}, "inf"),
        ({"epoch_size": True}, "True"),
        ({"epoch_size": "half"}, "'half'"),
        ({"epoch_size": None}, "None"),
        ({"epoch_size": 2**60}, "epoch_size"),
        ({"alpha": -0.1}, "-0.1"),
        ({"alpha": 1.5}, "1.5"),
        ({"alpha": math.nan}, "nan"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_value(options, message):
    with pytest.raises(ValueError, match=message):
        EpochPlan([1.0, 2.0], **options)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([], "empty"),
        ([1.0, -1.0], "row 1: -1.0"),
        ([math.nan, 1.0], "row 0: nan"),
        ([1.0, math.inf], "row 1: inf"),
        ([0.0, 0.0], "all 2 weights are 0"),
    ],
)
def test_weights_that_cannot_be_drawn_by_are_refused(weights, message):
    with pytest.raises(InvalidLossError, match=message):
        EpochPlan(weights)


def test_weights_of_two_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        EpochPlan(np.ones((2, 3)))
