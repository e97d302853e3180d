"""The processes that score together: torch.distributed if it is initialised, else this one."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

from flowdata.errors import FlowDataError
from flowdata.scoring.passes.rank_watch import SILENCE, RankWatch

T = TypeVar("T")

RANK_TIMEOUT = 600.0
"""Seconds after which a rank that does not come or does not get on is given up."""

_PASS_TIMEOUT = timedelta(days=30)

# All ranks make the same calls in the same order, so that each knows the number of a pass.
_PASSES = itertools.count()


class Ranks:
    """Rank and world size, and the two ways in which ranks exchange values.

    An error that leaves the ``with`` block of one rank is raised on the others too, as a
    FlowDataError that names the rank and quotes the error, and so is a rank that is gone.

    Args:
        timeout: seconds after which a rank that does not come or does not get on is given up.
    """

    def __init__(self, timeout: float = RANK_TIMEOUT) -> None:
        if not timeout > 0:
            raise ValueError(f"rank_timeout must be above 0 seconds, got {timeout}")
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self._timeout = timeout
        self._watch: RankWatch | None = None
        if together and (store := _default_store()) is not None:
            name = str(next(_PASSES))
            self._watch = RankWatch(store, name, self.rank, self.size, timeout)
        self._made_group: Any = None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._watch is not None:
            if error is not None:
                self._watch.report(error)
            self._watch.stop()
        if self._made_group is not None:
            dist.destroy_process_group(self._made_group)

    def watched(self, items: Iterator[T]) -> Iterator[T]:
        """What this rank makes, one after another, as long as all ranks are well.

        Raises:
            FlowDataError: when another rank stopped.
        """
        return items if self._watch is None else self._watch.watched(items)

    def run_on_first(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0 and give its result, or its error, to all ranks.

        Raises:
            FlowDataError: when another rank stopped.
        """
        if self.size == 1:
            return function()
        # An error has to travel too: ranks that wait for a result that never comes would hang.
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome = [function(), None]
            except Exception as error:
                outcome = [None, error]
        self._meet()
        with _explain_lost_rank():
            dist.broadcast_object_list(outcome, src=0, group=self._group())
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank; also waits for all of them.

        Raises:
            FlowDataError: when another rank stopped.
        """
        if self.size == 1:
            return [value]
        self._meet()
        values: list[Any] = [None] * self.size
        with _explain_lost_rank():
            dist.all_gather_object(values, value, group=self._group())
        return values

    def gather_on_first(self, value: T) -> list[T]:
        """The values of all ranks on rank 0; none elsewhere, where they need no memory.

        Raises:
            FlowDataError: when another rank stopped.
        """
        if self.size == 1:
            return [value]
        self._meet()
        values: list[Any] = [None] * self.size if self.rank == 0 else []
        with _explain_lost_rank():
            dist.gather_object(value, values or None, dst=0, group=self._group())
        return values

    def _meet(self) -> None:
        if self._watch is not None:
            self._watch.meet()

    def _group(self) -> Any:
        """A group for objects, made when all ranks are there.

        torch 2.13, all_gather_object sends objects from the device of the group's backend. With
        gloo that is the CPU, whatever the training uses: token losses need no GPU memory.
        """
        if self._made_group is None:
            # All ranks are there, but one may be stopped now, and values may be many. Without a
            # watch this is where ranks wait for each other, for as long as a pass takes.
            patience = timedelta(seconds=max(self._timeout, SILENCE))
            timeout = _PASS_TIMEOUT if self._watch is None else patience
            self._made_group = dist.new_group(backend="gloo", timeout=timeout)
        return self._made_group


def _default_store() -> Any:
    """The store that init_process_group was given or made; None where it cannot be had."""
    # torch 2.5 to 2.13 have no public name for it.
    with contextlib.suppress(ImportError, ValueError):
        from torch.distributed.distributed_c10d import _get_default_store

        return _get_default_store()
    return None


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
