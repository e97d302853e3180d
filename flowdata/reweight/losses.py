"""The losses of torch.nn.functional with weighted targets, as rules."""

import inspect
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdata.reweight.operations import Function, Rule, call_unweighted
from flowdata.reweight.refusals import UnweightedLossError
from flowdata.reweight.target_data import TargetData, plain
from flowdata.reweight.unused_weights import MONITOR
from flowdata.reweight.weighted_losses import as_weighted_losses

_IGNORED = -100

Denominator = Callable[[Tensor, dict[str, Any]], Any]


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """``sum(weights * losses) / number of losses``: for loops that one may edit.

    Args:
        losses: with ``reduction="none"``, shape (B, ...).
        weights: shape (B, ...), the leading dimensions of the losses.
    """
    return multiplied(losses, _fitted(weights, losses)).sum() / losses.numel()


def multiplied(losses: Tensor, weights: Tensor) -> Tensor:
    """``losses * weights``, where a weight of 0 gives 0, also of a loss that is infinite or NaN.

    Rows of weight 0 are often those that nothing can be computed of.
    """
    return losses.masked_fill(weights == 0, 0.0) * weights


def _fitted(weights: Tensor, losses: Tensor) -> Tensor:
    trailing = (1,) * (losses.ndim - weights.ndim)
    return weights.reshape(weights.shape + trailing).to(losses.device, losses.dtype)


def _weighted_loss(
    divide_by: Denominator, func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``reduction="none"``, times weights, reduced as asked."""
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    options = dict(bound.arguments)
    reduction = options["reduction"]
    if options.get("size_average") is not None or options.get("reduce") is not None:
        reduction = _legacy_reduction(options["size_average"], options["reduce"])
        options |= {"size_average": None, "reduce": None}
    target = options["target"]
    if not isinstance(target, TargetData) and func in _SYMMETRIC:
        target = options["input"]
    if not isinstance(target, TargetData):
        return call_unweighted(func, args, kwargs)
    if reduction not in ("none", "sum", "mean") and (func, reduction) != (F.kl_div, "batchmean"):
        return call_unweighted(func, args, kwargs)
    # `Tensor.set_` asks no subclass (torch 2.13), so it shows only here.
    if target.weights.shape != target.shape:
        raise UnweightedLossError(
            f"a target of shape {tuple(target.shape)} has weights of shape "
            f"{tuple(target.weights.shape)}: it was given other memory, by set_"
        )
    weighted = compute_weighted_loss(func, plain(options), target.weights, reduction, divide_by)
    return _watched(weighted, reduction, target)


def compute_weighted_loss(
    func: Function,
    options: dict[str, Any],
    weights: Tensor,
    reduction: str,
    divide_by: Denominator | None = None,
) -> Tensor:
    """The weighted loss of plain arguments by name, reduced."""
    losses: Tensor = func(**options | {"reduction": "none"})
    # Weights of float32 are not rounded to the dtype of the losses, their sum is.
    weighted = multiplied(losses, _of_losses(func, weights, losses).to(losses.device))

    def mean() -> Any:
        if reduction == "batchmean":
            return weighted.sum() / options["input"].shape[0]
        return weighted.sum() / (divide_by or _class_weights)(losses, options)

    return _reduced(weighted, reduction, mean).to(losses.dtype)


def _reduced(weighted: Tensor, reduction: str, mean: Callable[[], Any]) -> Tensor:
    """Losses times weights as asked; `mean` is what "mean" and "batchmean" are of them."""
    if reduction == "none":
        return weighted
    reduced: Tensor = mean() if reduction in ("mean", "batchmean") else weighted.sum()
    return reduced


def _watched(weighted: Tensor, reduction: str, target: TargetData) -> Tensor:
    """The loss, or losses, of a target, when the monitor knows of it."""
    MONITOR.watch_gradient(weighted, target.origin)
    return as_weighted_losses(weighted) if reduction == "none" else weighted


def _of_losses(func: Function, weights: Tensor, losses: Tensor) -> Tensor:
    """Weights of the target's elements as those of losses, which may have no class dimension.

    Raises:
        ValueError: for weights that differ between the classes of a sample.
    """
    if weights.shape == losses.shape:
        return weights
    if weights.ndim == losses.ndim + 1:
        dimension = 1 if losses.ndim and func not in _CLASSES_LAST else -1
        first = weights.select(dimension, 0)
        if first.shape == losses.shape:
            spread = weights.stride(dimension) == 0
            if not (spread or torch.equal(weights, first.unsqueeze(dimension).expand_as(weights))):
                raise ValueError(
                    "this loss has one value for all classes of a sample, but their weights differ"
                )
            return first
    return torch.broadcast_to(weights, losses.shape)


def weighted_ctc_loss(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One loss for each sequence, whose mean is over sequences of losses per label.

    Raises:
        ValueError: for weights that differ inside a sequence, or none, where it is empty.
    """
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    options = dict(bound.arguments)
    reduction, target = options["reduction"], options["targets"]
    if not isinstance(target, TargetData) or reduction not in ("none", "sum", "mean"):
        return call_unweighted(func, args, kwargs)
    losses = func(**plain(options) | {"reduction": "none"})
    lengths = torch.as_tensor(options["target_lengths"]).to(target.device)
    counts = lengths.reshape(-1).tolist()
    if target.ndim == 1:
        rows = list(torch.split(target.weights, counts))
    else:
        # After its labels a row is padded; an empty one has only that.
        rows = [row[: max(n, 1)] for row, n in zip(target.weights, counts, strict=True)]
    if any(row.numel() == 0 or (row != row[0]).any() for row in rows):
        raise ValueError(
            "ctc_loss has one value for each sequence, whose labels need one weight, the same for "
            "all of them"
        )
    weights = torch.stack([row[0] for row in rows]).reshape(losses.shape)
    weighted = multiplied(losses, weights.to(losses.device))

    def mean() -> Any:
        return (weighted / lengths.clamp(min=1).reshape(losses.shape)).mean()

    return _watched(_reduced(weighted, reduction, mean).to(losses.dtype), reduction, target)


def _legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """What the arguments that came before ``reduction=`` mean; None is True."""
    reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce are deprecated: use reduction={reduction!r}", stacklevel=2
    )
    return reduction


@cache
def _signature(func: Function) -> inspect.Signature:
    return inspect.signature(func)


def _count(losses: Tensor, _: dict[str, Any]) -> int:
    return losses.numel()


def _weight_sum(losses: Tensor, options: dict[str, Any]) -> Any:
    """Where the loss has element weights of its own, its mean divides by their sum."""
    own = options.get("weight")
    return losses.numel() if own is None else own.expand_as(losses).sum()


def _class_weights(losses: Tensor, options: dict[str, Any]) -> Any:
    """What cross-entropy divides by: the class weights of what is not ignored."""
    target = options["target"]
    if target.is_floating_point():
        return losses.numel()
    ignored = options["ignore_index"]
    counted = target != (_IGNORED if ignored is None else ignored)
    if options["weight"] is None:
        return counted.sum()
    return options["weight"][target[counted].long()].sum()


_CLASSES_LAST = {F.multilabel_soft_margin_loss, F.multilabel_margin_loss}
_SYMMETRIC = {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss}

# What the mean of each loss divides by, as its documentation says.
weighted_over_count: Rule = partial(_weighted_loss, _count)
weighted_over_element_weights: Rule = partial(_weighted_loss, _weight_sum)
weighted_over_class_weights: Rule = partial(_weighted_loss, _class_weights)
