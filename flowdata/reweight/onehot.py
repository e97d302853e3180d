"""One-hot rows, and what else is made along a dimension: they have the weights of their targets."""

from typing import Any

import torch
from torch import Tensor

from flowdata.reweight.operations import (
    Function,
    agreed_weights,
    call_plain,
    call_unweighted,
    compute_elements,
    first_argument,
    reshape,
    with_weights,
)
from flowdata.reweight.refusals import name_of, refuse_gradient, refuse_out
from flowdata.reweight.target_data import TargetData


def one_hot_by_index(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows of a matrix, one for each element of a target, as ``torch.eye(classes)[target]``."""
    given = first_argument(args, kwargs)
    index = kwargs.get("index", args[-1] if args else None)
    if isinstance(index, tuple) and len(index) == 1:
        # torch 2.5 makes a tuple of any index.
        [index] = index
    if isinstance(given, TargetData) or not isinstance(index, TargetData):
        return reshape(func, args, kwargs)
    dimension = 0
    if name_of(func) == "index_select":
        dimension = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    result = call_unweighted(func, args, kwargs)
    rows = dimension == 0 and given.ndim == 2 and result.shape == (*index.shape, given.shape[1])
    # A mask selects rows, it does not hold class indices.
    if not rows or index.dtype in (torch.bool, torch.uint8):
        return result
    refuse_out(func, kwargs)
    return with_weights(index, result, index.weights.unsqueeze(-1).expand(result.shape))


def scatter_rows(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Rows that are set where the target says, as ``zeros.scatter(1, target[:, None], 1.0)``."""
    given, index, weights = scattered_rows(args, kwargs)
    if weights is None:
        return call_unweighted(func, args, kwargs)
    refuse_out(func, kwargs)
    result = call_plain(func, args, kwargs)
    refuse_gradient(func, result)
    if isinstance(given, TargetData):
        agreed_weights(func, [given.weights, weights], result.shape)
    return with_weights(index, result, weights)


def scattered_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Tensor | None]:
    """What is scattered into, the index, and the weights that rows then have; None if not rows."""
    given = first_argument(args, kwargs)
    dimension = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    index: Any = kwargs.get("index", args[2] if len(args) > 2 else None)
    ours = type(given) is Tensor or isinstance(given, TargetData)
    if not (isinstance(index, TargetData) and ours):
        return given, index, None
    return given, index, _weights_of_rows(index, given.shape, dimension)


def _weights_of_rows(index: TargetData, shape: torch.Size, dimension: int) -> Tensor | None:
    """The weights of rows along a dimension, if all elements of a row have the same."""
    first = index.weights.narrow(dimension, 0, min(1, index.shape[dimension]))
    rows = list(shape)
    rows[dimension] = first.shape[dimension]
    if tuple(rows) != first.shape or first.numel() == 0 or not _equal_along(index, dimension):
        return None
    return first.expand(shape)


def _equal_along(target: TargetData, dimension: int) -> bool:
    weights = target.weights
    if weights.shape[dimension] == 1 or weights.stride(dimension) == 0:
        return True
    return torch.equal(weights, weights.narrow(dimension, 0, 1).expand_as(weights))


def normalise_along(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Elements that are made of those along a dimension, if all of them have the same weight."""
    given = first_argument(args, kwargs)
    dimension: Any = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(given, TargetData) or not isinstance(dimension, int):
        return call_unweighted(func, args, kwargs)
    rule = compute_elements if _equal_along(given, dimension) else call_unweighted
    return rule(func, args, kwargs)
