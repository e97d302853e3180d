"""Losses of tokens beside the loss that the model computes itself of the same sample."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowdata.scoring.language.causality import is_quantized
from flowdata.scoring.models.inference import out_of_memory
from flowdata.scoring.models.own_loss import loss_in, parameters_of_forward

# Logits of a batch differ from those of one row by rounding, and a loss of a sure model is small.
_SHARE = 1e-4
_OFFSET = 0.1


def agree(first: Tensor, second: Tensor) -> bool:
    """Whether two losses, each computed in its own type, are alike up to rounding."""
    least = max(torch.finfo(value.dtype).eps for value in (first, second))
    allowed = max(4 * least, _SHARE) * (abs(float(second)) + _OFFSET)
    # What is not finite is said where it is met.
    return not abs(float(first) - float(second)) > allowed


def has_own_loss(model: nn.Module) -> bool:
    """Whether a model may compute a loss of labels that is the same for the same sample."""
    return "labels" in parameters_of_forward(model) and not is_quantized(model)


def require_own_loss(
    model: nn.Module, keywords: Mapping[str, Any], losses: Tensor, *, advice: str = ""
) -> None:
    """Make sure that the mean of token losses is the loss that the model computes itself.

    Nothing is said of a model whose ``forward`` takes no ``labels``, that gives no loss for these,
    or whose loss is random.

    Args:
        model: what was scored.
        keywords: of its forward, for one sample: labels, and what it has beside.
        losses: of each token of the sample that is scored.
        advice: what else it may be.

    Raises:
        TypeError: for a loss with another formula, or another term.
    """
    own = _own_loss(model, keywords)
    if own is None or not losses.numel() or agree(own, losses.mean()):
        return
    again = _own_loss(model, keywords)
    if again is None or not agree(own, again):
        return
    balance = ""
    if getattr(getattr(model, "config", None), "output_router_logits", False) is True:
        # transformers 5.23, load_balancing_loss_func.
        balance = (
            ". With config.output_router_logits a model of experts adds how evenly a batch uses "
            "them, which is no loss of a sample: set it to False while the model is scored"
        )
    raise TypeError(
        f"{type(model).__name__} computes a loss of its own that is no mean cross-entropy of the "
        f"scored tokens: {float(own):.6g} for {losses.numel()} tokens for which this is "
        f'{float(losses.mean()):.6g}{balance or advice}; otherwise pass loss="model", or '
        "loss=function(model, batch) -> losses"
    )


def _own_loss(model: nn.Module, keywords: Mapping[str, Any]) -> Tensor | None:
    if not has_own_loss(model):
        return None
    try:
        return loss_in(model(**keywords))
    # Whatever a model raises for labels that it does not take.
    except Exception as error:
        if out_of_memory(error):
            raise
        return None
