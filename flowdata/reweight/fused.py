"""The unfused way of fused linear cross-entropy kernels, which cannot weight single tokens."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowdata.reweight.losses import compute_weighted_loss


def unfused_linear_cross_entropy(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ce_weight: Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    *,
    weights: Tensor,
    **options: Any,
) -> Tensor:
    """The handler for Liger's ``liger_fused_linear_cross_entropy``: the same loss, with weights.

    It makes the logits, which the kernel saves. Liger's models call the function by its name in a
    module, where it has to be put::

        from liger_kernel.transformers.model import loss_utils

        name = "liger_fused_linear_cross_entropy"
        fused = flowdata.reweight.weighable(getattr(loss_utils.F, name))
        setattr(loss_utils.F, name, fused)
        flowdata.register_loss(fused, flowdata.reweight.unfused_linear_cross_entropy)

    Args:
        input: hidden states, shape (n, hidden).
        weight: of the head, shape (classes, hidden).
        target: shape (n,).
        bias: of the head.
        ce_weight: weights of classes, in float32.
        softcap: bound of the logits, by tanh.
        weights: of the elements of the target.

    The rest is as in `torch.nn.functional.cross_entropy`; ``accum_dtype``, of the kernel's sums,
    has no meaning here.

    Raises:
        NotImplementedError: for other options of the kernel.
    """
    options |= {"lse_square_scale": lse_square_scale, "return_z_loss": return_z_loss}
    options.pop("accum_dtype", None)
    if unknown := sorted(name for name, value in options.items() if value):
        raise NotImplementedError(
            f"{', '.join(unknown)} cannot be had with weighted targets: leave it out, or train "
            "without Liger's fused linear cross-entropy"
        )
    logits = F.linear(input, weight, bias).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    arguments = {
        "input": logits,
        "target": target,
        "weight": ce_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    return compute_weighted_loss(F.cross_entropy, arguments, weights, reduction)
