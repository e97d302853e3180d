"""Weights by any function of the losses, and products of weights."""

import copy
import pickle

import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowdata import (
    EpochPlan,
    FlowDataError,
    FlowDataWarning,
    FlowWeights,
    InvalidLossError,
    LossTable,
    MismatchError,
)

LAW = examples()
LOSSES = np.random.default_rng(5).exponential(size=40).astype(np.float32)
LOSS_ARRAYS = arrays(np.float64, st.integers(2, 50), elements=st.floats(2.0**-10, 2.0**10))
TABLE = LossTable.from_losses(LOSSES)

FUNCTIONS = {
    "a threshold": lambda losses, tau: losses <= tau,
    "stm": lambda losses, tau: losses <= np.log(2.5),
    "clipped": lambda losses, tau: np.exp(-np.clip(losses, *np.quantile(losses, [0.1, 0.9])) / tau),
    "inverse": lambda losses, tau: 1 / (1 + losses),
    "ranks": lambda losses, tau: losses.argsort().argsort(),
    "a list": lambda losses, tau: losses.tolist(),
    "a tensor": lambda losses, tau: torch.exp(-torch.from_numpy(losses)),
    "float32": lambda losses, tau: losses.astype(np.float32),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_weights_are_the_values_of_the_function(function):
    losses = LOSSES.astype(np.float64)
    tau = float(np.median(losses))
    expected = np.asarray(function(losses, tau), dtype=np.float64)
    for made in (
        FlowWeights.from_losses(LOSSES, function=function),
        TABLE.weights(function=function),
    ):
        np.testing.assert_allclose(made.values, expected, rtol=1e-14)
        given_weights = FlowWeights.from_weights(expected)
        assert made.relative.tolist() == given_weights.relative.tolist()
        assert made.fingerprint == given_weights.fingerprint
        assert made.temperature is None


@LAW
@given(LOSS_ARRAYS, st.sampled_from(["median", "mean", "quantile:0.3", 2.0]))
def test_flow_through_a_function_is_flow(losses, temperature):
    plain = FlowWeights.from_losses(losses, temperature=temperature)
    through = FlowWeights.from_losses(
        losses, temperature=temperature, function=lambda losses, tau: np.exp(-losses / tau)
    )
    np.testing.assert_allclose(through.values, plain.values, rtol=1e-12, atol=1e-300)
    assert through.ess == pytest.approx(plain.ess, rel=1e-12)


def test_a_function_gets_valid_losses_alone_and_the_others_have_weight_zero():
    seen = []

    def function(losses, tau):
        seen.append((losses.dtype, losses.tolist(), tau))
        losses[:] = 7.0
        return losses

    losses = np.array([np.nan, 0.5, -1.0, 1.5, np.inf], dtype=np.float32)
    weights = FlowWeights.from_losses(losses, on_invalid="drop", function=function)
    assert seen == [(np.float64, [0.5, 1.5], 1.0)]
    assert weights.values.tolist() == pytest.approx([0.0, 7.0, 0.0, 7.0, 0.0])
    with pytest.raises(InvalidLossError, match=r"3 of 5 losses.*row 0: nan"):
        FlowWeights.from_losses(losses, function=function)


def test_a_function_that_needs_no_temperature_takes_losses_whose_median_is_zero():
    losses = [0.0, 0.0, 0.0, 1.0]
    weights = FlowWeights.from_losses(losses, function=lambda losses, tau: losses <= tau)
    assert weights.values.tolist() == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda losses, tau: losses - 1.0, InvalidLossError, r"3 of 5 rows .*row 0: -0\.5.*>= 0"),
        (lambda losses, tau: 1 / (losses - 0.5), InvalidLossError, "row 0: inf"),
        (lambda losses, tau: np.full(5, np.nan), InvalidLossError, "5 of 5 rows"),
        (lambda losses, tau: losses > 9, InvalidLossError, "all 5 weights are 0"),
        (lambda losses, tau: losses[:4], ValueError, r"each of the 5 losses .*got shape \(4,\)"),
        (lambda losses, tau: losses.mean(), ValueError, r"got shape \(\)"),
        (lambda losses, tau: None, ValueError, "the weights that function gives must be numbers"),
        (lambda losses: losses, TypeError, "two arguments, the losses and the temperature"),
        ("median", TypeError, "'median'"),
    ],
)
def test_what_is_no_function_of_losses_or_gives_no_weights_is_refused(function, error, message):
    with pytest.raises(error, match=message):
        FlowWeights.from_losses([0.5, 2.0, 0.25, 0.75, 1.0], function=function)


