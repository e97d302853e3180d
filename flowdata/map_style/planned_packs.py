"""The plan of packs that is made of what a user gives."""

from typing import Any

from numpy.typing import ArrayLike

from flowdata.core.lengths import HasLengths
from flowdata.core.pack_plan import PackPlan, TooLong
from flowdata.core.plan import EpochPlan
from flowdata.core.weights import FlowWeights, HasWeights


def plan_packs(
    weights: FlowWeights | HasWeights | ArrayLike,
    lengths: HasLengths | ArrayLike | None,
    max_length: int | None,
    *,
    batch_size: int,
    too_long: TooLong,
    **options: Any,
) -> PackPlan:
    """The packs of epoch 0.

    Args:
        weights: see `EpochPlan`.
        lengths: default those of ``weights``, where these are made of a table that has them.
        max_length, batch_size, too_long: see `PackPlan`.
        options: of `EpochPlan`.

    Raises:
        TypeError: where lengths or ``max_length`` are not given.
    """
    if lengths is None and not isinstance(weights, HasLengths):
        raise TypeError(
            "packs need lengths, the tokens of each row: give lengths=, n whole numbers or a "
            f"LossTable that has them; the weights, {type(weights).__name__}, have none"
        )
    if max_length is None:
        raise TypeError("max_length= is needed: the tokens that a pack has room for")
    known: Any = weights if lengths is None else lengths
    draws = EpochPlan(weights, **options)
    return PackPlan(draws, known, max_length, batch_size=batch_size, too_long=too_long)
