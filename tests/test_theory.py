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


@pytest.fixture(scope="module")
def linear():
    """x ~ N(0, S) with S = I + rho (e1 e2' + e2 e1'), e = e1, losses <e, x>^2."""
    covariance = np.eye(DIMENSIONS)
    covariance[0, 1] = covariance[1, 0] = RHO
    x = np.random.default_rng(2).standard_normal((SAMPLES, DIMENSIONS))
    x = x @ np.linalg.cholesky(covariance).T
    error = np.eye(DIMENSIONS)[0]
    return x, error, FlowWeights.from_losses((x @ error) ** 2)


def stall():
    """Q, by which the error shrinks in a step of gradient descent at step 1/2."""
    q = np.zeros((DIMENSIONS, DIMENSIONS))
    q[0, 0] = 1 - MU**2
    q[1, 1] = RHO**2 * (1 - MU**2)
    q[0, 1] = q[1, 0] = -RHO * MU**2
    return q


def test_mean_weight_and_effective_sample_size_are_those_of_the_paper(linear):
    _, _, weights = linear
    assert weights.mean == pytest.approx(MU, abs=0.015)
    assert weights.ess / SAMPLES == pytest.approx(ESS, abs=0.015)
    assert weights.temperature == pytest.approx(0.454936, abs=0.02)


def test_drawn_samples_have_second_moment_one_minus_q(linear):
    x, _, weights = linear
    drawn = x[EpochPlan(weights, seed=1)[:]]
    moment = drawn.T @ drawn / len(drawn)
    assert np.abs(moment - (np.eye(DIMENSIONS) - stall())).max() < 0.06


def test_plain_gradient_descent_on_drawn_samples_follows_the_closed_form(linear):
    x, error, weights = linear
    found, expected = error.copy(), error.copy()
    for epoch in range(10):
        drawn = x[EpochPlan(weights, seed=1, epoch=epoch)[:]]
        # Half the step on mean((<theta - theta_ft, x>)^2), whose gradient has a factor 2.
        found -= 0.5 * 2 * (drawn * (drawn @ found)[:, None]).mean(axis=0)
        expected = stall() @ expected
    assert np.abs(found - expected).max() < 0.015
    # The first direction has stalled, where unweighted descent would have gone on.
    assert found[0] > 0.1


def test_multinomial_draws_have_the_same_second_moment(linear):
    x, _, weights = linear
    drawn = x[EpochPlan(weights, seed=1, scheme="multinomial")[:]]
    moment = drawn.T @ drawn / len(drawn)
    assert np.abs(moment - (np.eye(DIMENSIONS) - stall())).max() < 0.06
