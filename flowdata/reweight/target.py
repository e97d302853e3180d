"""WeightedTarget: a tensor that is the target, and carries the weights of its elements along."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowdata.errors import FlowDataError, warn

Function = Callable[..., Any]
LossHandler = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]

LOSSES: dict[Function, LossHandler] = {}
"""What is done where a loss is called with a WeightedTarget."""

RULES: dict[str, LossHandler] = {}
"""What other operations, by name, do to target and weights; those not here see the target alone."""


class UnweightedLossError(FlowDataError):
    """A gradient would flow through a target, but not through its weights."""


class WeightedTarget(Tensor):
    """A target of any dtype and shape, with one weight for each element.

    Operations that move, cast or reshape it do so with both. The losses of
    ``torch.nn.functional`` compute ``reduction="none"``, multiply, and reduce as asked: "mean"
    divides by what it divides by without weights. Everything else (comparisons, metrics, NumPy)
    sees a plain tensor.

    Weights are never lost in silence: an operation that would let a gradient flow past them
    raises, and a batch that was used with gradients on, but not by a loss, is warned of.

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
    ledger: "Ledger"

    @staticmethod
    def __new__(  # noqa: D102
        cls, target: Tensor, weights: Tensor, name: str = "a batch", ledger: "Ledger | None" = None
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
        made.ledger = Ledger(name) if ledger is None else ledger
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rule = LOSSES.get(func)
        if rule is None:
            name = getattr(func, "__name__", "")
            if name == "__get__":
                name = f".{func.__self__.__name__}"
            rule = RULES.get(name, _attribute if name.startswith(".") else unweighted)
        return rule(func, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuilt, (plain(self), self.weights, self.ledger.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightedTarget":
        copied = WeightedTarget(plain(self).clone(), self.weights.clone(), ledger=self.ledger)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightedTarget({plain(self)!r}, weights={self.weights!r})"


class Ledger:
    """Whether the weights of a batch came into a loss, known to all targets cut from it."""

    _warned = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.consumed = self.used = False
        self._training = torch.is_grad_enabled()

    def look(self) -> None:
        """Something saw the target without its weights."""
        # A custom autograd function sees it with gradients off, though it is for training.
        self.used = self.used or self._training or torch.is_grad_enabled()

    def __del__(self) -> None:
        if self.used and not self.consumed and not Ledger._warned:
            Ledger._warned = True
            with contextlib.suppress(ImportError, TypeError):
                warn(
                    f"the weights of {self.name} did not come into any loss: the target was used "
                    "in a way that flowdata cannot weight (NumPy, a custom autograd function, a "
                    "fused kernel?). Register the loss with flowdata.reweight.register_loss, or "
                    'use the explicit weights: reweight(..., entry="flow_weight")'
                )


def plain(value: Any) -> Any:
    """The tensor without its weights; anything else as it is."""
    if isinstance(value, WeightedTarget):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(Tensor)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(plain, value))
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


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
    for target in targets_in((args, kwargs)):
        target.ledger.look()
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
    refuse_gradient(func, result)
    return result


def refuse_gradient(func: Function, result: Any) -> None:
    """Make sure that no gradient flows past the weights.

    Raises:
        UnweightedLossError: naming the operation.
    """
    results = result if isinstance(result, list | tuple) else [result]
    if any(isinstance(item, Tensor) and item.requires_grad for item in results):
        name = getattr(func, "__name__", repr(func))
        raise UnweightedLossError(
            f"{name} mixes a weighted target with a tensor that needs a gradient, and flowdata "
            "does not know how to weight it. Use a loss of torch.nn.functional, teach it yours "
            "with flowdata.reweight.register_loss(function, handler), or take the explicit "
            'weights: reweight(..., entry="flow_weight")'
        )


def _attribute(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*plain(args), **kwargs)


def _rebuilt(target: Tensor, weights: Tensor, name: str) -> WeightedTarget:
    return WeightedTarget(target, weights, name)
