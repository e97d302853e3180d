"""DrawIterator: one pass of a sampler over what is left of an epoch, chunk by chunk."""

import itertools
import operator
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, cast

from flowdata.core.cursor import Cursor

Items: TypeAlias = Callable[[Cursor, int, int], list[Any]]
"""What is drawn in steps [start, stop) from a place on."""


def rows_of(place: Cursor, start: int, stop: int) -> list[int]:
    """The rows of draws."""
    rows: list[int] = place.rows(start, stop).tolist()
    return rows


class PassOwner(Protocol):
    """Who knows where the next pass begins: a sampler's progress."""

    items: Items
    chunk: int
    """Steps that are computed at a time."""

    def upcoming(self) -> Cursor:
        """The place at which the next pass begins; asking for it changes nothing."""

    def begin(self, sampler_pass: "SamplerPass") -> Cursor:
        """Called at a pass's first draw: where it begins; the next pass is of the next epoch."""

    def place_of(self, state: Any) -> Cursor:
        """The place of a saved state, if it belongs here."""

    def load(self, state: Any) -> None:
        """Make the place of a saved state that of the next pass."""


class SamplerPass(Iterator[Iterator[Any]]):
    """One pass over what is left of an epoch: items in chunks, and how far it has come."""

    def __init__(self, owner: PassOwner) -> None:
        self._owner = owner
        self.saved_place: Cursor | None = None
        """Where a loader's saved state says that it begins, if one does."""
        self._start: Cursor | None = None
        self._asked = 0
        self._chunk: Iterator[Any] = iter(())
        self._iterator: Callable[[], DrawIterator | None] = _no_iterator
        self.finished = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no iterator yet.
        return self.__dict__ | {"_iterator": _no_iterator}

    @property
    def epoch(self) -> int:
        """The epoch that is drawn, or will be."""
        epoch: int = self.cursor.plan.epoch
        return epoch

    @property
    def started(self) -> bool:
        """Whether anything was drawn."""
        return self._start is not None

    @property
    def abandoned(self) -> bool:
        """Whether nobody can draw from it any more."""
        return self._iterator() is None

    @property
    def cursor(self) -> Cursor:
        """The place after the draws that were asked for."""
        if self._start is None:
            upcoming = self._owner.upcoming()
            return upcoming if self.saved_place is None else self.saved_place
        # What the chunk's iterator still holds was not asked for yet.
        return self._start.step(self._asked - operator.length_hint(self._chunk))

    def iterator(self) -> "DrawIterator":
        """The items of the chunks, one by one."""
        iterator = DrawIterator.over(self)
        self._iterator = weakref.ref(iterator)
        return iterator

    def load(self, state: Any) -> None:
        """Begin where a state was saved, and let the owner go on from there too.

        Raises:
            MismatchError: when the state is of other draws.
            RuntimeError: when something was drawn already.
        """
        place = self._owner.place_of(state)
        if self.started:
            raise RuntimeError("this iterator has drawn already: load the state into a fresh one")
        self._owner.load(state)
        self.saved_place = place

    def __next__(self) -> Iterator[Any]:
        if self._start is None:
            self._start = self._owner.begin(self)
        stop = min(self._asked + self._owner.chunk, len(self._start))
        if self._asked == stop:
            # Let go of this epoch's memory before the next one is computed.
            self._start = replace(self._start, plan=self._start.plan.released())
            self.finished = True
            raise StopIteration
        items = self._owner.items(self._start, self._asked, stop)
        self._asked = stop
        self._chunk = iter(items)
        return self._chunk


class DrawIterator(itertools.chain[Any]):
    """The iterator of a sampler, with the state that torchdata saves and loads.

    A subclass of ``itertools.chain`` steps through the chunks in C: a ``__next__`` in Python
    would cost more than everything else.
    """

    sampler_pass: SamplerPass

    @classmethod
    def over(cls, sampler_pass: SamplerPass) -> "DrawIterator":
        """The iterator of a pass."""
        iterator = cast(DrawIterator, cls.from_iterable(sampler_pass))
        iterator.sampler_pass = sampler_pass
        return iterator

    def __reduce__(self) -> Any:
        raise TypeError(
            "a pass of a sampler cannot be copied or pickled: save its state_dict(), and load it "
            "into iter() of another sampler"
        )

    def state_dict(self) -> dict[str, Any]:
        """As that of the sampler."""
        return self.sampler_pass.cursor.state()

    def load_state_dict(self, state: Any) -> None:
        """Continue from a state.

        Raises:
            MismatchError: see `FlowSampler.load_state_dict`.
            RuntimeError: when something was drawn already.
        """
        self.sampler_pass.load(state)


def _no_iterator() -> None:
    return None
