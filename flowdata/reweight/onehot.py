"""One-hot rows, and what else is made along a dimension: they have the weights of their targets."""

import weakref
from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.operations import (
    called,
    elementwise,
    first_of,
    refuse_gradients,
    reshaping,
    reweigh,
    setting,
    wrapped,
)
from flowdata.reweight.target import (
    RULES,
    Function,
    WeightedTarget,
    name_of,
    refuse_gradient,
    unweighted,
)


def _reading(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a table, one for each element of a target, as ``torch.eye(classes)[target]``."""
    given = first_of(args, kwargs)
    index = kwargs.get("index", args[-1] if args else None)
    if isinstance(given, WeightedTarget) or not isinstance(index, WeightedTarget):
        return reshaping(func, args, kwargs)
    dimension = 0
    if name_of(func) == "index_select":
        dimension = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    result = called(func, args, kwargs)
    rows = dimension == 0 and given.ndim == 2 and result.shape == (*index.shape, given.shape[1])
    if not rows or index.dtype in (torch.bool, torch.uint8):
        return unweighted(func, args, kwargs)
    refuse_gradient(func, result)
    return wrapped(result, index.weights.unsqueeze(-1).expand(result.shape), index.ledger)


def _scattering(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of elements at places that the target gives, as ``zeros.scatter_(1, target, 1.0)``."""
    in_place = name_of(func) == "scatter_"
    given = first_of(args, kwargs)
    dimension = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    index: Any = kwargs.get("index", args[2] if len(args) > 2 else None)
    weights = None
    if isinstance(index, WeightedTarget) and type(given) in (Tensor, WeightedTarget):
        weights = _of_rows(index, given.shape, dimension)
    if weights is None:
        return (setting if in_place else unweighted)(func, args, kwargs)
    if in_place:
        refuse_gradients(func, args, kwargs)
    result = called(func, args, kwargs)
    refuse_gradient(func, result)
    if not in_place:
        return wrapped(result, weights, index.ledger)
    if isinstance(given, WeightedTarget):
        reweigh(given, weights)
    else:
        # Who scatters in place may go on with what is there, and not with the result.
        given.__class__ = WeightedTarget
        given.weights, given.peers = weights, [weakref.ref(given)]
    if isinstance(given, WeightedTarget):
        given.ledger = index.ledger
    return given


def _of_rows(index: WeightedTarget, shape: torch.Size, dimension: int) -> Tensor | None:
    """The weights of rows along a dimension, if all elements of a row have the same."""
    first = index.weights.narrow(dimension, 0, min(1, index.shape[dimension]))
    rows = list(shape)
    rows[dimension] = first.shape[dimension]
    if tuple(rows) != first.shape or first.numel() == 0 or not _constant(index.weights, dimension):
        return None
    return first.expand(shape)


def _constant(weights: Tensor, dimension: int) -> bool:
    if weights.shape[dimension] == 1 or weights.stride(dimension) == 0:
        return True
    return torch.equal(weights, weights.narrow(dimension, 0, 1).expand_as(weights))


def _along(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements that are made of those along a dimension, all of the same weight."""
    given = first_of(args, kwargs)
    dimension: Any = kwargs.get("dim", args[1] if len(args) > 1 else None)
    known = isinstance(given, WeightedTarget) and isinstance(dimension, int)
    if known and _constant(given.weights, dimension):
        return elementwise(func, args, kwargs)
    return unweighted(func, args, kwargs)


for _names, _rule in (
    (["__getitem__", "index_select"], _reading),
    (["scatter", "scatter_"], _scattering),
    (["softmax", "log_softmax"], _along),
):
    RULES.update(dict.fromkeys(_names, _rule))