def test_a_function_in_place_of_a_temperature_is_told_where_it_goes():
    with pytest.raises(ValueError, match="a function of the losses is function="):
        TABLE.weights(lambda losses, tau: losses)


def test_few_rows_that_make_up_all_draws_are_warned_of_with_a_function_too():
    losses = np.random.default_rng(0).random(1000)
    with pytest.warns(FlowDataWarning, match="effective sample size is 1.0") as all_:
        FlowWeights.from_losses(losses, function=lambda losses, tau: losses == losses.max())
    assert [warning.filename for warning in all_] == [__file__]


def test_a_normalisation_is_of_the_values_of_the_function():
    weights = TABLE.weights(function=FUNCTIONS["inverse"], normalize="mean")
    assert weights.values.mean() == pytest.approx(1.0)


# Products.


@LAW
@given(LOSS_ARRAYS, st.integers(0, 2**32), st.sampled_from([None, "mean", "max", "sum"]))
def test_a_product_has_the_products_of_the_values(losses, seed, normalize):
    random = np.random.default_rng(seed)
    factors = random.random(losses.size) * (random.random(losses.size) < 0.7)
    factors[0] = 0.5
    # Not so cold that a plain product underflows.
    plain = FlowWeights.from_losses(losses, temperature=1024.0)
    expected = plain.values * factors
    product = FlowWeights.from_losses(losses, temperature=1024.0, normalize=normalize).times(
        factors
    )
    divisor = 1.0 if normalize is None else getattr(np, normalize)(expected)
    np.testing.assert_allclose(product.values, expected / divisor, rtol=1e-12)
    assert ((product.values == 0) == (expected == 0)).all()
    again = FlowWeights.from_weights(factors).times(plain)
    np.testing.assert_allclose(again.values, expected, rtol=1e-12)


def test_products_at_a_low_temperature_lose_no_row():
    losses = np.random.default_rng(0).permutation(np.linspace(0.0, 5.0, 1001))
    with pytest.warns(FlowDataWarning, match="effective sample size"):
        cold = FlowWeights.from_losses(losses, temperature=1e-3)
    keep = losses >= 4.5
    assert cold.values[keep].max() == 0.0
    product = cold.times(keep)
    np.testing.assert_allclose(
        product.relative,
        np.where(keep, np.exp(-np.maximum(losses - 4.5, 0) / 1e-3), 0.0),
        rtol=1e-9,
    )
    assert (product.relative > 0).sum() == keep.sum()
    # Two that are too small together are not.
    small = FlowWeights.from_weights(np.full(1001, 1e-300))
    twice = small.times(small)
    assert twice.relative.tolist() == [1.0] * 1001
    assert twice.log_max == pytest.approx(2 * np.log(1e-300))
    assert EpochPlan(twice, seed=1).counts().tolist() == [1] * 1001


def test_a_mask_keeps_the_weights_of_the_rows_that_it_keeps():
    mask = LOSSES > 0.2
    for given_mask in (mask, mask.tolist(), torch.from_numpy(mask)):
        product = TABLE.weights().times(given_mask)
        np.testing.assert_allclose(product.values, TABLE.weights().values * mask, rtol=1e-13)
    assert (EpochPlan(TABLE.weights().times(mask)).counts()[~mask] == 0).all()


