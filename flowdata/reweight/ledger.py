"""Ledger: whether the weights of a batch came into a loss, and the warning when they did not."""

import contextlib
import functools
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import get_worker_info

from flowdata.errors import warn
from flowdata.frameworks.asking import ranks

_ACCELERATE = "accelerate.data_loader"
_DISPATCHER = "DataLoaderDispatcher."
_AUTOGRAD = "torch.autograd.function"
_warned: set[str] = set()
_weighted: set[str] = set()


class Ledger:
    """The account of one batch, shared by all targets that are cut from it.

    It warns when the batch is gone, its weights were in no loss with a gradient, and yet it was
    trained on: the plain target was looked at with gradients on or inside a custom autograd
    function, or an optimizer took a step without weights, and no batch of the same ``reweight``
    ever came into a loss. It warns once for each ``reweight``, in the process that trains.

    Args:
        name: what the warning calls the batch.
        source: the ``reweight`` it came from.
        parts: ledgers of batches that were joined to this one.
    """

    def __init__(self, name: str, source: str = "", parts: Iterable["Ledger"] = ()) -> None:
        self.name, self.source = name, source
        self.consumed = self.used = False
        self._parts = tuple(parts)
        self._checked = False
        if get_worker_info() is None:
            _watch_steps()
        self._born = _Steps.without_weights

    def settle(self, result: Any) -> None:
        """Weights were multiplied into a result: with a gradient, that is what they are for."""
        results = result if isinstance(result, list | tuple) else [result]
        if any(isinstance(item, torch.Tensor) and item.requires_grad for item in results):
            self._consume()
        elif _in_autograd_function():
            self.used = True

    def look(self) -> None:
        """Something saw the target without its weights."""
        if not (self.used or self.consumed):
            self.used = torch.is_grad_enabled() or _in_autograd_function()

    def refuse_dispatch(self) -> None:
        """Make sure that the batch is not sent to other ranks, where it would have no weights.

        Raises:
            RuntimeError: when accelerate reads batches on one rank for all of them.
        """
        if self._checked:
            return
        self._checked = True
        if ranks() > 1 and _on_the_stack(_ACCELERATE, _DISPATCHER):
            raise RuntimeError(
                "accelerate reads this stream on rank 0 and sends plain tensors to the other "
                "ranks, without weights: let each rank read its own, by "
                "Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False)), "
                'for a Trainer accelerator_config={"dispatch_batches": False}'
            )

    def _consume(self) -> None:
        self.consumed = _Steps.weighted = True
        _weighted.add(self.source)
        for part in self._parts:
            part._consume()

    def __del__(self) -> None:
        # Of a loop that does weight, a batch is left over: one that was read ahead.
        stepped = _Steps.without_weights > self._born and self.source not in _weighted
        if self.consumed or not (self.used or stepped) or self.source in _warned:
            return
        _warned.add(self.source)
        # What is alive when the interpreter ends cannot be warned of.
        with contextlib.suppress(ImportError, TypeError, AttributeError):
            warn(
                f"the weights of {self.name} did not come into any loss: its target was used in a "
                "way that flowdata cannot weight (NumPy, a custom autograd function, a fused "
                "kernel, nn.DataParallel?). Register the loss with flowdata.register_loss, or take "
                'the explicit weights: reweight(..., entry="flow_weight") and '
                "flowdata.weighted_mean"
            )


class _Steps:
    """Optimizer steps of this process."""

    weighted = False
    """Whether weights came into a loss since the last step."""
    without_weights = 0
    """Steps before which none did."""


@functools.cache
def _watch_steps() -> None:
    register_optimizer_step_post_hook(_stepped)


def _stepped(*_: Any) -> None:
    if not _Steps.weighted:
        _Steps.without_weights += 1
    _Steps.weighted = False


def _in_autograd_function() -> bool:
    """Whether a custom autograd function runs: there gradients are off, though it is training."""
    return not torch.is_grad_enabled() and _on_the_stack(_AUTOGRAD, "Function.apply")


def _on_the_stack(module: str, name: str) -> bool:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        here = frame.f_code.co_qualname.startswith(name)
        if here and frame.f_globals.get("__name__") == module:
            return True
    return False
