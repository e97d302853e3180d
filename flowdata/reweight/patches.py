"""Patches of libraries that do not know of weights: all there are, each made once.

Those for tensors are made in the training process with the first `WeightedTarget` for which the
library is there, that for items in every process that reads them; none where guards are off. Where
guards are switched off later, transformers is at once what it was, and the compiler's setting with
the next `WeightedTarget`. A library that is not as expected is left as it is.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import get_worker_info

from flowdata.guards.switch import enabled
from flowdata.map_style.weighted_item import WeightedItem
from flowdata.reweight.losses import multiplied
from flowdata.reweight.operations import Function
from flowdata.reweight.registering import register_loss, weighable

_SMOOTHER_FIELDS = ("epsilon", "ignore_index")
_SMOOTHER_ARGUMENTS = {
    "self", "model_output", "labels", "shift_labels", "num_items_in_batch",
}  # fmt: skip

_done: set[str] = set()


def patch_libraries(classes: Sequence[type[Tensor]]) -> None:
    """Make the patches that are not made yet, or undo them where guards are off.

    It is called for each new batch, so it has to be cheap.

    Args:
        classes: the tensor subclasses of this package.
    """
    if get_worker_info() is not None:
        return
    if not enabled():
        if _COMPILER in _done:
            _done.remove(_COMPILER)
            unpatch_compiler(classes)
        return
    for name, patch in _PATCHES.items():
        if name not in _done and patch(classes):
            _done.add(name)


def patch_compiler(classes: Sequence[type[Tensor]]) -> bool:
    """Let torch.compile break its graph at operations on targets; whether that is settled."""
    # torch 2.13, `torch._dynamo.variables.builder`, `VariableBuilder._wrap`: a tensor subclass is
    # traced, with what its __torch_function__ does, unless it is in this set of the config. Then
    # it is an object that the compiler does not know, and what is done with it runs eagerly.
    # Before torch 2.8 there is no such set, and no subclass is traced unless it is in another
    # one, `traceable_tensor_subclasses`: nothing is to be done.
    _nontraceable_classes().update(classes)
    return True


def unpatch_compiler(classes: Sequence[type[Tensor]]) -> None:
    """Let torch.compile see targets as it does without `patch_compiler`."""
    _nontraceable_classes().difference_update(classes)


def _nontraceable_classes() -> set[type[Tensor]]:
    """The compiler's setting; a set of no meaning, where it has none that is as expected."""
    try:
        import torch._dynamo.config as config
    except ImportError:
        return set()
    known = getattr(config, "nontraceable_tensor_subclasses", None)
    return known if isinstance(known, set) else set()


def patch_label_smoother(_: Sequence[type[Tensor]]) -> bool:
    """Let transformers' label smoothing weight its loss; whether that is settled.

    It is taught as users teach their losses, and with plain labels is what it was.
    """
    # transformers 5.23, `Trainer.compute_loss` with `label_smoothing_factor`: it computes
    # the loss by `LabelSmoother.__call__`, which gathers log-probabilities of the labels, and adds
    # those of all classes, where it does not need the labels. Without this patch it raises.
    module = sys.modules.get("transformers.trainer_pt_utils")
    if module is None:
        # transformers may be imported later.
        return False
    smoother: Any = getattr(module, "LabelSmoother", None)
    if all(hasattr(smoother, name) for name in _SMOOTHER_FIELDS):
        arguments = inspect.signature(smoother.__call__).parameters
        if _SMOOTHER_ARGUMENTS.issuperset(arguments):
            smoother.__call__ = _weighted_where_enabled(smoother.__call__)
    return True


def _weighted_where_enabled(original: Function) -> Function:
    """Label smoothing that takes weights while guards are on, and is what it was while not."""
    weighted = weighable(original)
    register_loss(weighted, _smooth_labels)

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (weighted if enabled() else original)(*args, **kwargs)

    return call


def patch_column_remover() -> None:
    """Let a Trainer take unused columns out of weighted rows too.

    It is called for items that are read, also in workers, so it has to be cheap.
    """
    # transformers 5.23, `RemoveColumnsCollator._remove_columns`: it leaves what is no dict as it
    # is, so that a row with its weight would keep the columns that the model does not take.
    module = sys.modules.get("transformers.trainer_utils")
    if _COLUMNS in _done or module is None or not enabled():
        return
    _done.add(_COLUMNS)
    remover: Any = getattr(module, "RemoveColumnsCollator", None)
    original = getattr(remover, _REMOVE, None)
    if callable(original) and [*inspect.signature(original).parameters] == ["self", "feature"]:
        setattr(remover, _REMOVE, _of_weighted_items(original))


def _of_weighted_items(original: Function) -> Function:
    @wraps(original)
    def remove_columns(self: Any, feature: Any) -> Any:
        if isinstance(feature, WeightedItem) and enabled():
            return replace(feature, item=original(self, feature.item))
        return original(self, feature)

    return remove_columns


_COMPILER, _COLUMNS = "torch.compile", "RemoveColumnsCollator"
_REMOVE = "_remove_columns"
_PATCHES = {_COMPILER: patch_compiler, "LabelSmoother": patch_label_smoother}


def _smooth_labels(
    smoother: Any,
    model_output: Any,
    labels: Tensor,
    shift_labels: bool = False,
    num_items_in_batch: Any = None,
    *,
    weights: Tensor,
) -> Tensor:
    """What LabelSmoother computes, with weights."""
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
    weighted: Tensor = multiplied(losses, weights.reshape(-1)).sum() / counted
    return weighted
