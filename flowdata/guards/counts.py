"""EpochCount: epochs that a framework's loader counts by itself, beside those that were asked for.

Some frameworks name an epoch at each ``iter()``, from a count of their own that begins at 0 in
every process: what was loaded, or set by the loop, would be lost. So their count is taken for what
it is, the number of passes. This decides what is drawn, and does not depend on the switch of
guards.
"""

import contextlib
from enum import Enum, auto
from types import FrameType

from flowdata.guards.detection import SETS_EPOCHS
from flowdata.guards.stack import frames

# accelerate 1.15, data_loader.py: `DataLoaderShard` and `DataLoaderDispatcher` name `iteration`.
# Lightning 2.6, fabric/wrappers.py: `_FabricDataLoader` names `_num_iter_calls`;
# pytorch/loops/fit_loop.py: `_FitLoop` names the epochs that it has processed.
# torchdata 0.11, nodes/adapters.py: `SamplerWrapper` names `epoch`, where no state is given it.
_FIT_LOOP = "_FitLoop.on_advance_start"
_COUNTING = {
    "accelerate.data_loader": ".__iter__",
    "lightning.fabric.wrappers": "_FabricDataLoader.__iter__",
    "lightning_fabric.wrappers": "_FabricDataLoader.__iter__",
    "lightning.pytorch.loops.fit_loop": _FIT_LOOP,
    "pytorch_lightning.loops.fit_loop": _FIT_LOOP,
    "torchdata.nodes.adapters": "SamplerWrapper.reset",
}
# A loader's name comes through functions of its own package.
_PASSED_THROUGH = (
    "flowdata.guards.",
    "flowdata.map_style.",
    "accelerate.",
    "lightning.",
    "lightning_fabric.",
    "pytorch_lightning.",
    "torchdata.",
)


class _Name(Enum):
    """Who names an epoch."""

    OF_THE_LOOP = auto()
    COUNTED = auto()
    BESIDE_FLOW_CALLBACK = auto()


class EpochCount:
    """Which epoch is meant where one is named: by the loop itself, or by a framework that counts.

    A name that the loop gives is taken as it is. Where a framework counts, the pass after a state
    was loaded, or an epoch was set, is of that epoch, and its next pass of the one after. Beside
    a FlowCallback, which sets all epochs, the count of Lightning's trainer means nothing.
    """

    def __init__(self) -> None:
        self._awaited: int | None = None
        """The epoch that was loaded or set by the loop, up to the next number or first draw."""
        self._ahead = 0
        """How far what is drawn is ahead of the count."""
        self._counted: int | None = None
        """The last number that was counted."""
        self._undrawn = False
        """Whether nothing was drawn since."""

    def meant_by(self, name: int) -> int | None:
        """The epoch that is to be drawn where ``name`` is named; None if it means nothing."""
        who = _who_names()
        if who is _Name.BESIDE_FLOW_CALLBACK:
            return None
        if who is _Name.OF_THE_LOOP:
            self._awaited, self._ahead, self._counted = name, 0, None
            return name
        if self._awaited is not None:
            self._ahead, self._awaited = self._awaited - name, None
        elif self._counted is None or name not in (self._counted, self._counted + 1):
            # Another loader, or the same, has begun to count anew.
            self._ahead = 0
        self._counted, self._undrawn = name, True
        return name + self._ahead

    def on_load(self, epoch: int) -> None:
        """A state of that epoch is loaded; the number of this pass may have been given already."""
        self._awaited = epoch
        if self._counted is not None and self._undrawn:
            self._ahead = epoch - self._counted

    def on_first_draw(self) -> None:
        """A pass begins."""
        self._awaited, self._undrawn = None, False


def _who_names() -> _Name:
    for module, function, frame in frames():
        if module in _COUNTING and function.endswith(_COUNTING[module]):
            beside = function == _FIT_LOOP and _has_callback(frame)
            return _Name.BESIDE_FLOW_CALLBACK if beside else _Name.COUNTED
        if not f"{module}.".startswith(_PASSED_THROUGH):
            break
    return _Name.OF_THE_LOOP


def _has_callback(frame: FrameType) -> bool:
    """Whether a trainer of Lightning has a callback that sets epochs."""
    with contextlib.suppress(Exception):
        callbacks = frame.f_locals["self"].trainer.callbacks
        return any(getattr(callback, SETS_EPOCHS, False) for callback in callbacks)
    return False
