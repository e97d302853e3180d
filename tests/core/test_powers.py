"""Powers of weights: what is drawn by, and what is left to the loss."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowdata import FlowWeights

LAW = examples()
LOSSES = np.random.default_rng(5).exponential(size=40)
LOSS_ARRAYS = arrays(np.float64, st.integers(2, 50), elements=st.floats(2.0**-10, 2.0**10))
ALPHAS = st.floats(0.0, 1.0)
# np.average, which the law is compared with, has no digits left for subnormal weights.
PLAIN = st.floats(0.0, 1e6, allow_subnormal=False)


def make(losses=LOSSES, **options):
    return FlowWeights.from_losses(losses, **options)


POWERS = """
import numpy as np
from flowdata import FlowWeights

values = np.random.default_rng(0).random(10_000)
print(FlowWeights.from_losses(values).power(0.37).fingerprint)
print(FlowWeights.from_weights(values).power(0.37).fingerprint)
"""


@pytest.mark.slow
def test_fingerprints_of_powers_do_not_depend_on_the_vector_instructions_of_the_machine():
    x86 = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 FMA3 AVX512F AVX512_SKX"
    without = os.environ | {"NPY_DISABLE_CPU_FEATURES": x86, "PYTHONWARNINGS": "ignore"}
    prints = [
        subprocess.check_output([sys.executable, "-c", POWERS], env=env, text=True)
        for env in (os.environ, without)
    ]
    assert prints[0] == prints[1]


@LAW
@given(LOSS_ARRAYS, ALPHAS, st.integers(0, 2**32), st.sampled_from(["median", "mean", 3.0]))
def test_draw_and_residual_together_give_the_weighted_mean_for_every_alpha(
    losses, alpha, seed, temperature
):
    gradients = np.random.default_rng(seed).normal(size=losses.size)
    weights = make(losses, temperature=temperature)
    plain = np.exp((losses.min() - losses) / weights.temperature)
    drawn = weights.power(alpha)
    parts = drawn.relative / drawn.total * weights.residual(alpha)
    np.testing.assert_allclose(parts, plain / plain.sum(), rtol=1e-9, atol=1e-300)
    wanted = np.average(gradients, weights=plain)
    assert np.sum(parts * gradients) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


WITH_ZEROS = st.lists(st.just(0.0) | PLAIN, min_size=1, max_size=40).filter(any)


def mean_over(chances, residual, gradients):
    return np.sum(chances * residual * gradients)


@LAW
@given(WITH_ZEROS, st.just(0.0) | ALPHAS, st.integers(0, 2**32))
def test_draw_and_residual_give_the_weighted_mean_over_all_rows_some_of_weight_zero(
    values, alpha, seed
):
    weights = FlowWeights.from_weights(values)
    gradients = np.random.default_rng(seed).normal(size=len(values))
    wanted = pytest.approx(np.average(gradients, weights=values), rel=1e-9, abs=1e-12)
    drawn = weights.power(alpha).values / weights.power(alpha).values.sum()
    assert not drawn[weights.values == 0].any()
    assert mean_over(drawn, weights.residual_of_draws(alpha), gradients) == wanted
    # Pure reweighting is a pass over all rows, each once.
    chances = drawn if alpha else np.full(len(values), 1 / len(values))
    assert mean_over(chances, weights.residual(alpha), gradients) == wanted


@LAW
@given(WITH_ZEROS, st.integers(1, 30), ALPHAS)
def test_rows_of_weight_zero_change_nothing_for_the_others_but_their_share(values, zeros, alpha):
    weights = FlowWeights.from_weights(values)
    more = FlowWeights.from_weights(values + [0.0] * zeros)
    n, all_rows = len(values), len(values) + zeros
    # Each row keeps its weight in mean(w * loss) over all rows, and more rows are drawn from.
    kept = weights.residual(alpha) * weights.mean
    chances = 1 / n if not alpha else weights.power(alpha).relative / weights.power(alpha).total
    with_more = more.residual(alpha)[:n] * more.mean
    of_more = (
        1 / all_rows if not alpha else more.power(alpha).relative[:n] / more.power(alpha).total
    )
    np.testing.assert_allclose(of_more * with_more * all_rows, chances * kept * n, rtol=1e-9)


@pytest.mark.parametrize("weights", [[1, 1, 0, 0], [0, 0, 0, 3], [0.5, 0, 2, 0]])
def test_pure_reweighting_has_mean_one_over_all_rows(weights):
    assert FlowWeights.from_weights(weights).residual(0.0).mean() == pytest.approx(1.0)


def test_pure_reweighting_has_mean_one_over_all_rows_those_without_a_loss_too():
    weights = make([1.0, np.nan, 2.0, np.inf], on_invalid="drop")
    assert weights.residual(0.0).mean() == pytest.approx(1.0)
    assert weights.residual(0.0)[[1, 3]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_a_power_keeps_dropped_rows_at_exactly_zero(alpha):
    weights = make([1.0, np.nan, 2.0, -1.0, np.inf], on_invalid="drop")
    drawn = weights.power(alpha)
    assert drawn.values[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(drawn.values[[0, 2]], weights.values[[0, 2]] ** alpha, rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_powers_and_residuals_of_weights_with_zeros_raise_no_numerical_warning(alpha):
    for weights in (FlowWeights.from_weights([0.0, 1.0]), make([1, np.nan], on_invalid="drop")):
        assert np.isfinite(weights.power(alpha).values).all()
        assert np.isfinite(weights.residual(alpha)).all()


def test_a_power_equals_a_higher_temperature():
    np.testing.assert_allclose(
        make().power(0.25).values, make(temperature=4 * np.median(LOSSES)).values, rtol=1e-12
    )


def test_a_power_revives_weights_that_underflowed_but_were_not_dropped():
    weights = make([0.0, 1000.0], temperature=1.0)
    assert weights.values[1] == 0.0
    assert weights.power(0.5).values[1] == pytest.approx(math.exp(-500.0))


def test_the_residual_is_one_for_pure_resampling_and_has_mean_one_for_pure_reweighting():
    np.testing.assert_allclose(make().residual(1.0), 1.0, rtol=1e-14)
    np.testing.assert_allclose(make().residual(0.0), make(normalize="mean").values, rtol=1e-12)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_alpha_outside_zero_and_one_is_refused(alpha):
    for method in (make().power, make().residual):
        with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
            method(alpha)


def test_the_fingerprint_of_given_weights_changes_with_the_exponent():
    weights = FlowWeights.from_weights([1.0, 4.0, 9.0])
    powers = [weights, *(weights.power(alpha) for alpha in (0.0, 0.25, 0.5))]
    assert len({power.fingerprint for power in powers}) == 4
    assert weights.power(0.5).fingerprint == weights.power(0.5).fingerprint
    # The exponents of powers of powers are multiplied.
    assert weights.power(0.5).power(0.5).fingerprint == weights.power(0.25).fingerprint
