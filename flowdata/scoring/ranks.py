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
_PATIENCE = timedelta(days=30)


class Ranks:
    """Rank, world size and the two ways to meet."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        # Objects travel over gloo, whatever the training uses.
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if together else None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 and give its result, or its error, to all ranks."""
        if self._group is None:
            return function()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome = [function(), None]
            except Exception as error:
                outcome = [None, error]
        with _meeting():
            dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, by rank; also waits for all of them."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with _meeting():
            dist.all_gather_object(values, value, group=self._group)
        return values


@contextlib.contextmanager
def _meeting() -> Iterator[None]:
    """Say what it means when ranks do not meet.

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


class Place(NamedTuple):
    """Where this process is among those that torchrun started."""

    rank: int = 0
    local_rank: int = 0


@contextlib.contextmanager
def joined_by_torchrun() -> Iterator[Place]:
    """Join the processes torchrun started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place()
        return
    dist.init_process_group("gloo")
    try:
        yield Place(dist.get_rank(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
