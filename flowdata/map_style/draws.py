"""Draws: one pass of a sampler over an epoch, chunk by chunk."""

import itertools
import operator
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from flowdata.core.permutation import CHUNK
from flowdata.core.plan import EpochPlan

if TYPE_CHECKING:
    from flowdata.map_style.sampler import FlowSampler


class Draws(Iterator[Iterator[int]]):
    """One pass over an epoch, chunk by chunk; knows the global position at any time."""

    def __init__(self, sampler: "FlowSampler") -> None:
        self._sampler = sampler
        self._origin: tuple[int, int] | None = None
        self._plan: EpochPlan | None = None
        self._asked = 0
        self._chunk: Iterator[int] = iter(())
        self.untold = self.prepared = self.ahead = self.finished = False
        self.iterator: weakref.ref[DrawIterator] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"iterator": None}

    @property
    def started(self) -> bool:
        """Whether anything was drawn."""
        return self._plan is not None

    @property
    def restored(self) -> bool:
        """Whether a loader's saved state says where it begins, and something is left there."""
        return self._origin is not None and self._sampler._draws_left(self._origin[1]) > 0

    @property
    def read_ahead(self) -> bool:
        """Whether accelerate may hold a batch of it that nobody has trained on."""
        return self.ahead and not (self.finished and self.dropped)

    @property
    def dropped(self) -> bool:
        """Whether nobody can draw from it any more."""
        return self.iterator is None or self.iterator() is None

    @property
    def epoch(self) -> int:
        """The epoch that is drawn, or will be."""
        return self._sampler.epoch if self._origin is None else self._origin[0]

    @property
    def position(self) -> int:
        """Draws of the epoch that were asked for, over all ranks."""
        if self._origin is None:
            return self._sampler._position
        taken = self._asked - operator.length_hint(self._chunk)
        return min(self._origin[1] + taken * self._sampler.num_replicas, len(self._sampler._plan))

    def start_at(self, epoch: int, position: int) -> None:
        """Draw from there, whatever the sampler would draw next."""
        self._origin = epoch, position

    def __next__(self) -> Iterator[int]:
        if self._plan is None:
            self._plan = self._begin()
        assert self._origin is not None
        sampler, first = self._sampler, self._origin[1]
        stop = min(self._asked + CHUNK, sampler._draws_left(first))
        if self._asked == stop:
            # Let go of this epoch's memory before the next one is computed.
            self._plan = self._plan.at_epoch(self.epoch + 1)
            self.finished = True
            raise StopIteration
        steps = np.arange(self._asked, stop, dtype=np.int64)
        draws = first + sampler.rank + steps * sampler.num_replicas
        rows = self._plan.rows(draws % len(self._plan))
        self._asked = stop
        self._chunk = iter(rows.tolist())
        return self._chunk

    def _begin(self) -> EpochPlan:
        sampler = self._sampler
        if self._origin is not None:
            sampler._go_to(*self._origin)
        epoch, position, plan = sampler._begin(self)
        self._origin = epoch, position
        return plan


class DrawIterator(itertools.chain[int]):
    """The iterator of a FlowSampler, with the state that torchdata saves and loads.

    A subclass of ``itertools.chain`` steps through the chunks in C: a ``__next__`` in Python
    would cost more than everything else. The position comes from what the current chunk's
    iterator still holds.
    """

    _draws: Draws

    @classmethod
    def over(cls, draws: Draws) -> "DrawIterator":
        """The iterator of a pass."""
        iterator = cast(DrawIterator, cls.from_iterable(draws))
        iterator._draws = draws
        draws.iterator = weakref.ref(iterator)
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """As that of the sampler."""
        return self._draws._sampler._state(self._draws.epoch, self._draws.position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            MismatchError: see `FlowSampler.load_state_dict`.
            RuntimeError: when something was drawn already.
        """
        sampler = self._draws._sampler
        epoch, position = sampler._checked(state)
        if self._draws.started:
            raise RuntimeError("this iterator has drawn already: load the state into a fresh one")
        sampler.load_state_dict(state)
        self._draws.start_at(epoch, position)
