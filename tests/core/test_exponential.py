import hashlib

import numpy as np
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata.core.exponential import exp


@examples(300)
@given(st.lists(st.floats(-708, 0), min_size=1, max_size=50))
def test_it_is_within_two_units_in_the_last_place_of_numpys(values):
    x = np.array(values)
    assert np.all(np.abs(exp(x.copy()) - np.exp(x)) <= 2 * np.spacing(np.exp(x)))


def test_it_never_rises_where_its_argument_falls_by_more_than_rounding():
    x = -np.geomspace(1e-3, 700, 200_000)
    assert np.all(np.diff(exp(x.copy())) < 0)
    assert exp(np.array([0.0, -0.0])).tolist() == [1.0, 1.0]


def test_what_would_underflow_and_what_is_no_number_is_zero():
    x = np.array([-708.1, -1e300, -np.inf, np.nan])
    assert exp(x).tolist() == [0.0] * 4


def test_its_bits_are_the_same_on_every_machine():
    values = exp(np.arange(100_000) * -0.00703)
    assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()[:16] == "e83ca5c7362bc1cc"
