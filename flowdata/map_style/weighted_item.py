"""WeightedItem: an item of a data set with the weight of its loss, as `reweight` makes them."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WeightedItem:
    """An item with its weight: a number, or those of its tokens."""

    item: Any
    weight: Any
    name: Any
    """Its row, or its key in a stream."""
