"""WeightedTarget: a tensor that is the target, and carries the weights of its elements along."""

from typing import Any

from torch import Tensor

from flowdata.reweight.in_place import refuse_out_target
from flowdata.reweight.patches import patch_libraries
from flowdata.reweight.rules import rule_of
from flowdata.reweight.target_data import Origin, TargetData, plain
from flowdata.reweight.torch_internals import left_to_eager_mode
from flowdata.reweight.unused_weights import MONITOR
from flowdata.reweight.weighted_losses import WeightedLosses


class WeightedTarget(TargetData):
    """A target of any dtype and shape, with one weight for each element.

    Operations that move, cast or reshape it do so with both. The losses of
    ``torch.nn.functional`` compute ``reduction="none"``, multiply, and reduce as asked: "mean"
    divides by what it divides by without weights. Everything else (comparisons, metrics, NumPy)
    sees a plain tensor.

    An operation that would let a gradient flow past the weights raises. Where a training takes
    three optimizer steps in a row without the weights of its batches, flowdata warns, once per
    `reweight()` call (`UnusedWeightsMonitor`); a training of fewer than three steps gets no
    warning. One-hot constructions (``scatter``, ``torch.eye(classes)[target]``) carry weights,
    ``class_weights[target]`` does not. In place, values may change (``labels[mask] = -100``,
    ``labels.clamp_(min=0)``); what puts other elements there raises. A plain tensor that is there
    stays plain: one-hot rows set in a floating one raise, as does ``buffer.copy_(target)`` where
    gradients are on; rows of integers or booleans (metrics) and parts that are set,
    ``padded[:, 1:] = target`` (inputs of a decoder), pass without weights. ``reduction="none"``
    gives weighted losses, which refuse what is not linear in them (focal loss, hard examples).
    ``torch.compile`` leaves the operations to eager mode, and compiles what is around them; with
    guards off it may compile a loss of one's own, ``-log_probs[torch.arange(n), target].mean()``,
    without weights, where eager mode raises. Before torch 2.8 no target can be made inside of
    what is compiled.

    What is not seen, so neither raises nor warns: a term of the loss that is made of a copy
    (``target.numpy()``, ``target == classes``) beside a weighted one; a function of the reduced
    loss; two data sets in one step, of which one is weighted; one batch over and over; steps that
    are not of a torch.optim.Optimizer.

    `torch.save` keeps the weights, and ``torch.load(weights_only=True)`` reads them where
    `flowdata.reweight` is imported.

    Args:
        target: the target, shape (B, ...).
        weights: numbers of the target's shape, or of its leading dimensions.
        name: what warnings call it.
        source: the id of the `reweight` call whose batch it is.

    Raises:
        ValueError: for weights of another shape.

    >>> import torch
    >>> target = WeightedTarget(torch.tensor([0, 1]), torch.tensor([1.0, 0.5]))
    >>> logits = torch.zeros(2, 2, requires_grad=True)
    >>> round(torch.nn.functional.cross_entropy(logits, target, reduction="sum").item(), 4)
    1.0397
    """

    @staticmethod
    def __new__(  # noqa: D102
        cls, target: Tensor, weights: Tensor, name: str = "a batch", source: str = ""
    ) -> "WeightedTarget":
        origin = Origin(name, (source,))
        made = cls.put_together(target, weights, origin)
        patch_libraries((WeightedTarget, WeightedLosses))
        MONITOR.add_batch(origin)
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _dispatch(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        name, ids = self.origin.name, self.origin.reweight_ids
        return rebuild_target, (plain(self), self.weights, name, list(ids))

    def __copy__(self) -> "WeightedTarget":
        return self.put_together(self, self.weights, self.origin)

    def __deepcopy__(self, memo: dict[int, Any]) -> "WeightedTarget":
        copied = self.put_together(plain(self).clone(), self.weights.clone(), self.origin)
        memo[id(self)] = copied
        return copied

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightedTarget({plain(self)!r}, weights={self.weights!r})"


# The compiler would trace the rules themselves, and lose its way in them.
@left_to_eager_mode
def _dispatch(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if "out" in kwargs:
        refuse_out_target(func, kwargs["out"])
    return rule_of(func)(func, args, kwargs)


def rebuild_target(
    target: Tensor, weights: Tensor, name: str, reweight_ids: list[str]
) -> WeightedTarget:
    """A target from its pickle: a batch that comes from a worker, or from a file."""
    made = WeightedTarget(target, weights, name, *reweight_ids[:1])
    made.origin = Origin(name, tuple(reweight_ids))
    return made
