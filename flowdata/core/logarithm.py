"""The natural logarithm with the same bits on every machine."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 14
_ROOT_HALF = 0.7071067811865476
# ln 2 in two parts; the first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
_COEFFICIENTS = [2.0 / (2 * power + 1) for power in range(12)]


def log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x of finite numbers >= 0, of shape (n,); -inf for 0. Right to 3 units in the last
    place.

    As `exponential.exp`, in steps that IEEE 754 defines to the bit: ``np.log`` takes other
    instructions on other processors.

    >>> log(np.array([1.0, 0.0, 2.0])).tolist()
    [0.0, -inf, 0.6931471805599453]
    """
    found = np.empty(x.size, dtype=np.float64)
    for start in range(0, x.size, _CHUNK):
        found[start : start + _CHUNK] = _log(x[start : start + _CHUNK])
    return found


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    fraction, exponent = np.frexp(x)
    # To between the roots of 1/2 and of 2, where ln is nearest to 0.
    small = fraction < _ROOT_HALF
    fraction[small] *= 2.0
    power = (exponent - small).astype(np.float64)
    # ln f = 2 artanh s = 2 (s + s^3 / 3 + s^5 / 5 + ...) with |s| < 0.172.
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    series = np.full_like(s, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        series *= square
        series += coefficient
    series *= s
    series += power * _LN2_LOW
    series += power * _LN2_HIGH
    series[x == 0.0] = -np.inf
    return series
