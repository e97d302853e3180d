"""Operations in place: those that surely leave each weight at its element; all others raise.

Several targets may see the same memory, as views of each other, each with weights of its own. So
an operation in place may change values, but not which weights belong to the memory.
"""

from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.onehot import scattered_rows
from flowdata.reweight.operations import (
    Function,
    agreed_weights,
    call_plain,
    call_unweighted,
    first_argument,
)
from flowdata.reweight.refusals import UnweightedLossError, name_of, refuse_gradient
from flowdata.reweight.target_data import TargetData, plain, targets_in
from flowdata.reweight.torch_internals import subclasses_off


def change_elements(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Other values, as of ``labels.clamp_(min=0)``, in the same places: the weights stay.

    Raises:
        UnweightedLossError: for an operand of other weights, or with a gradient.
    """
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        return call_unweighted(func, args, kwargs)
    _refuse_gradients(func, args, kwargs)
    agreed_weights(func, [target.weights for target in targets_in((args, kwargs))], given.shape)
    refuse_gradient(func, call_plain(func, args, kwargs))
    return given


def reshape_in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The same on target and weights, in the object that is there; other views keep their shape."""
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        return call_unweighted(func, args, kwargs)
    with subclasses_off():
        func(*args, **kwargs)
        # A tensor of its own: other targets may have the same weights.
        given.weights = func(given.weights.clone(), *args[1:], **kwargs)
    return given


def keep_detached(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A target is detached already."""
    given = first_argument(args, kwargs)
    return given if isinstance(given, TargetData) else call_unweighted(func, args, kwargs)


def set_elements(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements set to a number keep their weights, as of ``labels[mask] = -100``.

    Raises:
        UnweightedLossError: for elements of other weights, of several values without weights, or
            with a gradient; where one-hot rows are set in a floating tensor without weights.
    """
    given, places, value = args
    if isinstance(given, TargetData):
        _require_same_elements(func, given, places, value)
    else:
        # A target may be the value. With gradients on, models make the inputs of their decoder of
        # labels so (transformers 5.23, `shift_tokens_right`), and accelerate 1.15 pads what it
        # gathers, `pad_across_processes`.
        _refuse_rows(func, given, places)
    return call_unweighted(func, args, kwargs)


def copy_elements(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``target.copy_(source)``, which sets all elements.

    Raises:
        UnweightedLossError: as `set_elements`; for a weighted source of more than a number, copied
            into a tensor without weights where gradients are on (metrics copy with them off).
    """
    given, source = args[0], args[1] if len(args) > 1 else kwargs["src"]
    if not isinstance(given, TargetData):
        if source.ndim and torch.is_grad_enabled():
            raise UnweightedLossError(
                f"{name_of(func)} copies a weighted target into a tensor that is there, which has "
                "no weights and gets none; use what returns a new tensor, torch.cat, "
                "torch.nn.functional.pad or target.clone(). In a metric, or as an input of the "
                "model: copy flowdata.reweight.plain(target)"
            )
        return call_unweighted(func, args, kwargs)
    _require_same_elements(func, given, ..., source)
    call_plain(func, args, kwargs)
    return given


def _require_same_elements(func: Function, given: TargetData, places: Any, value: Any) -> None:
    refuse_gradient(func, value)
    if isinstance(value, TargetData):
        # `labels[mask] += 1` sets elements that were read from the same places.
        weights = given.weights.clone()
        weights[plain(places)] = value.weights.to(weights.dtype)
        what = "" if torch.equal(weights, given.weights) else "elements of other weights"
    else:
        several = isinstance(value, Tensor) and value.numel() > 1
        what = f"{value.numel()} elements without weights" if several else ""
    if what:
        raise UnweightedLossError(
            f"{name_of(func)} puts {what} into a weighted target, whose weights stay as they are: "
            "set single numbers only, or make a new tensor, by torch.where or torch.cat. In a "
            "metric, or before it is weighted: take flowdata.reweight.plain(target)"
        )


def scatter_in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``zeros.scatter_(1, target, 1.0)`` would make one-hot rows in a tensor without weights.

    Rows of integers or booleans, which have no gradient, are those of metrics and stay plain.

    Raises:
        UnweightedLossError: in a floating tensor, naming what to use instead.
    """
    given, _, weights = scattered_rows(args, kwargs)
    plain_floats = not isinstance(given, TargetData) and given.is_floating_point()
    if weights is not None and plain_floats:
        raise _rows_in_place(func)
    return refuse_in_place(func, args, kwargs)


def put_elements(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``zeros.index_put_((torch.arange(n), target), one)`` is as ``zeros[..., target] = one``.

    Raises:
        UnweightedLossError: for one-hot rows, as `scatter_in_place`; when a target is changed.
    """
    given = first_argument(args, kwargs)
    if not isinstance(given, TargetData):
        _refuse_rows(func, given, kwargs["indices"] if "indices" in kwargs else args[1])
    return refuse_in_place(func, args, kwargs)


def _refuse_rows(func: Function, given: Tensor, index: Any) -> None:
    """Make sure that ``zeros[torch.arange(n), target] = 1`` makes no rows without weights."""
    if not given.is_floating_point():
        return
    _, *others = index if isinstance(index, tuple) else (index,)
    for part in others:
        # Counts, as those of a confusion matrix, have other shapes.
        rows = isinstance(part, TargetData) and part.ndim > 0
        if rows and given.shape[: part.ndim] == part.shape:
            raise _rows_in_place(func)


def _rows_in_place(func: Function) -> UnweightedLossError:
    return UnweightedLossError(
        f"{name_of(func)} sets places that a weighted target gives in a floating tensor that is "
        "there, which has no weights and gets none; for one-hot rows use what returns a new "
        "tensor, zeros.scatter(1, target.unsqueeze(1), 1.0), torch.eye(classes)[target] or "
        "torch.nn.functional.one_hot. In a metric: give it flowdata.reweight.plain(target)"
    )


def refuse_in_place(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Other elements, or elements elsewhere, whose weights nobody knows.

    Raises:
        UnweightedLossError: when it is the target that is changed.
    """
    if not isinstance(first_argument(args, kwargs), TargetData):
        return call_unweighted(func, args, kwargs)
    raise UnweightedLossError(
        f"{name_of(func)} gives a weighted target other elements, or puts them elsewhere, and "
        "flowdata cannot tell which weights they have then; use an operation that returns a new "
        "tensor, or take the target without weights, by flowdata.reweight.plain(target)"
    )


def _refuse_gradients(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Make sure that what is written into a target has no gradient."""
    values = (*args[1:], *kwargs.values())
    refuse_gradient(func, [part for part in values if isinstance(part, Tensor)])


def refuse_out_target(func: Function, out: Any) -> None:
    """Make sure that no result is written into a target, by ``out=target``.

    Raises:
        UnweightedLossError: when it would be.
    """
    if targets_in(out):
        raise UnweightedLossError(
            f"{name_of(func)}(..., out=) puts other elements into a weighted target, whose weights "
            "stay as they are: leave out out= and use what is returned, or write into "
            "flowdata.reweight.plain(target)"
        )
