#!/usr/bin/env python
"""The linear theory of the paper (section 7) against what flowdata draws and weights."""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Machine, Table, Target, canvas, number
from numpy.typing import NDArray
from publishing import command_line, publish

from flowdata import FlowSampler, FlowWeights, LossTable

Array = NDArray[np.float64]

DIMENSIONS = 5
RHO = 0.9
STEPS = 10
MEDIAN_TEMPERATURE = 0.454936
MEDIAN_MU = 0.43048

HELP = """\
Linear regression of which the pre-trained and the fine-tuned solution are known: samples are drawn
by FlowSampler, or weighted by FlowWeights, and gradient descent is compared with the closed forms.
"""

ABOUT = """\
x ~ N(0, S), S = I + rho (e1 e2' + e2 e1'), rho = 0.9, in 5 dimensions; y = <theta_ft, x>;
theta* - theta_ft = e1. Losses are those of theta*, the temperature is their median. An epoch is one
step of gradient descent on all of its draws, with step 1/2, without weights in the loss; or on all
samples with weights, with step 1 / (2 mean w). Sigma = I.
"""


@dataclass(frozen=True)
class Theory:
    """The closed forms for one beta in (0, 1]; |e| = 1."""

    beta: float
    rho: float = RHO

    @property
    def temperature(self) -> float:
        """Tau that belongs to beta."""
        square = self.rho**2
        return 2 * self.beta * (1 - square) / (1 - self.beta**2 * square)

    @property
    def mu(self) -> float:
        """The mean weight."""
        return float(np.sqrt(self.temperature / (self.temperature + 2)))

    @property
    def ess(self) -> float:
        """Effective sample size over n: E[w]^2 / E[w^2], as w^2 has half the temperature."""
        half = self.temperature / 2
        return self.mu**2 / float(np.sqrt(half / (half + 2)))

    @property
    def q(self) -> Array:
        """What a step multiplies theta - theta_ft by."""
        made = np.zeros((DIMENSIONS, DIMENSIONS))
        made[0, 0] = 1 - self.mu**2
        made[1, 1] = self.rho**2 * (1 - self.mu**2)
        made[0, 1] = made[1, 0] = -self.rho * self.mu**2
        return made

    @property
    def eigenvalues(self) -> tuple[float, float]:
        """Those of Q that are not 0, the stalled one first."""
        square = self.rho**2
        return (
            (1 + self.beta * square) / (1 + self.beta),
            square * (1 - self.beta) / (1 - self.beta * square),
        )

    def error(self, steps: int) -> Array:
        """theta_K - theta_ft."""
        slow, fast = self.eigenvalues
        tilt = self.beta * self.rho
        stalled, other = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
        stalled[:2], other[:2] = (1, -tilt), (tilt**2, tilt)
        made: Array = (slow**steps * stalled + fast**steps * other) / (1 + tilt**2)
        return made

    @classmethod
    def at_median(cls) -> "Theory":
        """The beta of which the temperature is the median of the losses."""
        low, high = 1e-9, 1.0
        for _ in range(200):
            middle = (low + high) / 2
            if cls(middle).temperature < MEDIAN_TEMPERATURE:
                low = middle
            else:
                high = middle
        return cls(low)


def main() -> None:
    """Measure, compare, write."""
    options = parser().parse_args()
    machine = Machine.here()
    measured = measure(options.samples, options.seed)
    publish(
        options.output,
        "theory",
        ABOUT,
        tables(measured, options.samples),
        {"measured": {name: np.asarray(value).tolist() for name, value in measured.items()}},
        partial(draw, measured),
        machine=machine,
        goals=targets(measured),
    )


# What is measured.


def measure(samples: int, seed: int) -> dict[str, Any]:
    """Weights, moments and trajectories of real draws."""
    x = inputs(samples, seed)
    start = np.eye(DIMENSIONS)[0]
    table = LossTable.from_losses((x @ start) ** 2)
    weights = table.weights()
    drawn = x[np.fromiter(FlowSampler(weights, seed=seed), dtype=np.int64, count=samples)]
    theory = Theory.at_median()
    return {
        "temperature": weights.temperature,
        "mean weight": weights.mean,
        "ess": weights.ess / samples,
        "weighted moment": (x * weights.values[:, None]).T @ x / samples,
        "drawn moment": drawn.T @ drawn / samples,
        "resampled": resampled(x, start, weights, seed),
        "reweighted": reweighted(x, start, weights),
        "unweighted": reweighted(x, start, None),
        "closed form": np.array([theory.error(step) for step in range(STEPS + 1)]),
        "matrix power": np.array(
            [np.linalg.matrix_power(theory.q, step) @ start for step in range(STEPS + 1)]
        ),
    }


def inputs(samples: int, seed: int) -> Array:
    """Samples of N(0, S)."""
    covariance = np.eye(DIMENSIONS)
    covariance[0, 1] = covariance[1, 0] = RHO
    noise = np.random.default_rng(seed).standard_normal((samples, DIMENSIONS))
    made: Array = noise @ np.linalg.cholesky(covariance).T
    return made


def resampled(x: Array, start: Array, weights: FlowWeights, seed: int) -> Array:
    """theta_K - theta_ft of plain gradient descent on what FlowSampler draws."""
    sampler = FlowSampler(weights, seed=seed)
    errors = [start]
    for _ in range(STEPS):
        drawn = x[np.fromiter(sampler, dtype=np.int64, count=len(sampler))]
        gradient = 2 * drawn.T @ (drawn @ errors[-1]) / len(drawn)
        errors.append(errors[-1] - gradient / 2)
    return np.array(errors)


