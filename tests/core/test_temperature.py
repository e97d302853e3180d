"""The temperature: a statistic of the losses or a number."""

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowdata import InvalidLossError
from flowdata.core.temperature import resolve_temperature

LAW = examples()
LOSSES = np.array([0.5, 4.0, 1.0, 3.0])


def positive_losses(dtype):
    width = np.dtype(dtype).itemsize * 8
    values = st.floats(2.0**-20, 2.0**20, width=width)
    return arrays(dtype, st.integers(1, 200), elements=values)


def test_the_median_of_an_odd_number_of_losses_is_the_middle_one():
    assert resolve_temperature(np.array([9.0, 1.0, 2.0]), "median") == 2.0


def test_the_median_of_an_even_number_of_losses_is_the_midpoint_of_the_two_in_the_middle():
    assert resolve_temperature(LOSSES, "median") == 2.0


def test_the_statistics_of_a_single_loss_are_that_loss():
    for name in ("median", "mean", "quantile:0.01", "quantile:0.99"):
        assert resolve_temperature(np.array([0.7]), name) == 0.7


@LAW
@given(st.one_of(positive_losses(np.float32), positive_losses(np.float64)))
def test_the_median_is_the_one_of_numpy(losses):
    exact = np.median(losses.astype(np.float64))
    assert resolve_temperature(losses, "median") == pytest.approx(exact, rel=1e-14)


@LAW
@given(positive_losses(np.float32))
def test_the_mean_is_taken_in_double_precision(losses):
    exact = np.mean(losses.astype(np.float64))
    assert resolve_temperature(losses, "mean") == pytest.approx(exact, rel=1e-12)


@LAW
@given(st.one_of(positive_losses(np.float32), positive_losses(np.float64)), st.floats(0.001, 0.999))
def test_a_quantile_is_the_linear_one_of_numpy_in_double_precision(losses, q):
    exact = np.quantile(losses.astype(np.float64), q)
    assert resolve_temperature(losses, f"quantile:{q}") == pytest.approx(exact, rel=1e-12)


def test_the_mean_of_many_single_precision_losses_does_not_drift():
    losses = np.full(3_000_000, 0.1, dtype=np.float32)
    assert resolve_temperature(losses, "mean") == pytest.approx(np.float32(0.1), rel=1e-12)


def test_taking_a_quantile_does_not_reorder_the_losses():
    losses = LOSSES.copy()
    resolve_temperature(losses, "quantile:0.3")
    assert losses.tolist() == LOSSES.tolist()


@pytest.mark.parametrize("number", [0.25, 3, np.float32(0.25), np.int64(3), 1e-300, 1e300])
def test_a_number_is_taken_as_it_is(number):
    assert resolve_temperature(LOSSES, number) == float(number)


def test_a_number_may_be_far_from_all_losses_even_if_these_are_zero():
    assert resolve_temperature(np.zeros(3), 2.0) == 2.0


@pytest.mark.parametrize("name", ["mode", "", "Median", "quantile", "quantile:", "median:0.3"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r'"median", "mean", "quantile:q" with 0 < q < 1') as error:
        resolve_temperature(LOSSES, name)
    assert repr(name) in str(error.value)


@pytest.mark.parametrize("q", ["0", "1", "-0.1", "1.5", "nan", "inf", "half"])
def test_a_quantile_outside_zero_and_one_is_refused(q):
    with pytest.raises(ValueError, match=f"got 'quantile:{q}'"):
        resolve_temperature(LOSSES, f"quantile:{q}")


@pytest.mark.parametrize("number", [0, 0.0, -1.0, float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_positive_and_finite_is_refused(number):
    with pytest.raises(ValueError, match=f"positive, finite number, got {number}"):
        resolve_temperature(LOSSES, number)


@pytest.mark.parametrize("other", [True, False, np.True_, None, [1.0], {}])
def test_what_is_no_number_is_no_temperature(other):
    with pytest.raises(ValueError, match="temperature must be"):
        resolve_temperature(LOSSES, other)


@pytest.mark.filterwarnings("ignore:overflow")
def test_a_mean_too_large_for_double_precision_is_no_temperature():
    with pytest.raises((InvalidLossError, ValueError), match="temperature"):
        resolve_temperature(np.full(3, 1.7e308), "mean")


def test_a_median_of_zero_is_explained_and_the_mean_is_offered():
    losses = np.array([0.0, 0.0, 0.0, 1.0])
    with pytest.raises(InvalidLossError, match="75% of the losses are 0") as error:
        resolve_temperature(losses, "median")
    assert "temperature='median' is 0" in str(error.value)
    assert 'pass temperature="mean"' in str(error.value)
    assert resolve_temperature(losses, "mean") == 0.25


def test_losses_that_are_all_zero_have_no_statistic_for_a_temperature():
    with pytest.raises(InvalidLossError, match="100% of the losses are 0"):
        resolve_temperature(np.zeros(4), "mean")
