"""Ledger: whether the weights of a batch came into a loss, and the warning when they did not."""

import atexit
import functools
import sys
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import get_worker_info

from flowdata.errors import warn
from flowdata.guards.asking import ranks

_ACCELERATE = "accelerate.data_loader"
_DISPATCHER = "DataLoaderDispatcher."
_AUTOGRAD = "torch.autograd.function"
_AT_ONCE, _AT_SECOND, _LATER = 1, 2, 50
"""Which of the batches that were lost in a row is warned of."""
_A_ROW = 10
"""Steps within which one batch is lost after the other."""
_LOOKED = "its target was looked at where gradients are on"
_STEPPED = "an optimizer took steps without them"


class Ledger:
    """The account of one batch, shared by all targets that are cut from it.

    When the batch is gone without a gradient of its weighted loss, it warns, if

    - an optimizer took a step without weights while the batch was there,
    - or after it was gone, and soon after another one too (one may have been only looked at),
    - or the plain target was looked at with gradients on, or inside a custom autograd function,
      and its weights were in no loss.

    A ``reweight`` that did weight steps loses batches that were read ahead, or are of no use to
    another training beside: it is warned of after fifty such losses in a row. Steps tell nothing
    of a batch that was read without gradients, to evaluate. The warnings come once for each
    ``reweight`` (once more where only a look came first), in the process that trains.

    Args:
        name: what the warning calls the batch.
        source: the ``reweight`` it came from.
    """

    def __init__(self, name: str, source: str = "") -> None:
        self.name, self.source = name, source
        self.used = self.weighted = self.trained = False
        self._checked = False
        self._watched = get_worker_info() is None and torch.is_grad_enabled()
        if self._watched:
            _watch_steps()
            _alive.add(self)
        self._born = _Steps.without_weights

    @property
    def batches(self) -> "tuple[Ledger, ...]":
        """The batches that it is of."""
        return (self,)

    def settle(self, result: Any) -> None:
        """Weights were multiplied into a result: with a gradient, that is what they are for.

        They count as trained on when the gradient comes, as a loss may be only logged.
        """
        results = result if isinstance(result, list | tuple) else [result]
        for item in results:
            if isinstance(item, torch.Tensor) and item.requires_grad:
                self.weighted = True
                item.register_hook(self._train)  # type: ignore[no-untyped-call]
        if not self.weighted and _in_autograd_function():
            self.used = True

    def look(self) -> None:
        """Something saw the target without its weights."""
        if not (self.used or self.weighted):
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

    def _train(self, _: Any) -> None:
        self.trained = _Steps.weighted = True
        account = _accounts[self.source]
        account.weighted, account.lost = True, 0

    def __del__(self) -> None:
        # While Python ends, what is needed is gone in part; `_at_exit` was there before.
        if sys is not None and not sys.is_finalizing():
            self.close()

    def close(self) -> None:
        """No more can come of this batch."""
        if self.trained:
            return
        account = _accounts[self.source]
        if self._watched and _Steps.without_weights > self._born:
            account.lose(self.name, _AT_ONCE)
        elif self._watched:
            # Its step may be still to come.
            _Steps.gone[self.source] = self.name
        if self.used and not self.weighted:
            account.warn(self.name, _LOOKED)


class Joined:
    """The account of batches that were joined: that of each of them."""

    batches: tuple[Ledger, ...]

    def __init__(self, ledgers: "Iterable[Ledger | Joined]") -> None:
        # Batches that are done with need no account, so that one may go on joining.
        batches = {id(batch): batch for ledger in ledgers for batch in ledger.batches}
        self.batches = tuple(batch for batch in batches.values() if not batch.trained)
        self.name = " with ".join(batch.name for batch in self.batches[:2]) or "a batch"
        self.source = self.batches[0].source if self.batches else ""

    def settle(self, result: Any) -> None:
        """Settle all."""
        for batch in self.batches:
            batch.settle(result)

    def look(self) -> None:
        """All were looked at."""
        for batch in self.batches:
            batch.look()

    def refuse_dispatch(self) -> None:
        """As for each batch.

        Raises:
            RuntimeError: as there.
        """
        for batch in self.batches:
            batch.refuse_dispatch()


@dataclass
class _Account:
    """What became of the batches of one ``reweight``."""

    weighted: bool = False
    """Whether a gradient ever came through its weights."""
    lost: int = 0
    """Times in a row that a batch was not weighted, and a step was taken without weights."""
    last: int = 0
    """When that was, in steps without weights."""
    said: set[str] = field(default_factory=set)

    def lose(self, name: str, patience: int) -> None:
        """A batch had no part in a step."""
        now = _Steps.without_weights
        self.lost = self.lost + 1 if now - self.last <= _A_ROW else 1
        self.last = now
        if self.lost >= (_LATER if self.weighted else patience):
            self.warn(name, _STEPPED)

    def warn(self, name: str, why: str) -> None:
        """Warn once; of a look not after a step."""
        if not self.said.isdisjoint((why, _STEPPED)):
            return
        self.said.add(why)
        warn(
            f"the weights of {name} did not come into any loss, and {why}: flowdata cannot weight "
            "what it does not see (NumPy, torch.tensor(target), a custom autograd function, a "
            "fused kernel, nn.DataParallel?). Register the loss with flowdata.register_loss, or "
            'take the explicit weights: reweight(..., entry="flow_weight") and '
            "flowdata.weighted_mean. To look without training, use "
            "flowdata.reweight.plain(target)"
        )


_accounts: dict[str, _Account] = defaultdict(_Account)
_alive: "weakref.WeakSet[Ledger]" = weakref.WeakSet()


class _Steps:
    """Optimizer steps of this process."""

    weighted = False
    """Whether a gradient came through weights since the last step."""
    without_weights = 0
    """Steps before which none did."""
    gone: ClassVar[dict[str, str]] = {}
    """The last batch of each ``reweight`` that is gone since the last step, without a loss."""


@functools.cache
def _watch_steps() -> None:
    register_optimizer_step_post_hook(_stepped)
    atexit.register(_at_exit)


def _at_exit() -> None:
    for ledger in list(_alive):
        ledger.close()


def _stepped(*_: Any) -> None:
    if not _Steps.weighted:
        _Steps.without_weights += 1
        for source, name in list(_Steps.gone.items()):
            _accounts[source].lose(name, _AT_SECOND)
    _Steps.gone.clear()
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
