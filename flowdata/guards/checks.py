"""What the doors check when a framework names an epoch, or divides one."""

from flowdata.errors import warn
from flowdata.guards.asking import Asker, asker

ANY = -1
"""In place of the epoch that was begun, for a door that does not know."""


def named_by_loop(epoch: int, named: int | None, begun: int | None) -> int | None:
    """The epoch that the loop named last: this one, or where accelerate names it, still ``named``.

    In each process accelerate counts epochs from 0, and those only that came to their end.

    Args:
        epoch: the one that is being named.
        named: the one that the loop named before, or that was loaded; None if it never did.
        begun: the one that is drawn since the last naming; None if none is.
    """
    asked = asker()
    if not asked.accelerate:
        return epoch
    if begun is None and named not in (None, epoch):
        warn(
            f"epoch {named} was to be drawn, but accelerate's loader starts epoch {epoch}: call "
            f"set_epoch({named}) of the prepared loader before iterating over it"
        )
    elif asked.skips and named != epoch:
        warn(
            f"accelerate's loader goes on in epoch {epoch}, because after a restart it counts "
            "epochs from 0 and nobody named another: call set_epoch(epoch) of the prepared loader "
            "(and of the one that skip_first_batches made) before each epoch"
        )
    elif begun == epoch:
        warn(
            f"accelerate's loader draws epoch {epoch} a second time, because it counts only the "
            "epochs that came to their end in this process: call set_epoch(epoch) of the prepared "
            "loader before each epoch"
        )
    return named


def check_even(asked: Asker, draws: int) -> None:
    """Warn where ranks would wait for batches of an epoch that one of them does not have."""
    shard = asked.shard
    if shard is None or shard.even_batches or shard.drop_last or not shard.batch_size:
        return
    ranks, size = shard.num_processes, shard.batch_size
    uneven = -(-draws // size) % ranks
    if shard.split_batches:
        uneven = 0 < draws % size <= size // ranks * (ranks - 1)
    if uneven:
        warn(
            "with even_batches=False accelerate gives some ranks a batch less than others, and "
            "training in step would hang: choose an epoch_size that is a multiple of batch size x "
            "ranks, or drop_last=True, or leave even_batches on"
        )
