"""Whether the weights of each `reweight` reach a gradient, and a warning if they do not."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import get_worker_info

from flowdata.errors import warn
from flowdata.guards.switch import enabled
from flowdata.reweight.target_data import Origin

PATIENCE = 3
"""Steps in a row without weights after which it warns."""


class UnusedWeightsMonitor:
    """Counts the optimizer steps of this process that left the weights of a batch unused.

    The rule: it warns once per `reweight()` call, after three optimizer steps in a row before each
    of which a new batch of it was read, and no gradient came through any weights.

    So it warns at the third step of a training whose loss never sees the weights; one of fewer
    steps gets no warning. Nor do batches read ahead, looked at or evaluated, as no step follows on
    each of them; a second training beside, whose steps follow on no batch of this `reweight`; a
    step of another optimizer between the batches and their own, as one is not three.

    Steps are those of any `torch.optim.Optimizer`; batches are those made where gradients are on,
    in the process that trains. Targets made by hand count as of one `reweight`.
    """

    def __init__(self) -> None:
        self._watches_steps = False
        self.reset()

    def reset(self) -> None:
        """Forget all batches and steps so far, as in a new process."""
        # All by the id of a `reweight`, as an `Origin` has it.
        self._unused: dict[str, str] = {}
        """The name of the last batch that was read since a step without weights."""
        self._steps: dict[str, int] = {}
        """Steps in a row that are counted."""
        self._weighted: set[str] = set()
        """Where gradients came through weights since the last step."""
        self._warned: set[str] = set()

    def add_batch(self, origin: Origin) -> None:
        """A new batch was read."""
        if get_worker_info() is not None or not torch.is_grad_enabled() or not enabled():
            return
        if not self._watches_steps:
            self._watches_steps = True
            register_optimizer_step_post_hook(self._after_step)
        self._unused.update(dict.fromkeys(origin.reweight_ids, origin.name))

    def watch_gradient(self, loss: Any, origin: Origin) -> None:
        """Note when a gradient comes through a loss, or losses, that weights are multiplied into.

        It is the gradient that counts: a loss may be computed to be logged only.
        """
        for item in loss if isinstance(loss, list | tuple) else [loss]:
            if isinstance(item, Tensor) and item.requires_grad:
                item.register_hook(  # type: ignore[no-untyped-call]
                    lambda _: self._weighted.update(origin.reweight_ids)
                )

    def _after_step(self, *_: Any) -> None:
        if self._weighted:
            # Other trainings may be between two steps of theirs: this one tells nothing of them.
            for reweight_id in self._weighted:
                self._unused.pop(reweight_id, None)
                self._steps.pop(reweight_id, None)
            self._weighted.clear()
            return
        unused, self._unused = self._unused, {}
        self._steps = {reweight_id: self._steps.get(reweight_id, 0) + 1 for reweight_id in unused}
        for reweight_id, name in unused.items():
            steps = self._steps[reweight_id]
            if steps >= PATIENCE and reweight_id not in self._warned and enabled():
                self._warned.add(reweight_id)
                self._warn(name)

    def _warn(self, name: str) -> None:
        warn(
            f"the weights of {name} did not come into any loss, nor did those of the batches "
            f"before it: an optimizer took {PATIENCE} steps without them. flowdata cannot weight "
            "what it does not see (NumPy, torch.tensor(target), a custom autograd function, a "
            "fused kernel, nn.DataParallel?). Register the loss with flowdata.register_loss, or "
            'take the explicit weights: reweight(..., entry="flow_weight") and '
            "flowdata.weighted_mean"
        )


MONITOR = UnusedWeightsMonitor()
"""That of this process."""
