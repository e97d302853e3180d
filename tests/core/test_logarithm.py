"""The logarithm with the same bits on every machine."""

import hashlib
import math

import numpy as np

from flowdata.core.logarithm import log

RANDOM = np.random.default_rng(0)
NEAR_ONE = 1.0 + np.arange(-50, 50) * 2.0**-52
VALUES = np.concatenate(
    [np.exp2(RANDOM.uniform(-1074, 1023.9, 40_000)), RANDOM.uniform(0.5, 2.0, 40_000), NEAR_ONE]
)


def test_it_is_within_three_units_in_the_last_place():
    expected = np.array([math.log(value) for value in VALUES.tolist()])
    assert (np.abs(log(VALUES) - expected) <= 3 * np.spacing(np.abs(expected))).all()


def test_zero_gives_minus_infinity_one_gives_zero_and_the_smallest_number_its_own():
    assert log(np.array([0.0, 1.0, 0.0])).tolist() == [-np.inf, 0.0, -np.inf]
    assert log(np.array([5e-324]))[0] == math.log(5e-324)
    assert log(np.zeros(0)).size == 0


def test_its_bits_are_the_same_on_every_machine():
    values = log(np.arange(1, 100_001) * 0.00703)
    assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()[:16] == "4cf180e2f3874b53"


def test_what_it_is_given_stays_as_it_was():
    given = VALUES.copy()
    log(given)
    assert (given == VALUES).all()
