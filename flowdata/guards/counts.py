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
_ACCELERATE, _BUILDS = "accelerate.data_loader", "DataLoaderAdapter.__init__"
_FIT_LOOP = "_FitLoop.on_advance_start"
_COUNTING = {
    _ACCELERATE: ".__iter__",
    "lightning.fabric.wrappers": "_FabricDataLoader.__iter__",
    "lightning_fabric.wrappers": "_FabricDataLoader.__iter__",
    "lightning.pytorch.loops.fit_loop": _FIT_LOOP,
    "pytorch_lightning.loops.fit_loop": _FIT_LOOP,
    "torchdata.nodes.adapters": "SamplerWrapper.reset",
}
_FINISHED_ITERATOR = (
    "torchdata.stateful_dataloader.stateful_dataloader",
    "_StatefulMultiProcessingDataLoaderIter.__init__",
)
# A loader's name comes through functions of its own package, and `set_epoch` of any other that
# stands between.
_PASSED_THROUGH = (
    "flowdata.guards.",
    "flowdata.map_style.",
    "flowdata.streaming.",
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
        self._is_of_loop = False
        """Whether the last epoch was set by the loop, or loaded, before it was counted."""

    @property
    def is_counted(self) -> bool:
        """Whether only a loader's count said which epoch is to be drawn."""
        return self._counted is not None and not self._is_of_loop

    def meant_by(self, name: int) -> int | None:
        """The epoch that is to be drawn where ``name`` is named; None if it means nothing."""
        who = _who_names()
        if who is _Name.BESIDE_FLOW_CALLBACK:
            return None
        if who is _Name.OF_THE_LOOP:
            self._awaited, self._ahead, self._counted = name, 0, None
            return name
        if name != self._counted or not self._undrawn:
            # Else it is named a second time, on another way through the same loader.
            self._is_of_loop = self._awaited is not None
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

    def on_pass_elsewhere(self, epoch: int) -> None:
        """A worker has loaded the state of a loader, and drawn that epoch."""
        self.on_load(epoch)
        self.on_first_draw(epoch)

    def on_first_draw(self, epoch: int) -> None:
        """A pass over that epoch begins."""
        if self._awaited is not None:
            # It had no number: a look at what is drawn, say. accelerate draws on behalf of the
            # first pass of a loader with workers and a state while it builds the loader.
            is_built = any(
                module == _ACCELERATE and function == _BUILDS for module, function, _ in frames()
            )
            self._awaited = epoch if is_built else epoch + 1
        self._undrawn = False


def is_thrown_away() -> bool:
    """Whether nothing of the pass that begins is given out.

    torchdata 0.11, stateful_dataloader.py: where a loader with workers loads a state of an epoch's
    end, `_StatefulMultiProcessingDataLoaderIter.__init__` leaves out all batches of an epoch, and
    `StatefulDataLoader.__iter__` makes another iterator.
    """
    for module, function, frame in frames():
        if (module, function) == _FINISHED_ITERATOR:
            with contextlib.suppress(Exception):
                return bool(frame.f_locals["next_iter_state"]["_iterator_finished"])
    return False


def _who_names() -> _Name:
    for module, function, frame in frames():
        if module in _COUNTING and function.endswith(_COUNTING[module]):
            beside = function == _FIT_LOOP and _has_callback(frame)
            return _Name.BESIDE_FLOW_CALLBACK if beside else _Name.COUNTED
        passes_on = function.rpartition(".")[2] == "set_epoch"
        if not (passes_on or f"{module}.".startswith(_PASSED_THROUGH)):
            break
    return _Name.OF_THE_LOOP


def _has_callback(frame: FrameType) -> bool:
    """Whether a trainer of Lightning has a callback that sets epochs."""
    with contextlib.suppress(Exception):
        callbacks = frame.f_locals["self"].trainer.callbacks
        return any(getattr(callback, SETS_EPOCHS, False) for callback in callbacks)
    return False
