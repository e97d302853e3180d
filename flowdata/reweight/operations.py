"""What operations do to a target and its weights: both are moved, cut and reshaped alike."""

from typing import Any, cast

import torch
from torch import Tensor

from flowdata.reweight.ledger import Joined, Ledger
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

RESHAPING = """
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
CASTING = """
    to cpu cuda float double half bfloat16 long int short char byte bool type type_as
    requires_grad_ round floor ceil
""".split()
_ELEMENTWISE = """
    add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod neg
    negative abs absolute clamp clip clamp_min clamp_max pow square sqrt log log1p log2 exp expm1
    sigmoid tanh nan_to_num masked_fill index_fill where __add__ __radd__ __sub__ __rsub__ __mul__
    __rmul__ __truediv__ __rtruediv__ __floordiv__ __mod__ __neg__ __pow__ one_hot
""".split()
_IN_PLACE = "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__".split()
_SETTING = "copy_ index_copy_ masked_scatter_ index_put_ put_".split()
_REPLACING = "resize_ resize_as_ set_ as_strided_ .data=".split()
JOINING = "cat concat concatenate stack hstack vstack dstack column_stack row_stack".split()
_ONLY_LIKE = "view_as reshape_as expand_as type_as to".split()
_ABOUT = """
    size dim ndimension numel nelement __len__ stride storage_offset element_size get_device
    is_contiguous is_pinned is_shared is_floating_point is_complex is_signed is_same_size
    __format__ __hash__ new_zeros new_ones new_full new_empty zeros_like ones_like full_like
    empty_like rand_like randn_like
""".split()
_VALUES = ("src", "source", "value", "values", "tensor")


def wrapped(result: Any, weights: Any, ledger: Ledger | Joined) -> Any:
    """Results with their weights, on one ledger."""
    if isinstance(result, Tensor):
        ledger.refuse_dispatch()
        return WeightedTarget(result, weights, ledger=ledger)
    if isinstance(result, list | tuple):
        pairs = zip(result, weights, strict=True)
        return type(result)(wrapped(item, weight, ledger) for item, weight in pairs)
    return result


def _of_its_memory(given: WeightedTarget, result: Any, wrapped: Any) -> Any:
    """Note where a result is a view, as it always is of a target that was made plain."""
    pairs = zip(result, wrapped, strict=True) if isinstance(result, list | tuple) else None
    for item, target in pairs or [(result, wrapped)]:
        if isinstance(item, Tensor) and item._is_view():
            given.peers += target.peers
            target.peers = given.peers
    return wrapped


def first_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation is of."""
    if args:
        return args[0]
    return next((kwargs[name] for name in ("input", "tensor", "self") if name in kwargs), None)


