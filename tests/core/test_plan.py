import hashlib
import math
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import example, given
from hypothesis import strategies as st

from flowdata import EpochPlan, FlowWeights, InvalidLossError

laws = examples(150)
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
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=60).filter(any), st.integers(1, 5), seeds
)
def test_a_row_whose_expected_count_is_whole_is_drawn_exactly_that_often(counts, times, seed):
    # A third of an integer is rounded, and so is the sum.
    plan = EpochPlan(np.array(counts) / 3, epoch_size=sum(counts) * times, seed=seed)
    assert plan.counts().tolist() == [count * times for count in counts]


@laws
@given(some_weights, seeds, epochs)
def test_a_distinct_epoch_has_no_row_twice(weights, seed, epoch):
    plan = EpochPlan(weights, epoch_size="distinct", seed=seed, epoch=epoch)
    assert plan.counts().max() == 1


@laws
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
@example([9, 8, 4, 6])
def test_a_distinct_epoch_has_the_whole_part_of_sum_over_max_draws(weights):
    assert len(EpochPlan(weights, epoch_size="distinct")) == sum(weights) // max(weights)


def assert_drawn_by(expected, plan):
    counts = plan.counts()
    assert np.all(np.floor(expected - 1e-9) <= counts)
    assert np.all(counts <= np.ceil(expected + 1e-9))
    assert counts.sum() == len(plan)


@laws
@given(some_weights, draws, seeds, st.floats(0, 1))
def test_alpha_draws_by_the_power_of_the_weight(weights, size, seed, alpha):
    array = np.array(weights)
    power = np.where(array > 0, array**alpha, 0.0)
    plan = EpochPlan(weights, epoch_size=size, seed=seed, alpha=alpha)
    assert_drawn_by(size * power / power.sum(), plan)


@laws
@given(st.lists(st.floats(0.1, 20), min_size=1, max_size=60), draws, seeds, st.floats(0, 1))
def test_alpha_draws_by_the_power_of_the_weight_of_a_loss(losses, size, seed, alpha):
    weights = FlowWeights.from_losses([*losses, np.nan], temperature=1.0, on_invalid="drop")
    power = np.append(np.exp(-alpha * np.array(losses)), 0.0)
    plan = EpochPlan(weights, epoch_size=size, seed=seed, alpha=alpha)
    assert_drawn_by(size * power / power.sum(), plan)


@pytest.mark.parametrize("scheme", ["systematic", "multinomial"])
def test_alpha_zero_draws_all_rows_of_positive_weight_alike(scheme):
    plan = EpochPlan([1e-9, 0.0, 5.0, 1.0], alpha=0.0, epoch_size=3000, scheme=scheme)
    counts = plan.counts()
    assert counts[1] == 0
    assert np.abs(counts[[0, 2, 3]] - 1000).max() <= (0 if scheme == "systematic" else 160)


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
    assert plan[np.int64(-2)] == rows[-2]
    for part in (slice(TABLE, None, 8), slice(None, None, -3), slice(-5, 10**9)):
        assert np.array_equal(plan[part], rows[part])
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
    plan = EpochPlan(np.arange(1.0, 100.0), seed=5, epoch=2)
    expected = plan[:].tolist()
    program = (
        "import pickle, sys; import numpy as np; from flowdata import EpochPlan; "
        "print(EpochPlan(np.arange(1.0, 100.0), seed=5, epoch=2)[:].tolist()); "
        "print(pickle.load(sys.stdin.buffer)[:].tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(plan),
        capture_output=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.decode().splitlines() == [str(expected)] * 2


def test_a_pickled_plan_does_not_carry_its_draws():
    # It goes to each worker of a DataLoader.
    plan = EpochPlan([1.0, 2.0], epoch_size=100_000)
    plan[:]
    assert len(pickle.dumps(plan)) < 10_000


def digest(rows):
    return hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()[:16]


def test_draws_are_the_same_in_every_release():
    # A checkpoint of an older release must go on with the draws that were left.
    weights = np.arange(1.0, 7.0)
    systematic = EpochPlan(weights, seed=1, epoch=2, epoch_size=9)
    assert systematic[:].tolist() == [4, 2, 4, 0, 1, 5, 4, 5, 3]
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


def test_a_draw_that_is_not_an_int_is_refused():
    with pytest.raises(TypeError):
        EpochPlan([1.0, 2.0])[1.0]


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
        ({"epoch": 2.0}, "epoch.*2.0"),
        ({"epoch": False}, "epoch.*False"),
        ({"scheme": None}, "None"),
        ({"epoch_size": 0}, "0 draws"),
        ({"epoch_size": -3}, "-3"),
        ({"epoch_size": 0.01}, "0 draws"),
        ({"epoch_size": math.nan}, "nan"),
        ({"epoch_size": math.inf}, "inf"),
        ({"epoch_size": -math.inf}, "-inf"),
        ({"epoch_size": -0.5}, "-0.5"),
        ({"epoch_size": 1e308}, "1e.308"),
        ({"epoch_size": True}, "True"),
        ({"epoch_size": [3]}, "3"),
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


@pytest.mark.parametrize("number", [-1, True, 1.0, None])
def test_another_epoch_is_checked_like_the_first(number):
    with pytest.raises(ValueError, match=rf"epoch.*{number}"):
        EpochPlan([1.0, 2.0], epoch=1).at_epoch(number)


@pytest.mark.parametrize("number", [-1, True, 1.0])
def test_another_seed_is_checked_like_the_first(number):
    with pytest.raises(ValueError, match=rf"seed.*{number}"):
        EpochPlan([1.0, 2.0], seed=1).at_epoch(0, seed=number)


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


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((2, 3)), r"shape \(2, 3\)"),
        (3.0, r"shape \(\)"),
        (["a", "b"], "numbers, got dtype <U1"),
    ],
)
def test_weights_that_are_not_a_row_of_numbers_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        EpochPlan(weights)


def test_a_copy_or_a_pickle_does_not_hold_what_was_computed():
    plan = EpochPlan(np.ones(100_000))
    fresh = len(pickle.dumps(plan))
    plan.counts()
    for made in (plan, plan.released(), plan.at_epoch(1)):
        assert len(pickle.dumps(made)) < fresh + 1000
