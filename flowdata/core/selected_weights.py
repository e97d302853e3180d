"""Weights of some rows, with what is known of these rows."""

import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import row_numbers
from flowdata.core.column import Source
from flowdata.core.made_weights import Made, NoWeightError, of_logarithms, of_weights

# Weights to this one are exact to the last bits down to 1e-154 of it.
_SMALLEST = 2.0**-512


class _Values(Protocol):
    def __getitem__(self, rows: Any) -> Any: ...


def of_rows(made: Made, values: _Values, rows: Any) -> Made:
    """Of some rows, in their order.

    Args:
        made: of all rows.
        values: the weight of each of them, as somebody has scaled it.
        rows: their numbers, in any order and more than once too, a slice, or a mask of all rows.

    Raises:
        IndexError: for numbers of no row.
        InvalidLossError: where none of them has a weight above 0.
        TypeError, ValueError: for what selects no rows.
    """
    numbers = row_numbers(rows, len(made.source))
    weights: NDArray[np.float64] = values[numbers]
    tau = made.temperature
    if weights.max() >= _SMALLEST:
        weights.flags.writeable = False
        chosen = of_weights(weights)
    else:
        chosen = _of_small(made, numbers)
    return replace(
        chosen,
        groups=None if made.groups is None else made.groups.select(numbers),
        shared=made.shared,
        losses=_taken(made.losses, numbers),
        lengths=_taken(made.lengths, numbers),
        how=made.how if tau is None else f"of rows at a temperature of {tau:.6g}",
    )


def _of_small(made: Made, numbers: NDArray[np.int64]) -> Made:
    """Of rows whose weights are too small for numbers, but not all of them 0."""
    logarithms = made.relative.logarithms()[numbers]
    top = float(logarithms.max())
    if not math.isfinite(top):
        raise NoWeightError(
            f"all {numbers.size:,} weights that are selected are 0: no row can be drawn"
        )
    return of_logarithms(logarithms - top, made.log_max + top, made.how)


def _taken(source: Source | None, numbers: NDArray[np.int64]) -> NDArray[Any] | None:
    if source is None:
        return None
    taken: NDArray[Any] = source[:][numbers]
    taken.flags.writeable = False
    return taken
