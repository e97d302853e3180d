"""The exponential function with the same bits on every machine."""

import math

import numpy as np
from numpy.typing import NDArray

_LOWEST = -708.0
_LOG2_E = 1.4426950408889634
# ln 2 in two parts; the first has 32 bits, so that its product with an exponent is exact.
_LN2_HIGH = 0.6931471803691238
_LN2_LOW = 1.9082149292705877e-10
_COEFFICIENTS = [1.0 / math.factorial(degree) for degree in range(14)]


def exp(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^x for x <= 0, in place; 0 below -708 and for NaN. Right to 2 units in the last place.

    ``np.exp`` takes other instructions on other processors, and its last bit differs between
    them. Where ranks on unlike machines must draw the same, it will not do. Here every step is
    one addition, multiplication or rounding, which IEEE 754 defines to the bit.

    >>> exp(np.array([0.0, -1.0, -1000.0])).tolist()
    [1.0, 0.36787944117144233, 0.0]
    """
    vanishing = ~(x >= _LOWEST)
    np.fmax(x, _LOWEST, out=x)
    exponent = np.rint(x * _LOG2_E)
    x -= exponent * _LN2_HIGH
    x -= exponent * _LN2_LOW
    power = np.full_like(x, _COEFFICIENTS[-1])
    for coefficient in reversed(_COEFFICIENTS[:-1]):
        power *= x
        power += coefficient
    # A float64 with an empty fraction is a power of two.
    exponent += 1023.0
    np.multiply(power, (exponent.astype(np.int64) << 52).view(np.float64), out=x)
    x[vanishing] = 0.0
    return x
