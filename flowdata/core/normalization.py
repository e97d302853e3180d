"""What the values of weights are divided by."""

import sys
from typing import Literal, TypeAlias

from flowdata.errors import InvalidLossError

Normalization: TypeAlias = Literal["mean", "max", "sum"] | None


def require_known(normalize: Normalization) -> Normalization:
    """The option itself.

    Raises:
        ValueError: for another one.
    """
    if normalize not in (None, "mean", "max", "sum"):
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    return normalize


def require_numbers(largest: float, log_max: float) -> None:
    """Make sure that weights which are written down do not all become 0, or lose their digits.

    Args:
        largest: of the weights.
        log_max: its logarithm.

    Raises:
        InvalidLossError: where even that is too small for a number.
    """
    if largest < sys.float_info.min:
        raise InvalidLossError(
            f"the largest weight is e^{log_max:,.0f}, too small for a number: give "
            'normalize="mean" or a higher temperature'
        )
