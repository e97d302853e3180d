"""The paper's linear model (section 7), with the weights and the draws of flowdata."""

import numpy as np
import pytest

from flowdata import EpochPlan, FlowWeights

SAMPLES = 20_000
DIMENSIONS = 5
RHO = 0.5
# mean w and ESS / n at the median temperature, for any rho.
MU = 0.43048
ESS = 0.5799
# theta* - theta_ft, of length 1.
ERROR = np.eye(DIMENSIONS)[0]


def samples(seed):
    """x ~ N(0, S) with S = I + rho (e1 e2' + e2 e1')."""
    covariance = np.eye(DIMENSIONS)
    covariance[0, 1] = covariance[1, 0] = RHO
    x = np.random.default_rng(seed).standard_normal((SAMPLES, DIMENSIONS))
    return x @ np.linalg.cholesky(covariance).T


def descended(error, drawn):
    """theta - theta_ft after a step of 1/2 on the mean of <theta - theta_ft, x>^2.

    The gradient of the mean is 2 E[x x'] error, so the expected step is (I - Q) error.
    """
    return error - 0.5 * 2 * (drawn * (drawn @ error)[:, None]).mean(axis=0)


@pytest.fixture(scope="module")
def linear():
    """Samples, theta* - theta_ft, and the weights of the losses <theta* - theta_ft, x>^2."""
    x = samples(2)
    return x, ERROR, FlowWeights.from_losses((x @ ERROR) ** 2)


def stall():
    """Q, by which the error shrinks in a step of gradient descent at step 1/2."""
    q = np.zeros((DIMENSIONS, DIMENSIONS))
    q[0, 0] = 1 - MU**2
    q[1, 1] = RHO**2 * (1 - MU**2)
    q[0, 1] = q[1, 0] = -RHO * MU**2
    return q


def test_mean_weight_and_effective_sample_size_are_those_of_the_paper(linear):
    # Over 40 data sets no error was above 0.004: false alarms < 1e-9.
    _, _, weights = linear
    assert weights.mean == pytest.approx(MU, abs=0.015)
    assert weights.ess / SAMPLES == pytest.approx(ESS, abs=0.015)
    assert weights.temperature == pytest.approx(0.454936, abs=0.02)


def test_drawn_samples_have_second_moment_one_minus_q(linear):
    # Over 40 data sets the largest error was 0.020 with standard deviation 0.006.
    x, _, weights = linear
    drawn = x[EpochPlan(weights, seed=1)[:]]
    moment = drawn.T @ drawn / len(drawn)
    assert np.abs(moment - (np.eye(DIMENSIONS) - stall())).max() < 0.06


def test_plain_gradient_descent_on_drawn_samples_follows_the_closed_form(linear):
    x, error, weights = linear
    found, expected = error.copy(), error.copy()
    for epoch in range(10):
        drawn = x[EpochPlan(weights, seed=1, epoch=epoch)[:]]
        found, expected = descended(found, drawn), stall() @ expected
    # The noise is that of the 20,000 samples, not of the draws: over 40 data sets the error was
    # 0.007 on average and 0.017 at most. The test below takes new samples for each step.
    assert np.linalg.norm(found - expected) < 0.015
    # The first direction has stalled, where unweighted descent would have gone on.
    assert found[0] > 0.1


def test_descent_with_new_samples_for_each_step_follows_the_closed_form():
    # Over 60 seeds the error was 0.002 with standard deviation 0.001: false alarms < 1e-9.
    found, expected = ERROR, ERROR
    for step, seed in enumerate(np.random.SeedSequence(3).spawn(10)):
        x = samples(seed)
        weights = FlowWeights.from_losses((x @ ERROR) ** 2)
        found = descended(found, x[EpochPlan(weights, seed=1, epoch=step)[:]])
        expected = stall() @ expected
    assert np.linalg.norm(found - expected) < 0.015


def test_multinomial_draws_have_the_same_second_moment(linear):
    x, _, weights = linear
    drawn = x[EpochPlan(weights, seed=1, scheme="multinomial")[:]]
    moment = drawn.T @ drawn / len(drawn)
    assert np.abs(moment - (np.eye(DIMENSIONS) - stall())).max() < 0.06
