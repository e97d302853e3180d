"""Checks that raise where weights would be lost."""

from typing import Any

from torch import Tensor

from flowdata.errors import FlowDataError
from flowdata.guards.ranks import group_size
from flowdata.guards.stack import is_running
from flowdata.reweight.operation_names import operation


class UnweightedLossError(FlowDataError):
    """A gradient would flow through a target, but not through its weights."""


def name_of(func: Any) -> str:
    """What errors call an operation."""
    return operation(func) or repr(func)


def needs_gradient(result: Any) -> bool:
    """Whether a result, or one in a list or tuple of them, is a tensor that needs a gradient."""
    results = result if isinstance(result, list | tuple) else [result]
    return any(isinstance(item, Tensor) and item.requires_grad for item in results)


def refuse_gradient(func: Any, result: Any) -> None:
    """Make sure that no gradient flows past the weights.

    Args:
        func: the operation.
        result: what it gave, or is to write into a target.

    Raises:
        UnweightedLossError: naming the operation.
    """
    if needs_gradient(result):
        raise UnweightedLossError(
            f"{name_of(func)} mixes a weighted target with a tensor that needs a gradient, and "
            "flowdata does not know how to weight it. In a loss: use one of torch.nn.functional, "
            "teach it yours with flowdata.register_loss(function, handler), or take the explicit "
            'weights: reweight(..., entry="flow_weight") and flowdata.weighted_mean. In a metric: '
            "give it predicted.detach(). As an input of the model: "
            "flowdata.reweight.plain(target)"
        )


def refuse_out(func: Any, kwargs: dict[str, Any]) -> None:
    """Make sure that a result with weights is not written into a tensor that has none.

    Raises:
        UnweightedLossError: for an ``out=``.
    """
    if kwargs.get("out") is not None:
        raise UnweightedLossError(
            f"{name_of(func)}(..., out=) writes a weighted target into a tensor without weights: "
            "leave out out= and use what is returned, or take the target without weights, by "
            "flowdata.reweight.plain(target)"
        )


def refuse_dispatch() -> None:
    """Make sure that a batch is not sent to other ranks, where it would have no weights.

    Raises:
        RuntimeError: when accelerate reads batches on one rank for all of them.
    """
    # accelerate 1.15, `DataLoaderDispatcher.__iter__` and `._fetch_batches`: rank 0 reads,
    # joins and slices batches, and broadcasts their memory as plain tensors.
    if group_size() > 1 and is_running("accelerate.data_loader", "DataLoaderDispatcher."):
        raise RuntimeError(
            "accelerate reads this stream on rank 0 and sends plain tensors to the other "
            "ranks, without weights: let each rank read its own, by "
            "Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False)), "
            'for a Trainer accelerator_config={"dispatch_batches": False}'
        )
