"""What operations do to a target and its weights: both are moved, cut and reshaped alike."""

from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.ledger import Ledger
from flowdata.reweight.target import (
    ATTRIBUTE,
    IN_PLACE,
    RULES,
    Function,
    UnweightedLossError,
    WeightedTarget,
    name_of,
    plain,
    refuse_gradient,
    targets_in,
    unweighted,
)

_RESHAPING = """
    __getitem__ view reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze transpose
    swapaxes swapdims permute t movedim moveaxis adjoint expand expand_as repeat tile narrow select
    index_select masked_select take take_along_dim gather flip fliplr flipud roll rot90
    repeat_interleave split split_with_sizes chunk unbind tensor_split hsplit vsplit dsplit unfold
    diagonal broadcast_to atleast_1d atleast_2d atleast_3d slice_copy tril triu clone
    contiguous detach alias pin_memory share_memory_ .T .mT .H .mH .data .real
""".split()
_RESHAPING_IN_PLACE = """
    squeeze_ unsqueeze_ transpose_ swapaxes_ swapdims_ t_ detach_
""".split()
_CASTING = """
    to cpu cuda float double half bfloat16 long int short char byte bool type type_as
    requires_grad_ round floor ceil
""".split()
_ELEMENTWISE = """
    add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod neg
    negative abs absolute clamp clip clamp_min clamp_max pow square sqrt log log1p log2 exp expm1
    nan_to_num masked_fill index_fill where __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__
    __truediv__ __rtruediv__ __floordiv__ __mod__ __neg__ __pow__ one_hot
""".split()
_IN_PLACE = "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__".split()
_SETTING = "copy_ index_copy_ scatter_ masked_scatter_ index_put_ put_".split()
_REPLACING = "resize_ resize_as_ set_ as_strided_ .data=".split()
_JOINING = "cat concat concatenate stack hstack vstack dstack column_stack row_stack".split()


def _wrapped(result: Any, weights: Any, ledger: Ledger) -> Any:
    """Results with their weights, on one ledger."""
    if isinstance(result, Tensor):
        ledger.refuse_dispatch()
        return WeightedTarget(result, weights, ledger=ledger)
    if isinstance(result, list | tuple):
        pairs = zip(result, weights, strict=True)
        return type(result)(_wrapped(item, weight, ledger) for item, weight in pairs)
    return result


