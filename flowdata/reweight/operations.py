"""Operations that give a new tensor: target and weights are both moved, cut and reshaped alike.

A rule is called as ``rule(func, args, kwargs)`` in place of ``func(*args, **kwargs)``, an operation
in whose arguments there is a weighted target.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.refusals import UnweightedLossError, name_of, refuse_gradient, refuse_out
from flowdata.reweight.target_data import Origin, TargetData, plain, targets_in
from flowdata.reweight.torch_internals import subclasses_off

Function = Callable[..., Any]
Rule = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]


def call_plain(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on tensors without weights."""
    with subclasses_off():
        return func(*plain(args), **plain(kwargs))


def call_unweighted(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on tensors without weights, where nothing is trained by it.

    Raises:
        UnweightedLossError: when the result has a gradient.
    """
    result = call_plain(func, args, kwargs)
    refuse_gradient(func, result)
    return result


def call_on_object(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What is about the Python object rather than its elements, as its hash."""
    with subclasses_off():
        return func(*args, **kwargs)


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor that an operation is of."""
    if args:
        return args[0]
    return next((kwargs[name] for name in ("input", "tensor", "self") if name in kwargs), None)


def with_weights(given: TargetData, result: Any, weights: Any) -> Any:
    """What came of a target, with what came of its weights; also of lists and tuples."""
    if isinstance(result, Tensor):
        return type(given).put_together(result, weights, given.origin)
    if isinstance(result, list | tuple):
        pairs = zip(result, weights, strict=True)
        return type(result)(with_weights(given, item, weight) for item, weight in pairs)
    return result


def reshape(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, where the first argument is what is reshaped."""
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        return call_unweighted(func, args, kwargs)
    refuse_out(func, kwargs)
    if any(isinstance(option, torch.dtype) for option in (*args, *kwargs.values())):
        return _view_as_dtype(func, args, kwargs)
    result = call_plain(func, args, kwargs)
    with subclasses_off():
        # Weights of samples are spread over elements without memory, which no view can cut.
        weights = given.weights.contiguous()
        if args:
            weights = func(weights, *plain(args[1:]), **plain(kwargs))
        else:
            named = {name: weights for name, value in kwargs.items() if value is given}
            weights = func(**plain(kwargs) | named)
    return with_weights(given, result, weights)


def _view_as_dtype(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``view(dtype)`` has the weights as they are, if it has as many elements."""
    given = args[0]
    result = call_plain(func, args, kwargs)
    if result.shape != given.shape:
        return call_unweighted(func, args, kwargs)
    return with_weights(given, result, given.weights)


def cast(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another dtype is that of the target alone, another device that of both."""
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        return call_unweighted(func, args, kwargs)
    refuse_out(func, kwargs)
    result = call_plain(func, args, kwargs)
    if not isinstance(result, Tensor):
        return result
    weights = given.weights
    if result.device != weights.device:
        # `to(device, dtype, non_blocking)`: its only argument by position that may be True and
        # matters here. `copy=True` by position copies in a while, too, which is safe.
        later = bool(kwargs.get("non_blocking")) or any(option is True for option in args)
        weights = weights.contiguous().to(result.device, non_blocking=later)
    return with_weights(given, result, weights)


def take_shape(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What only takes the target's shape, as ``predicted.view_as(target)``, gets no weights."""
    given = first_argument(args, kwargs)
    rule = reshape if isinstance(given, TargetData) else call_plain
    return rule(func, args, kwargs)


def take_dtype(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Nor does what takes its dtype or device, as ``predicted.type_as(target)``."""
    given = first_argument(args, kwargs)
    rule = cast if isinstance(given, TargetData) else call_plain
    return rule(func, args, kwargs)


def compute_elements(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target has the weights of the old one, broadcast as it is.

    Raises:
        UnweightedLossError: for two targets of different weights, or a result with a gradient.
    """
    refuse_out(func, kwargs)
    targets = targets_in((args, kwargs))
    result = call_plain(func, args, kwargs)
    if not isinstance(result, Tensor):
        return call_unweighted(func, args, kwargs)
    refuse_gradient(func, result)
    weights = [target.weights for target in targets]
    if func is torch.nn.functional.one_hot:
        weights = [weights[0].unsqueeze(-1)]
    return with_weights(targets[0], result, agreed_weights(func, weights, result.shape))


def agreed_weights(func: Function, weights: list[Tensor], shape: torch.Size) -> Tensor:
    """Weights of that shape, which all targets in an operation must have.

    Raises:
        UnweightedLossError: when they differ.
    """
    first, *others = (torch.broadcast_to(part, shape) for part in weights)
    if not all(torch.equal(first, other) for other in others):
        raise UnweightedLossError(
            f"{name_of(func)} mixes two targets of different weights; take one of them without "
            "weights, by flowdata.reweight.plain(target)"
        )
    return first


def join(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Targets that are joined keep their weights; what has none counts fully."""
    # `default_collate` joins into shared memory, `out=`, which is of the target alone.
    options = {name: value for name, value in kwargs.items() if name not in ("out", "tensors")}
    parts = kwargs["tensors"] if "tensors" in kwargs else args[0]
    result = call_plain(func, args, kwargs)
    with subclasses_off():
        weights = func(_weights_of(parts), *args[1:], **options)
    refuse_gradient(func, result)
    return _joined(parts, result, weights)


def _weights_of(parts: Any) -> list[Tensor]:
    kind = targets_in(list(parts))[0].weights.dtype
    return [
        part.weights
        if isinstance(part, TargetData)
        else torch.ones(part.shape, dtype=kind, device=part.device)
        for part in parts
    ]


def _joined(parts: Any, result: Tensor, weights: Tensor) -> TargetData:
    targets = targets_in(list(parts))
    origin = Origin.joined(target.origin for target in targets)
    return type(targets[0]).put_together(result, weights, origin)


def pad(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padding has weight 0."""
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        return call_unweighted(func, args, kwargs)
    rest = dict(kwargs)
    rest.pop("input", None)
    widths = args[1] if len(args) > 1 else rest.pop("pad")
    mode = args[2] if len(args) > 2 else rest.get("mode", "constant")
    result = call_plain(func, args, kwargs)
    with subclasses_off():
        weights = torch.nn.functional.pad(given.weights, widths, mode=mode)
    return with_weights(given, result, weights)


def pad_sequences(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sequences joined with padding, which has weight 0."""
    names = ("sequences", "batch_first", "padding_value", "padding_side")
    options = dict(zip(names, args, strict=False)) | kwargs
    parts = options.pop("sequences")
    with subclasses_off():
        result = func(plain(parts), **options)
        weights = func(_weights_of(parts), **options | {"padding_value": 0.0})
    return _joined(parts, result, weights)


def record_stream(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The memory of target and weights is in use on a CUDA stream."""
    given, *streams = args
    with subclasses_off():
        func(plain(given), *streams, **kwargs)
        func(given.weights, *streams, **kwargs)


def use_attribute(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attributes are read from the plain target, and set on the target itself."""
    setting = getattr(func, "__name__", "") == "__set__"
    with subclasses_off():
        return func(*(args if setting else plain(args)), **kwargs)