def test_a_product_may_be_multiplied_and_raised_and_is_pickled():
    weights = TABLE.weights().times(TABLE).times(LOSSES > 0.1)
    expected = TABLE.weights().values ** 2 * (LOSSES > 0.1)
    np.testing.assert_allclose(weights.values, expected, rtol=1e-12)
    for alpha in (0.0, 0.3, 1.0):
        powered = np.where(expected > 0, expected**alpha, 0.0)
        np.testing.assert_allclose(weights.power(alpha).values, powered, rtol=1e-12)
        np.testing.assert_allclose(
            weights.power(alpha).power(0.5).values,
            np.where(expected > 0, powered**0.5, 0),
            rtol=1e-12,
        )
    for other in (pickle.loads(pickle.dumps(weights)), copy.deepcopy(weights)):
        assert other.relative.tolist() == weights.relative.tolist()
        assert other.fingerprint == weights.fingerprint
        assert str(other.summary()) == str(weights.summary())
    assert len(pickle.dumps(weights)) < 2 * weights.relative.nbytes + 2000


def test_rows_without_a_valid_loss_have_weight_zero_in_a_product():
    losses = [np.nan, 0.5, -1.0, 1.5, np.inf]
    weights = FlowWeights.from_losses(losses, on_invalid="drop").times([1.0, 2.0, 3.0, 4.0, 5.0])
    expected = [0.0, 2 * np.exp(-0.5), 0.0, 4 * np.exp(-1.5), 0.0]
    np.testing.assert_allclose(weights.values, expected, rtol=1e-12)


def test_a_product_knows_losses_lengths_and_groups_of_what_it_is_made_of():
    labels = np.arange(40) % 2
    table = LossTable.from_losses(LOSSES, lengths=np.arange(1, 41))
    factors = FlowWeights.from_weights(np.ones(40))
    expected = table.weights().summary(groups=labels).groups
    for product in (table.weights().times(factors), factors.times(table)):
        for found, group in zip(product.summary(groups=labels).groups, expected, strict=True):
            assert vars(found) == pytest.approx(vars(group))
    grouped = table.weights(groups=labels, shares="equal").times(LOSSES > 0.1)
    assert grouped.groups.tolist() == labels.tolist()
    assert grouped.group_names == (0, 1)


def test_products_of_other_rows_or_that_leave_none_are_refused():
    with pytest.raises(MismatchError, match="40 weights, but 39"):
        TABLE.weights().times(np.ones(39))
    with pytest.raises(FlowDataError, match="no row can be drawn"):
        TABLE.weights().times(np.zeros(40))
    half = np.arange(40) < 20
    with pytest.raises(InvalidLossError, match="no one of 40 rows has a weight above 0 in both"):
        FlowWeights.from_weights(half).times(~half)
    with pytest.raises(InvalidLossError, match=r"row 3: -1\.0"):
        TABLE.weights().times(np.where(np.arange(40) == 3, -1.0, 1.0))


def test_a_product_has_the_same_bits_and_fingerprint_on_every_machine():
    weights = FlowWeights.from_losses(LOSSES).times(1.0 + np.arange(40.0))
    assert weights.fingerprint == "fda792689595614260cbebdcfc57b920"
    assert weights.fingerprint != FlowWeights.from_losses(LOSSES).fingerprint


def test_the_summary_says_how_weights_were_made():
    for weights, how in (
        (TABLE.weights(function=FUNCTIONS["inverse"]), "a function of the losses"),
        (TABLE.weights().times(TABLE), "a product of weights"),
        (FlowWeights.from_weights(LOSSES), "given weights"),
    ):
        assert f"temperature              {how}\n" in str(weights.summary())


def test_a_product_that_is_too_large_for_a_number_is_refused_unless_it_is_normalised():
    huge = FlowWeights.from_weights([1e308, 1.0])
    with pytest.raises(InvalidLossError, match=r"e\^1,418, too large"):
        huge.times(huge)
    normalised = FlowWeights.from_weights([1e308, 1.0], normalize="mean").times(huge)
    assert normalised.values.tolist() == [2.0, 0.0]


def test_weights_too_small_for_a_number_are_noted_and_drawn():
    weights = FlowWeights.from_losses([1.0, 1.0005, 3.0], temperature=1e-3)
    assert weights.mean == 0.0
    (note,) = weights.summary().notes
    assert 'normalize="mean"' in note
    assert EpochPlan(weights).counts().sum() == 3