def _reshaping(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, where the first argument is what is reshaped."""
    names = [name for name in ("input", "tensor", "self") if name in kwargs]
    given = args[0] if args else kwargs[names[0]]
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    if any(isinstance(option, torch.dtype) for option in (*args, *kwargs.values())):
        return _reinterpreted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        # Weights of samples are spread over elements without memory, which no view can cut.
        weights = given.weights.contiguous()
        if args:
            weights = func(weights, *plain(args[1:]), **plain(kwargs))
        else:
            weights = func(**plain(kwargs) | {names[0]: weights})
    return _wrapped(result, weights, given.ledger)


def _reinterpreted(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view of another dtype has the weights as they are, if it has the elements."""
    given = args[0]
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
    if result.shape != given.shape:
        return unweighted(func, args, kwargs)
    return _wrapped(result, given.weights, given.ledger)


def _reshaping_in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, in the object that is there."""
    given = args[0]
    with torch._C.DisableTorchFunctionSubclass():
        func(*args, **kwargs)
        given.weights = func(given.weights.clone(), *args[1:], **kwargs)
    return given


def _casting(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another dtype is that of the target alone, another device that of both."""
    given = args[0] if args else kwargs["input"]
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        if not isinstance(result, Tensor):
            return result
        weights = given.weights
        if result.device != weights.device:
            later = bool(kwargs.get("non_blocking")) or any(option is True for option in args)
            weights = weights.contiguous().to(result.device, non_blocking=later)
    return _wrapped(result, weights, given.ledger)


def _elementwise(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target has the weights of the old one, broadcast as it is."""
    targets = targets_in((args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
    refuse_gradient(func, result)
    weights = [target.weights for target in targets]
    if func is torch.nn.functional.one_hot:
        weights = [weights[0].unsqueeze(-1)]
    return _wrapped(result, _agreed(func, weights, result.shape), targets[0].ledger)


def _agreed(func: Function, weights: list[Tensor], shape: torch.Size) -> Tensor:
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


def _joining(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What has no weights counts fully."""
    options = plain(kwargs)
    options.pop("out", None)
    parts = options.pop("tensors") if "tensors" in kwargs else args[0]
    parts = kwargs.get("tensors", parts)
    weights = _weights_of(parts)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        joined = func(weights, *args[1:], **options)
    refuse_gradient(func, result)
    return _wrapped(result, joined, _together(parts))


def _weights_of(parts: Any) -> list[Tensor]:
    kind = targets_in(list(parts))[0].weights.dtype
    return [
        part.weights
        if isinstance(part, WeightedTarget)
        else torch.ones(part.shape, dtype=kind, device=part.device)
        for part in parts
    ]


def _together(parts: Any) -> Ledger:
    ledgers = list({id(part.ledger): part.ledger for part in targets_in(list(parts))}.values())
    if len(ledgers) == 1:
        return ledgers[0]
    return Ledger(" with ".join(ledger.name for ledger in ledgers), ledgers[0].source, ledgers)


def _padding(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padding has weight 0."""
    given = args[0] if args else kwargs["input"]
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    rest = dict(kwargs)
    rest.pop("input", None)
    pad = args[1] if len(args) > 1 else rest.pop("pad")
    mode = args[2] if len(args) > 2 else rest.get("mode", "constant")
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        weights = torch.nn.functional.pad(given.weights, pad, mode=mode)
    return _wrapped(result, weights, given.ledger)


def _padding_sequences(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sequences joined with padding, which has weight 0."""
    parts = args[0]
    options = dict(zip(("batch_first", "padding_value", "padding_side"), args[1:], strict=False))
    options |= kwargs
    with torch._C.DisableTorchFunctionSubclass():
        result = func(plain(parts), **options)
        weights = func(_weights_of(parts), **options | {"padding_value": 0.0})
    return _wrapped(result, weights, _together(parts))


def _assigning(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements that are set bring their weights, if they have any, and leave them otherwise."""
    given, index, value = args
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    _refuse_gradients(func, args)
    with torch._C.DisableTorchFunctionSubclass():
        func(plain(given), plain(index), plain(value))
        if isinstance(value, WeightedTarget):
            given.weights = given.weights.clone()
            given.weights[plain(index)] = value.weights
    return None


def _setting(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same, where the last argument is the value."""
    given, *places, value = args
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    _refuse_gradients(func, args)
    with torch._C.DisableTorchFunctionSubclass():
        func(*plain(args), **plain(kwargs))
        if isinstance(value, WeightedTarget):
            given.weights = given.weights.clone()
            func(given.weights, *plain(places), value.weights, **plain(kwargs))
    return given


def _in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target keeps its weights."""
    given = args[0] if args else None
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    _refuse_gradients(func, args)
    _agreed(func, [target.weights for target in targets_in((args, kwargs))], given.shape)
    with torch._C.DisableTorchFunctionSubclass():
        func(*plain(args), **plain(kwargs))
    return given


def _refuse_gradients(func: Function, args: tuple[Any, ...]) -> None:
    refuse_gradient(func, [part for part in args[1:] if isinstance(part, Tensor)])


def _replacing(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Other memory has other elements, whose weights nobody knows."""
    if not isinstance(args[0], WeightedTarget):
        return unweighted(func, args, kwargs)
    raise UnweightedLossError(
        f"{name_of(func)} gives a weighted target other elements, which have no weights; make a "
        "new one, or take it without weights, by flowdata.reweight.plain(target)"
    )


def _attribute(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*(args if name_of(func) == "__set__" else plain(args)), **kwargs)


for _names, _rule in (
    (_RESHAPING, _reshaping),
    (_RESHAPING_IN_PLACE, _reshaping_in_place),
    (_CASTING, _casting),
    (_ELEMENTWISE, _elementwise),
    (_JOINING, _joining),
    (["pad", "constant_pad_nd"], _padding),
    (["pad_sequence"], _padding_sequences),
    (["__setitem__"], _assigning),
    (_SETTING, _setting),
    ([*_IN_PLACE, IN_PLACE], _in_place),
    (_REPLACING, _replacing),
    ([ATTRIBUTE], _attribute),
):
    RULES.update(dict.fromkeys(_names, _rule))
