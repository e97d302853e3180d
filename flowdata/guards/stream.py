"""StreamGuard: advice to the user of FlowShards, from who reads it."""

from collections.abc import Callable

from flowdata.errors import warn
from flowdata.guards.detection import find_caller, items_per_fetch, stream_divider
from flowdata.guards.epochs import SetEpochs


class StreamGuard:
    """Warns of, or refuses, what a framework does to a stream that has divided itself."""

    def __init__(self) -> None:
        self._set_epochs = SetEpochs()
        self._epoch_was_set = False
        self._has_advised = False

    def __copy__(self) -> "StreamGuard":
        copied = StreamGuard()
        copied._set_epochs.last = self._set_epochs.last
        copied._epoch_was_set = self._epoch_was_set
        copied._has_advised = self._has_advised
        return copied

    def on_set_epoch(self, epoch: int, *, drawn: int | None) -> None:
        """An epoch is set, and another may have been drawn since `set_epoch` was last called."""
        # Before the first call, workers may have begun only because accelerate prepares them.
        self._set_epochs.add(epoch, drawn=drawn if self._epoch_was_set else None)
        self._epoch_was_set = True

    def on_started_workers(self, epoch: int, begun: Callable[[], int | None]) -> bool:
        """Whether workers that accelerate has started already will draw the epoch that is named.

        accelerate 1.15, data_loader.py: `DataLoaderAdapter.__init__` asks a StatefulDataLoader for
        its state, and torchdata starts the workers to answer.

        Args:
            epoch: the one that is to be drawn.
            begun: gives the one that they have begun; None if that was before the last was set.

        Raises:
            RuntimeError: where they draw another one.
        """
        if not find_caller().accelerate_started_workers:
            return False
        found = begun()
        if epoch != found:
            raise RuntimeError(
                f"accelerate started the workers of this stream before it was known that epoch "
                f"{epoch} is to be drawn, and they draw {'another' if found is None else found}: "
                "call set_epoch of the stream, or load its state, before accelerator.prepare()"
            )
        return True

    def on_load(self, epoch: int) -> None:
        """A state is loaded, from which the next pass is to go on."""
        self._set_epochs.last = epoch

    def on_len(self) -> None:
        """Warn where Lightning resumes, and nobody tells the stream from where."""
        if self._has_advised or not find_caller().lightning_resumes:
            return
        self._has_advised = True
        warn(
            "Lightning resumes from a checkpoint without saying where in which epoch FlowShards is "
            "to go on: add flowdata.frameworks.lightning.FlowCallback to the Trainer's callbacks, "
            "from the first run on"
        )

    def on_begin(self, *, ranks: int, items: int | None) -> None:
        """A pass begins.

        Args:
            ranks: between which the stream has divided its epoch.
            items: that a loader has to take from a worker at a time, if it matters.

        Raises:
            RuntimeError: where a framework divides what was divided already.
            ValueError: where a loader takes another number of items at a time.
        """
        if ranks > 1 and (framework := stream_divider()):
            raise RuntimeError(
                f"{framework} divides this stream between ranks, which it has done "
                "already: most of it would be lost. Do not prepare its loader, or give FlowShards "
                "num_replicas=1 and rank=0, so that each rank reads all and keeps its part"
            )
        found = items_per_fetch() if items is not None else None
        if found is not None and found != items:
            raise ValueError(
                f"the DataLoader takes {found} items at a time from a worker, FlowShards expects "
                f"{items}: positions to resume from would mean other draws. Give FlowShards the "
                "batch_size of the DataLoader (1 for batch_size=None), or, after .batched(), give "
                "the DataLoader batch_size=None"
            )
