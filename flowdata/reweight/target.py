"""WeightedTarget: a tensor that is the target, and carries the weights of its elements along."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from flowdata.errors import FlowDataError
from flowdata.reweight.ledger import Joined, Ledger

Function = Callable[..., Any]
Rule = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]

LOSSES: dict[Function, Rule] = {}
"""What is done where a loss is called with a WeightedTarget."""

RULES: dict[str, Rule] = {}
"""What other operations, by name, do to target and weights; those not here see the target alone."""

ARRIVALS: list[Callable[[], None]] = []
"""What is called for each new batch."""

ATTRIBUTE = "an attribute"
IN_PLACE = "an operation in place"


class UnweightedLossError(FlowDataError):
    """A gradient would flow through a target, but not through its weights."""


class WeightedTarget(Tensor):
    """A target of any dtype and shape, with one weight for each element.

    Operations that move, cast or reshape it do so with both. The losses of
    ``torch.nn.functional`` compute ``reduction="none"``, multiply, and reduce as asked: "mean"
    divides by what it divides by without weights. Everything else (comparisons, metrics, NumPy)
    sees a plain tensor.

    An operation that would let a gradient flow past the weights raises; a batch that is gone
    without its weights, though an optimizer took steps, is warned of. One-hot constructions
    (``scatter``, ``torch.eye(classes)[target]``) carry weights, ``class_weights[target]`` does not.
    ``reduction="none"`` gives weighted losses, which refuse what is not linear in them (focal
    loss, hard examples). ``torch.compile`` leaves the operations to eager mode, and compiles what
    is around them.

    What is not seen, so neither raises nor warns: a term of the loss that is made of a copy
    (``target.numpy()``, ``target == classes``) beside a weighted one; a function of the reduced
    loss; two data sets in one step, of which one is weighted; after weighted steps, fewer than
    fifty in a row without; steps that are not of a torch.optim.Optimizer, after no look at the
    target; batches that are kept, until the process ends.

    Args:
        target: the target, shape (B, ...).
        weights: numbers of the target's shape, or of its leading dimensions.
        name: what warnings call it.

    Raises:
        ValueError: for weights of another shape.

    >>> target = WeightedTarget(torch.tensor([0, 1]), torch.tensor([1.0, 0.5]))
    >>> logits = torch.zeros(2, 2, requires_grad=True)
    >>> round(torch.nn.functional.cross_entropy(logits, target, reduction="sum").item(), 4)
    1.0397
    """

    weights: Tensor
    """Shape of the target; on its device."""
    ledger: Ledger | Joined
    peers: "list[weakref.ref[WeightedTarget]]"
    """It and the targets that may see its memory."""

    @staticmethod
    def __new__(  # noqa: D102
        cls,
        target: Tensor,
        weights: Tensor,
        name: str = "a batch",
        ledger: Ledger | Joined | None = None,
    ) -> "WeightedTarget":
        target, weights = plain(target), plain(weights)
        if target.shape[: weights.ndim] != weights.shape:
            raise ValueError(
                f"weights of shape {tuple(weights.shape)} do not fit a target of shape "
                f"{tuple(target.shape)}: they need its leading dimensions"
            )
        made = Tensor._make_subclass(cls, target)
        trailing = (1,) * (target.ndim - weights.ndim)
        made.weights = weights.reshape(weights.shape + trailing).expand(target.shape)
        made.ledger = opened(name) if ledger is None else ledger
        made.peers = [weakref.ref(made)]
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _ruled(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (plain(self), self.weights, self.ledger.name, self.ledger.source)

    def __copy__(self) -> "WeightedTarget":
        return WeightedTarget(plain(self), self.weights, ledger=self.ledger)

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightedTarget":
        copied = WeightedTarget(plain(self).clone(), self.weights.clone(), ledger=self.ledger)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightedTarget({plain(self)!r}, weights={self.weights!r})"


# The compiler would trace the rules themselves, and lose its way in them.
@_disable_dynamo
def _ruled(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rule = LOSSES.get(func)
    if rule is None:
        name = operation(func)
        rule = RULES.get(name)
        if rule is None:
            rule = RULES.get(_kind(name), unweighted)
    return rule(func, args, kwargs)


def operation(func: Any) -> str:
    """The name by which rules know an operation; of attributes with a dot before."""
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        return f".{func.__self__.__name__}" + ("=" if name == "__set__" else "")
    return str(name)


def _kind(name: str) -> str:
    if name.startswith("."):
        return ATTRIBUTE
    return IN_PLACE if name.endswith("_") and not name.endswith("__") else ""


def plain(value: Any) -> Any:
    """The tensor without its weights, also in lists, tuples and dicts; anything else as it is."""
    if isinstance(value, WeightedTarget):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if not targets_in(value):
        return value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "_fields"):
        return type(value)(*map(plain, value))
    return type(value)(map(plain, value))


def targets_in(value: Any) -> list[WeightedTarget]:
    """The weighted targets among arguments, in their order."""
    if isinstance(value, WeightedTarget):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [target for item in value for target in targets_in(item)]
    return []


def unweighted(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call with the plain target.

    Raises:
        UnweightedLossError: when the result has a gradient.
    """
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
    refuse_gradient(func, result)
    for target in targets_in((args, kwargs)):
        target.ledger.look()
    return result


def refuse_gradient(func: Function, result: Any) -> None:
    """Make sure that no gradient flows past the weights.

    Raises:
        UnweightedLossError: naming the operation.
    """
    results = result if isinstance(result, list | tuple) else [result]
    if any(isinstance(item, Tensor) and item.requires_grad for item in results):
        raise UnweightedLossError(
            f"{name_of(func)} mixes a weighted target with a tensor that needs a gradient, and "
            "flowdata does not know how to weight it. In a loss: use one of torch.nn.functional, "
            "teach it yours with flowdata.register_loss(function, handler), or take the explicit "
            'weights: reweight(..., entry="flow_weight") and flowdata.weighted_mean. In a metric: '
            "give it predicted.detach(). As an input of the model: "
            "flowdata.reweight.plain(target)"
        )


def name_of(func: Function) -> str:
    """What errors call an operation."""
    return str(getattr(func, "__name__", repr(func)))


def _rebuilt(target: Tensor, weights: Tensor, name: str, source: str) -> WeightedTarget:
    return WeightedTarget(target, weights, ledger=opened(name, source))


def opened(name: str, source: str = "") -> Ledger:
    """The ledger of a new batch."""
    for arrival in ARRIVALS:
        arrival()
    return Ledger(name, source)
