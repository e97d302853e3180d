"""TargetData: a target and its weights in one tensor, without what operations do to them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from flowdata.reweight.refusals import refuse_dispatch
from flowdata.reweight.torch_internals import subclasses_off


@dataclass(frozen=True, slots=True)
class Origin:
    """The batches that a target is cut or joined from."""

    name: str
    """What warnings call it."""
    reweight_ids: tuple[str, ...]
    """Of the `reweight` of each; "" for targets made by hand."""

    @staticmethod
    def joined(origins: "Iterable[Origin]") -> "Origin":
        """That of several targets together; each id once, however many are joined."""
        found = list(dict.fromkeys(origins))
        ids = dict.fromkeys(each for origin in found for each in origin.reweight_ids)
        return Origin(found[0].name, tuple(ids))


class TargetData(Tensor):
    """A tensor, the weights of its elements, and where it comes from.

    Rules take these apart and put them together again; `WeightedTarget`, the only class derived
    from it, asks the rules.
    """

    weights: Tensor
    """Shape of the target; on its device."""
    origin: Origin

    @classmethod
    def put_together(cls, target: Tensor, weights: Tensor, origin: Origin) -> Self:
        """A target of this class on the memory of ``target``.

        Args:
            target: shape (B, ...).
            weights: numbers of its shape, or of its leading dimensions.

        Raises:
            ValueError: for weights of another shape.
        """
        target, weights = plain(target), plain(weights)
        if target.shape[: weights.ndim] != weights.shape:
            raise ValueError(
                f"weights of shape {tuple(weights.shape)} do not fit a target of shape "
                f"{tuple(target.shape)}: they need its leading dimensions"
            )
        refuse_dispatch()
        # A target is no parameter: what is made of it is to need no gradient.
        made = target.detach().as_subclass(cls)
        trailing = (1,) * (target.ndim - weights.ndim)
        made.weights = weights.reshape(weights.shape + trailing).expand(target.shape)
        made.origin = origin
        return made


def plain(value: Any) -> Any:
    """The tensor without its weights, also in lists, tuples and dicts; anything else as it is."""
    if isinstance(value, TargetData):
        with subclasses_off():
            return value.as_subclass(Tensor)
    if not targets_in(value):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*map(plain, value))
    return type(value)(map(plain, value))


def targets_in(value: Any) -> list[TargetData]:
    """The weighted targets among arguments, in their order."""
    if isinstance(value, TargetData):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [target for item in value for target in targets_in(item)]
    return []
