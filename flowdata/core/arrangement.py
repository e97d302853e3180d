"""Arrangements: what stands next to what in an epoch, one option of every plan."""

from typing import TypeAlias

from flowdata.core.by_length import ByLength
from flowdata.core.strata import Strata

Arrangement: TypeAlias = Strata | ByLength


def resolve(arrange: Arrangement | None, strata: Strata | None) -> Arrangement | None:
    """The one arrangement that is meant, where ``strata`` is another name for ``arrange``.

    Raises:
        ValueError: where both are given.
        TypeError: for what is no arrangement.
    """
    if arrange is not None and strata is not None:
        raise ValueError("strata= is another name for arrange=: give one of them")
    if not (strata is None or isinstance(strata, Strata)):
        raise TypeError(
            f"strata must be flowdata.Strata(groups, batch_size=...), got {type(strata).__name__}"
        )
    if not (arrange is None or isinstance(arrange, Arrangement)):
        raise TypeError(
            "arrange must be flowdata.Strata(groups, batch_size=...) or flowdata.ByLength(lengths, "
            f"batch_size=...), got {type(arrange).__name__}"
        )
    return strata if arrange is None else arrange