def reweighted(x: Array, start: Array, weights: FlowWeights | None) -> Array:
    """theta_K - theta_ft of gradient descent on the weighted loss, or the plain one."""
    values = np.ones(len(x)) if weights is None else weights.values
    moment = (x * values[:, None]).T @ x / len(x)
    errors = [start]
    for _ in range(STEPS):
        errors.append(errors[-1] - moment @ errors[-1] / values.mean())
    return np.array(errors)


def total_error(errors: Array) -> Array:
    """err1 + err2 of theta - theta_ft of shape (..., d), Sigma = I."""
    start = np.eye(DIMENSIONS)[0]
    covariance = np.eye(DIMENSIONS)
    covariance[0, 1] = covariance[1, 0] = RHO
    old = ((errors - start) ** 2).sum(axis=-1)
    made: Array = old + np.einsum("...i,ij,...j->...", errors, covariance, errors)
    return made


# What becomes of it.


def targets(measured: dict[str, Any]) -> list[Target]:
    """Distances from the closed forms."""
    theory = Theory.at_median()
    identity = np.eye(DIMENSIONS)

    def off(name: str, exact: float) -> float:
        return abs(float(measured[name]) / exact - 1)

    def apart(first: Any, second: Any) -> float:
        return float(np.abs(np.asarray(first) - np.asarray(second)).max())

    slow, fast = np.sort(np.linalg.eigvalsh(identity - measured["drawn moment"]))[[-1, -2]]
    totals = total_error(measured["resampled"])
    numeric = np.sort(np.linalg.eigvalsh(theory.q))[[-1, -2]]
    return [
        Target("closed form of theta_K / powers of Q", 1e-10, closed_apart(measured)),
        Target("eigenvalues of Q / closed form", 1e-10, apart(numeric, theory.eigenvalues)),
        Target("temperature, off by", 0.01, off("temperature", MEDIAN_TEMPERATURE)),
        Target("mean weight, off by", 0.01, off("mean weight", MEDIAN_MU)),
        Target("ESS / n, off by", 0.01, off("ess", theory.ess)),
        Target(
            "E[w x x'] / mu (I - Q), largest difference",
            0.01,
            apart(measured["weighted moment"], theory.mu * (identity - theory.q)),
        ),
        Target(
            "E[x x'] of draws / I - Q, largest difference",
            0.01,
            apart(measured["drawn moment"], identity - theory.q),
        ),
        Target("slow eigenvalue of draws, off by", 0.01, abs(slow / theory.eigenvalues[0] - 1)),
        Target("fast eigenvalue of draws, apart", 0.01, abs(fast - theory.eigenvalues[1])),
        Target(
            "resampled trajectory / closed form, largest difference",
            0.01,
            apart(measured["resampled"], measured["closed form"]),
        ),
        Target(
            "reweighted trajectory / closed form, largest difference",
            0.01,
            apart(measured["reweighted"], measured["closed form"]),
        ),
        Target("total error at K = 3 / 0.374, apart", 0.005, abs(float(totals[3]) - 0.374)),
        Target("total error at K = 10 / 0.5365, apart", 0.02, abs(float(totals[10]) - 0.5365)),
    ]


def closed_apart(measured: dict[str, Any]) -> float:
    """Largest difference between the two ways to write theta_K."""
    return float(np.abs(measured["closed form"] - measured["matrix power"]).max())


def tables(measured: dict[str, Any], samples: int) -> list[Table]:
    """The results as tables."""
    theory = Theory.at_median()
    made = [
        Table(
            f"{samples:,} samples at the median temperature",
            ["", "measured", "theory"],
            [
                ["temperature", number(measured["temperature"]), number(MEDIAN_TEMPERATURE)],
                ["mean weight", number(measured["mean weight"]), number(MEDIAN_MU)],
                ["ESS / n", number(measured["ess"]), number(theory.ess)],
            ],
        )
    ]
    names = ("resampled", "reweighted", "closed form", "unweighted")
    totals = {name: total_error(measured[name]) for name in names}
    rows = [
        [str(step), *(f"{totals[name][step]:.4f}" for name in names)] for step in range(STEPS + 1)
    ]
    note = (
        "Total error, old and new together. Unweighted descent at step 1/2 oscillates on its way "
        "to the fine-tuned solution, whose total error is 1, as is that of the pre-trained one; "
        "their best average has 0.5."
    )
    made.append(Table("Total error after K steps", ["K", *names], rows, note))
    return made


def draw(measured: dict[str, Any], path: Path) -> None:
    """Trajectories, and the total error over beta."""
    with canvas(path, rows=1, columns=2) as (_, (left, right)):
        for name, style in (("closed form", "k-"), ("resampled", "o"), ("reweighted", "x")):
            errors = measured[name]
            left.plot(errors[:, 0], errors[:, 1], style, label=name, markerfacecolor="none")
        left.plot(*measured["unweighted"][:, :2].T, ".:", color="0.6", label="unweighted")
        left.set(title="theta - theta_ft, step by step", xlabel="along e1", ylabel="along e2")
        left.legend()
        left.grid(True)
        betas = np.linspace(0.01, 1, 100)
        for steps in (1, 3, 10, 30):
            errors = np.array([Theory(beta).error(steps) for beta in betas])
            right.plot(betas, total_error(errors), label=f"FLOW, K = {steps}")
        right.axhline(1, color="0.4", linestyle="--", label="fine-tuned; pre-trained")
        right.axhline(0.5, color="0.4", linestyle=":", label="best average of both")
        right.axvline(Theory.at_median().beta, color="0.8", linewidth=6, zorder=0)
        right.set(title="Total error", xlabel="beta (grey: median temperature)", ylim=(0, None))
        right.legend(fontsize=8)
        right.grid(True)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--samples", type=int, default=1_000_000, help="default 1,000,000")
    made.add_argument("--seed", type=int, default=0)
    return made


if __name__ == "__main__":
    main()
