"""Where a library does not ask a tensor subclass: torch's compiler, the Trainer's label smoothing.

A Trainer with ``label_smoothing_factor`` computes the loss in transformers' `LabelSmoother`, by
operations some of which never see the target. Its ``__call__`` is therefore taught as users teach
their losses; called with plain labels it is what it was.
"""

import functools
import sys
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from flowdata.reweight.elements import WeightedLosses
from flowdata.reweight.losses import register_loss, weighable
from flowdata.reweight.target import ARRIVALS, LOSSES, WeightedTarget

_SMOOTHER = ("transformers.trainer_pt_utils", "LabelSmoother")


def introduce() -> None:
    """Make WeightedTarget known; called for each new batch, as a library may be imported late."""
    if get_worker_info() is not None:
        return
    _to_the_compiler()
    module, name = _SMOOTHER
    smoother: Any = getattr(sys.modules.get(module), name, None)
    if smoother is not None and smoother.__call__ not in LOSSES:
        smoother.__call__ = weighable(smoother.__call__)
        register_loss(smoother.__call__, _smoothed)


@functools.cache
def _to_the_compiler() -> None:
    """Let torch.compile break its graph at operations on targets, which it cannot trace."""
    import torch._dynamo.config as config

    known = getattr(config, "nontraceable_tensor_subclasses", None)
    if known is not None:
        known |= {WeightedTarget, WeightedLosses}


def _smoothed(
    smoother: Any,
    model_output: Any,
    labels: Tensor,
    shift_labels: bool = False,
    num_items_in_batch: Any = None,
    *,
    weights: Tensor,
) -> Tensor:
    """LabelSmoother with weights."""
    logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
    if shift_labels:
        logits, labels, weights = logits[..., :-1, :], labels[..., 1:], weights[..., 1:]
    labels = labels.reshape(-1)
    losses = F.cross_entropy(
        logits.reshape(labels.numel(), -1).float(),
        labels,
        reduction="none",
        ignore_index=smoother.ignore_index,
        label_smoothing=smoother.epsilon,
    )
    counted = num_items_in_batch
    if counted is None:
        counted = (labels != smoother.ignore_index).sum()
    elif isinstance(counted, Tensor):
        counted = counted.to(losses.device)
    found: Tensor = (losses * weights.reshape(-1)).sum() / counted
    return found


ARRIVALS.append(introduce)
