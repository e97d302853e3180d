"""Advice about epochs: who sets the one that is drawn, and who divides it between ranks."""

import contextlib
from typing import Any

from flowdata.errors import warn
from flowdata.guards.detection import Caller, find_caller

UNKNOWN = -1
"""In place of the epoch that is being drawn, for who does not know it."""


class SetEpochs:
    """The epochs that a loop has set, as against those that accelerate sets by itself.

    accelerate 1.15, data_loader.py: `DataLoaderShard.__iter__` calls ``set_epoch`` with its own
    count before each pass. In each process the count begins at 0, and it counts only those
    passes that came to their end.
    """

    def __init__(self) -> None:
        self.last: int | None = None
        """The epoch that the loop set last, or that was loaded; None if it never did."""
        self._counted: int | None = None
        """The one that accelerate has set after that."""

    def add(self, epoch: int, *, drawn: int | None) -> None:
        """An epoch is set; warn where accelerate's count is not what the loop meant.

        Args:
            epoch: the one that is to be drawn.
            drawn: the one that has been drawn since an epoch was set; None if none was.
        """
        caller = find_caller()
        if caller.fabric_iterates and drawn == epoch:
            warn(
                f"Fabric's loader draws epoch {epoch} a second time, because each loader that "
                "Fabric sets up counts its passes from 0: set one up for all epochs, or call "
                "sampler.set_epoch(epoch) before each"
            )
        if not caller.accelerate_iterates:
            self.last, self._counted = epoch, None
            return
        # It may set one twice, on two ways to the same sampler.
        if drawn is None and self.last not in (None, epoch) and self._counted != epoch:
            warn(
                f"epoch {self.last} was to be drawn, but accelerate's loader starts epoch {epoch}: "
                f"call set_epoch({self.last}) of the prepared loader before iterating over it"
            )
        elif caller.accelerate_skips and self.last != epoch:
            warn(
                f"accelerate's loader goes on in epoch {epoch}, because by its own count of passes "
                "this is the next and nobody named another: call set_epoch(epoch) of the prepared "
                "loader (and of the one that skip_first_batches made) before each epoch"
            )
        elif drawn == epoch:
            warn(
                f"accelerate's loader draws epoch {epoch} a second time, because it counts only "
                "the epochs that came to their end in this process: call set_epoch(epoch) of the "
                "prepared loader before each epoch"
            )
        self._counted = epoch


def advise_even_batches(caller: Caller, draws: int) -> None:
    """Warn where ranks would wait for batches of an epoch that one of them does not have.

    accelerate 1.15: with ``even_batches`` a `BatchSamplerShard` repeats first batches at the
    end; without, the last batches of an epoch may go to some of the ranks only.
    """
    uneven = False
    # What a framework has renamed, or counts in another way, raises here.
    with contextlib.suppress(Exception):
        uneven = _is_uneven(caller.batch_shard, draws)
    if uneven:
        warn(
            "with even_batches=False accelerate gives some ranks a batch less than others, and "
            "training in step would hang: choose an epoch_size that is a multiple of batch size x "
            "ranks, or drop_last=True, or leave even_batches on"
        )


def _is_uneven(shard: Any, draws: int) -> bool:
    if shard is None or shard.even_batches or shard.drop_last or not shard.batch_size:
        return False
    ranks, size = shard.num_processes, shard.batch_size
    if shard.split_batches:
        return bool(0 < draws % size <= size // ranks * (ranks - 1))
    return bool(-(-draws // size) % ranks)
