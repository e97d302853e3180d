"""The losses of torch.nn.functional with weighted targets, and those of users."""

import inspect
import weakref
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import _reduction
from torch.nn import functional as F

from flowdata.reweight.elements import elementary
from flowdata.reweight.target import (
    LOSSES,
    Function,
    UnweightedLossError,
    WeightedTarget,
    name_of,
    plain,
    targets_in,
    unweighted,
)

_IGNORED = -100

_weighable: "weakref.WeakSet[Function]" = weakref.WeakSet()

Denominator = Callable[[Tensor, dict[str, Any]], Any]


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
        targets[0].ledger.settle(result)
        return result

    LOSSES[function] = handle


def weighable(function: Function) -> Function:
    """A function that asks WeightedTarget what to do, as those of torch do."""

    @wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
        if targets_in((args, kwargs)) and asking in LOSSES:
            return LOSSES[asking](asking, args, kwargs)
        return function(*args, **kwargs)

    _weighable.add(asking)
    return asking


def _asks(function: Function) -> bool:
    """Whether a call reaches the handler: torch's own in C++ do, as do those that say so."""
    if function in _weighable or isinstance(function, OpOverload | OpOverloadPacket):
        return True
    code = getattr(function, "__code__", None)
    asks = code is None or "handle_torch_function" in code.co_names
    return asks and inspect.isroutine(function)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """``sum(weights * losses) / number of losses``: for loops that one may edit.

    Args:
        losses: with ``reduction="none"``, shape (B, ...).
        weights: shape (B, ...), the leading dimensions of the losses.
    """
    return (losses * _fitted(weights, losses)).sum() / losses.numel()


def _fitted(weights: Tensor, losses: Tensor) -> Tensor:
    trailing = (1,) * (losses.ndim - weights.ndim)
    return weights.reshape(weights.shape + trailing).to(losses.device, losses.dtype)


def _weighted(
    func: Function, args: tuple[Any, ...], kwargs: dict[str, Any], divide_by: Denominator
) -> Any:
    """``reduction="none"``, times weights, reduced as asked."""
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    options = dict(bound.arguments)
    reduction = options["reduction"]
    if options.get("size_average") is not None or options.get("reduce") is not None:
        reduction = _reduction.legacy_get_string(options["size_average"], options["reduce"])
        options |= {"size_average": None, "reduce": None}
    target = options["target"]
    if not isinstance(target, WeightedTarget) and func in _SYMMETRIC:
        target = options["input"]
    if not isinstance(target, WeightedTarget):
        return unweighted(func, args, kwargs)
    if reduction not in ("none", "sum", "mean") and (func, reduction) != (F.kl_div, "batchmean"):
        return unweighted(func, args, kwargs)
    if target.weights.shape != target.shape:
        raise UnweightedLossError(
            f"a target of shape {tuple(target.shape)} has weights of shape "
            f"{tuple(target.weights.shape)}: it was given other memory, by set_"
        )
    weighted = reduced(func, plain(options), target.weights, reduction, divide_by)
    target.ledger.settle(weighted)
    return elementary(weighted) if reduction == "none" else weighted


def reduced(
    func: Function,
    options: dict[str, Any],
    weights: Tensor,
    reduction: str,
    divide_by: Denominator | None = None,
) -> Tensor:
    """The weighted loss of plain arguments by name."""
    losses: Tensor = func(**options | {"reduction": "none"})
    # Weights of float32 are not rounded to the dtype of the losses, their sum is.
    weighted = losses * _of_losses(func, weights, losses).to(losses.device)
    if reduction != "none":
        weighted = weighted.sum()
    if reduction == "batchmean":
        weighted = weighted / options["input"].shape[0]
    if reduction == "mean":
        weighted = weighted / (divide_by or _class_weights)(losses, options)
    return weighted.to(losses.dtype)


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


def _weighted_ctc(func: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One loss for each sequence, whose mean is over sequences of losses per label.

    Raises:
        ValueError: for weights that differ inside a sequence, or none, where it is empty.
    """
    bound = _signature(func).bind(*args, **kwargs)
    bound.apply_defaults()
    options = dict(bound.arguments)
    reduction, target = options["reduction"], options["targets"]
    if not isinstance(target, WeightedTarget) or reduction not in ("none", "sum", "mean"):
        return unweighted(func, args, kwargs)
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
    weighted = losses * weights.to(losses.device)
    if reduction == "mean":
        weighted = (weighted / lengths.clamp(min=1).reshape(losses.shape)).mean()
    elif reduction == "sum":
        weighted = weighted.sum()
    weighted = weighted.to(losses.dtype)
    target.ledger.settle(weighted)
    return elementary(weighted) if reduction == "none" else weighted


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

for _names, _denominator in (
    (("cross_entropy", "nll_loss", "linear_cross_entropy"), _class_weights),
    (("mse_loss", "l1_loss", "huber_loss"), _weight_sum),
    (
        """smooth_l1_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div
        poisson_nll_loss gaussian_nll_loss soft_margin_loss multi_margin_loss
        multilabel_margin_loss multilabel_soft_margin_loss hinge_embedding_loss
        margin_ranking_loss cosine_embedding_loss""".split(),
        _count,
    ),
):
    for _name in _names:

        def _handle(
            func: Function,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            divide_by: Denominator = _denominator,
        ) -> Any:
            return _weighted(func, args, kwargs, divide_by)

        # Not every release of torch has every one.
        if hasattr(F, _name):
            LOSSES[getattr(F, _name)] = _handle

LOSSES[F.ctc_loss] = _weighted_ctc
