"""The processes that score together: torch.distributed if it is initialised, else this one."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from flowdata.errors import FlowDataError

T = TypeVar("T")

# Ranks meet only before and after the pass, which may take as long as it takes.
_MEETING_TIMEOUT = timedelta(days=30)


class Ranks:
    """Rank and world size, and the two ways in which ranks exchange values."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        # torch 2.13, all_gather_object sends objects from the device of the group's backend. With
        # gloo that is the CPU, whatever the training uses: token losses need no GPU memory.
        self._group: Any = (
            dist.new_group(backend="gloo", timeout=_MEETING_TIMEOUT) if together else None
        )

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 and give its result, or its error, to all ranks."""
        if self._group is None:
            return function()
        # An error has to travel too: ranks that wait for a result that never comes would hang.
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome = [function(), None]
            except Exception as error:
                outcome = [None, error]
        with _explain_lost_rank():
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank; also waits for all of them."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with _explain_lost_rank():
            dist.all_gather_object(values, value, group=self._group)
        return values


@contextlib.contextmanager
def _explain_lost_rank() -> Iterator[None]:
    """Turn the error of a rank that is gone into one that says so.

    Raises:
        FlowDataError: when another rank is gone.
    """
    try:
        yield
    except RuntimeError as error:
        raise FlowDataError(
            "another rank stopped; its message says why. What was saved is kept, and the same "
            "call goes on from there"
        ) from error


class TorchrunRank(NamedTuple):
    """The rank of this process among all that torchrun started, and among those of its machine."""

    rank: int = 0
    local_rank: int = 0


@contextlib.contextmanager
def join_torchrun() -> Iterator[TorchrunRank]:
    """Join the processes torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield TorchrunRank()
        return
    # Ranks score apart and exchange Python objects only: NCCL would be of no use.
    dist.init_process_group("gloo")
    try:
        yield TorchrunRank(dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