def called(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The operation on plain tensors."""
    with torch._C.DisableTorchFunctionSubclass():
        return func(*plain(args), **plain(kwargs))


def reshaping(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, where the first argument is what is reshaped."""
    given = first_of(args, kwargs)
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    if any(isinstance(option, torch.dtype) for option in (*args, *kwargs.values())):
        return _reinterpreted(func, args, kwargs)
    result = called(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        # Weights of samples are spread over elements without memory, which no view can cut.
        weights = given.weights.contiguous()
        if args:
            weights = func(weights, *plain(args[1:]), **plain(kwargs))
        else:
            named = {name: weights for name, value in kwargs.items() if value is given}
            weights = func(**plain(kwargs) | named)
    return _of_its_memory(given, result, wrapped(result, weights, given.ledger))


def _reinterpreted(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view of another dtype has the weights as they are, if it has the elements."""
    given = args[0]
    result = called(func, args, kwargs)
    if result.shape != given.shape:
        return unweighted(func, args, kwargs)
    return _of_its_memory(given, result, wrapped(result, given.weights, given.ledger))


def _like(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another tensor that is given the shape or kind of the target learns nothing from it."""
    if isinstance(first_of(args, kwargs), WeightedTarget):
        rule = _casting if name_of(func) in CASTING else reshaping
        return rule(func, args, kwargs)
    return called(func, args, kwargs)


def _about(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What does not depend on the elements is no use of them."""
    return called(func, args, kwargs)


def _reshaping_in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, in the object that is there."""
    given = args[0]
    with torch._C.DisableTorchFunctionSubclass():
        func(*args, **kwargs)
        given.weights = func(given.weights.clone(), *args[1:], **kwargs)
    return given


def _casting(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another dtype is that of the target alone, another device that of both."""
    given = first_of(args, kwargs)
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    result = called(func, args, kwargs)
    if not isinstance(result, Tensor):
        return result
    weights = given.weights
    if result.device != weights.device:
        later = bool(kwargs.get("non_blocking")) or any(option is True for option in args)
        weights = weights.contiguous().to(result.device, non_blocking=later)
    return _of_its_memory(given, result, wrapped(result, weights, given.ledger))


def elementwise(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target has the weights of the old one, broadcast as it is."""
    targets = targets_in((args, kwargs))
    result = called(func, args, kwargs)
    if not isinstance(result, Tensor):
        return unweighted(func, args, kwargs)
    refuse_gradient(func, result)
    weights = [target.weights for target in targets]
    if func is torch.nn.functional.one_hot:
        weights = [weights[0].unsqueeze(-1)]
    return wrapped(result, _agreed(func, weights, result.shape), targets[0].ledger)


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
    result = called(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        joined = func(weights, *args[1:], **options)
    refuse_gradient(func, result)
    return wrapped(result, joined, _together(parts))


def _weights_of(parts: Any) -> list[Tensor]:
    kind = targets_in(list(parts))[0].weights.dtype
    return [
        part.weights
        if isinstance(part, WeightedTarget)
        else torch.ones(part.shape, dtype=kind, device=part.device)
        for part in parts
    ]


def _together(parts: Any) -> Ledger | Joined:
    ledgers = list({id(part.ledger): part.ledger for part in targets_in(list(parts))}.values())
    return ledgers[0] if len(ledgers) == 1 else Joined(ledgers)


def _padding(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Padding has weight 0."""
    given = first_of(args, kwargs)
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    rest = dict(kwargs)
    rest.pop("input", None)
    pad = args[1] if len(args) > 1 else rest.pop("pad")
    mode = args[2] if len(args) > 2 else rest.get("mode", "constant")
    result = called(func, args, kwargs)
    with torch._C.DisableTorchFunctionSubclass():
        weights = torch.nn.functional.pad(given.weights, pad, mode=mode)
    return wrapped(result, weights, given.ledger)


def _padding_sequences(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Sequences joined with padding, which has weight 0."""
    names = ("sequences", "batch_first", "padding_value", "padding_side")
    options = dict(zip(names, args, strict=False)) | kwargs
    parts = options.pop("sequences")
    with torch._C.DisableTorchFunctionSubclass():
        result = func(plain(parts), **options)
        weights = func(_weights_of(parts), **options | {"padding_value": 0.0})
    return wrapped(result, weights, _together(parts))


def setting(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements that are set bring their weights, if they have any, and leave them otherwise."""
    given = first_of(args, kwargs)
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    refuse_gradients(func, args, kwargs)
    value = next((kwargs[name] for name in _VALUES if name in kwargs), args[-1])
    if isinstance(value, WeightedTarget):
        weights = given.weights.clone()

        def of(part: Any) -> Any:
            return value.weights.to(weights.dtype) if part is value else plain(part)

        with torch._C.DisableTorchFunctionSubclass():
            rest = {name: of(part) for name, part in kwargs.items()}
            func(weights, *map(of, args[1:]), **rest)
        reweigh(given, weights)
    called(func, args, kwargs)
    return None if name_of(func) == "__setitem__" else given


def reweigh(given: WeightedTarget, weights: Tensor) -> None:
    """Give a target other weights.

    Targets that may see the same memory would keep theirs: they all lose them, and are plain.
    """
    peers = [peer for peer in (reference() for reference in given.peers) if peer is not None]
    if len(peers) == 1 or torch.equal(given.weights, weights):
        given.weights = weights
        return
    for peer in peers:
        peer.ledger.look()
        del peer.weights, peer.ledger, peer.peers
        cast(Any, peer).__class__ = Tensor


def _in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A changed target keeps its weights."""
    given = args[0] if args else None
    if not isinstance(given, WeightedTarget):
        return unweighted(func, args, kwargs)
    refuse_gradients(func, args, kwargs)
    _agreed(func, [target.weights for target in targets_in((args, kwargs))], given.shape)
    called(func, args, kwargs)
    return given


def refuse_gradients(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Make sure that what is written into a target has no gradient.

    Raises:
        UnweightedLossError: naming the operation.
    """
    values = (*args[1:], *kwargs.values())
    refuse_gradient(func, [part for part in values if isinstance(part, Tensor)])


def _replacing(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Other memory has other elements, whose weights nobody knows."""
    if not isinstance(args[0], WeightedTarget):
        return unweighted(func, args, kwargs)
    raise UnweightedLossError(
        f"{name_of(func)} gives a weighted target other elements, which have no weights; make a "
        "new one, or take it without weights, by flowdata.reweight.plain(target)"
    )


def _recording(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The memory of both is in use on a CUDA stream."""
    given, *streams = args
    with torch._C.DisableTorchFunctionSubclass():
        func(plain(given), *streams, **kwargs)
        func(given.weights, *streams, **kwargs)


def _attribute(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*(args if name_of(func) == "__set__" else plain(args)), **kwargs)


for _names, _rule in (
    (RESHAPING, reshaping),
    (_RESHAPING_IN_PLACE, _reshaping_in_place),
    (CASTING, _casting),
    (_ONLY_LIKE, _like),
    (_ELEMENTWISE, elementwise),
    (JOINING, _joining),
    (["pad", "constant_pad_nd"], _padding),
    (["pad_sequence"], _padding_sequences),
    (["__setitem__", *_SETTING], setting),
    ([*_IN_PLACE, IN_PLACE], _in_place),
    (_REPLACING, _replacing),
    (["record_stream"], _recording),
    (_ABOUT, _about),
    ([ATTRIBUTE], _attribute),
):
    RULES.update(dict.fromkeys(_names, _rule))
