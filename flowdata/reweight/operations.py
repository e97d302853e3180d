"""What operations do to a target and its weights: both are moved, cut and reshaped alike."""

from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.target import (
    RULES,
    Function,
    UnweightedLossError,
    WeightedTarget,
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
_CASTING = """
    to cpu cuda float double half bfloat16 long int short char byte bool type type_as
    requires_grad_ round floor ceil
""".split()
_ELEMENTWISE = """
    add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod neg
    negative abs absolute clamp clip clamp_min clamp_max pow square sqrt log log1p log2 exp expm1
    nan_to_num masked_fill where __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__
    __rtruediv__ __floordiv__ __mod__ __neg__ __pow__ one_hot
""".split()
_JOINING = "cat concat concatenate stack hstack vstack dstack column_stack row_stack".split()


def _wrapped(result: Any, weights: Any, targets: list[WeightedTarget]) -> Any:
    """Results with their weights, on one ledger."""
    if isinstance(result, Tensor):
        return WeightedTarget(result, weights, ledger=targets[0].ledger)
    if isinstance(result, list | tuple):
        pairs = zip(result, weights, strict=True)
        return type(result)(_wrapped(item, weight, targets) for item, weight in pairs)
    return result


def _reshaping(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, where the first argument is what is reshaped."""
    given = args[0] if args else kwargs.get("input")
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        # Weights of samples are spread over elements without memory, which no view can cut.
        weights = given.weights.contiguous()
        if args:
            weights = func(weights, *plain(args[1:]), **plain(kwargs))
        else:
            weights = func(**plain(kwargs) | {"input": weights})
    return _wrapped(result, weights, [given])


def _casting(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another dtype is that of the target alone, another device that of both."""
    given = args[0]
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        if not isinstance(result, Tensor):
            return result
        weights = given.weights.to(result.device)
    return _wrapped(result, weights, [given])


def _elementwise(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target has the weights of the old one, broadcast as it is."""
    targets = targets_in((args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
    refuse_gradient(func, result)
    weights = targets[0].weights
    if result.ndim > weights.ndim and func is torch.nn.functional.one_hot:
        weights = weights.unsqueeze(-1)
    shaped = [torch.broadcast_to(target.weights, result.shape) for target in targets[1:]]
    weights = torch.broadcast_to(weights, result.shape)
    if not all(torch.equal(weights, other) for other in shaped):
        name = getattr(func, "__name__", repr(func))
        raise UnweightedLossError(
            f"{name} mixes two targets of different weights; take one of them without weights, "
            "by flowdata.reweight.plain(target)"
        )
    return _wrapped(result, weights, targets)


def _joining(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What has no weights counts fully."""
    targets = targets_in((args, kwargs))
    name = "tensors" if "tensors" in kwargs else None
    parts = kwargs["tensors"] if name else args[0]
    weights = [
        part.weights
        if isinstance(part, WeightedTarget)
        else torch.ones(part.shape, dtype=targets[0].weights.dtype, device=part.device)
        for part in parts
    ]
    with torch._C.DisableTorchFunctionSubclass():
        result = func(*plain(args), **plain(kwargs))
        if name:
            joined = func(**plain(kwargs) | {"tensors": weights})
        else:
            joined = func(weights, *args[1:], **{k: v for k, v in kwargs.items() if k != "out"})
    refuse_gradient(func, result)
    return _wrapped(result, joined, targets)


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
    return _wrapped(result, weights, [given])


def _assigning(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements that are set bring their weights, if they have any, and leave them otherwise."""
    given, index, value = args
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        func(plain(given), plain(index), plain(value))
        if isinstance(value, WeightedTarget):
            given.weights = given.weights.clone()
            given.weights[plain(index)] = value.weights
    return None


def _in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target keeps its weights."""
    if not isinstance(args[0], WeightedTarget):
        return unweighted(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        func(*plain(args), **plain(kwargs))
    return args[0]


for _names, _rule in (
    (_RESHAPING, _reshaping),
    (_CASTING, _casting),
    (_ELEMENTWISE, _elementwise),
    (_JOINING, _joining),
    (["pad", "constant_pad_nd"], _padding),
    (["__setitem__"], _assigning),
    (["masked_fill_", "clamp_", "fill_", "add_", "sub_", "mul_", "div_", "copy_"], _in_place),
):
    RULES.update(dict.fromkeys(_names, _rule))
