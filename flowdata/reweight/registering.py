"""Losses that users teach WeightedTarget, beside those of torch."""

import inspect
import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from flowdata.reweight.operations import Function
from flowdata.reweight.refusals import UnweightedLossError, name_of
from flowdata.reweight.rules import LOSS_RULES
from flowdata.reweight.target_data import plain, targets_in
from flowdata.reweight.unused_weights import MONITOR

_OPERATORS = (type(torch.ops.aten.mse_loss), type(torch.ops.aten.mse_loss.default))
"""The classes of ``torch.ops``' functions and of their overloads, which have no public names."""

_weighable: "weakref.WeakSet[Function]" = weakref.WeakSet()


def register_loss(function: Function, handler: Callable[..., Any]) -> None:
    """Teach WeightedTarget a loss of yours.

    Where ``function`` is called with a WeightedTarget, ``handler`` is called instead: with the
    same arguments, but the plain target, and ``weights=``, a tensor of the target's shape. It
    returns the loss. The function must ask for it, as torch's own do
    (``torch.overrides.handle_torch_function``), or be wrapped by `weighable`.

    A fused linear cross-entropy kernel never makes the losses of single tokens. Its handler has
    to take the unfused way, as `flowdata.reweight.unfused_linear_cross_entropy` does for Liger's.

    Raises:
        TypeError: for a function that would never ask.
        UnweightedLossError: in a call with two weighted targets.

    >>> import torch
    >>> from flowdata.reweight import WeightedTarget
    >>> def squared(predicted, target):
    ...     return (predicted - target).square().mean()
    >>> squared = weighable(squared)
    >>> register_loss(squared, lambda predicted, target, *, weights: (
    ...     (predicted - target).square() * weights).mean())
    >>> target = WeightedTarget(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.5]))
    >>> squared(torch.zeros(2), target).item()
    1.0
    """

    if not _asks(function):
        raise TypeError(
            f"{name_of(function)} does not ask WeightedTarget what to do, so its handler would "
            "never be called: register what weighable(function) returns, and call that; of a "
            "module its forward, module.forward = weighable(module.forward)"
        )

    def handle(_: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        targets = targets_in((args, kwargs))
        if len(targets) != 1:
            raise UnweightedLossError(
                f"{name_of(function)} got {len(targets)} weighted targets, and a handler has the "
                "weights of one: take the others without, by flowdata.reweight.plain(target)"
            )
        result = handler(*plain(args), **plain(kwargs), weights=targets[0].weights)
        MONITOR.watch_gradient(result, targets[0].origin)
        return result

    LOSS_RULES[function] = handle


def weighable(function: Function) -> Function:
    """Let a handler take over where the function is called with a weighted target.

    The handler is the one that `register_loss` gives to the function that this returns; until
    then, and with plain targets, that does what ``function`` does.
    """

    @wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
        if targets_in((args, kwargs)) and asking in LOSS_RULES:
            return LOSS_RULES[asking](asking, args, kwargs)
        return function(*args, **kwargs)

    _weighable.add(asking)
    return asking


def _asks(function: Function) -> bool:
    """Whether a call reaches the handler: torch's own in C++ do, as do those that say so."""
    if function in _weighable or isinstance(function, _OPERATORS):
        return True
    code = getattr(function, "__code__", None)
    asks = code is None or "handle_torch_function" in code.co_names
    return asks and inspect.isroutine(function)
