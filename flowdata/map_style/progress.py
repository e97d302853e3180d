"""SamplerProgress: where a sampler is, between passes and within one."""

import copy
from dataclasses import replace
from typing import Any

from flowdata.core.cursor import Cursor
from flowdata.core.permutation import CHUNK
from flowdata.core.plan import non_negative
from flowdata.guards.counts import EpochCount, is_thrown_away
from flowdata.guards.sampler import SamplerGuard
from flowdata.map_style.draw_iterator import DrawIterator, Items, SamplerPass, rows_of


class SamplerProgress:
    """The place at which the next pass begins, and the pass that is under way.

    Every pass begins the epoch after the last one, unless an epoch is set or a state loaded. A
    pass takes its place when it draws for the first time, not when it is made: frameworks make
    iterators before they set the epoch. What was loaded, or set, is drawn next, whatever a loader
    that counts its passes names, see `EpochCount`.

    Args:
        start: the first place.
        owner: name of the sampler's class, for errors.
        items: what is drawn in some steps from a place on.
        chunk: steps that are computed at a time.
    """

    def __init__(
        self, start: Cursor, *, owner: str, items: Items = rows_of, chunk: int = CHUNK
    ) -> None:
        self.items, self.chunk = items, chunk
        self._next = start
        self._running: SamplerPass | None = None
        self._began = start
        self._owner = owner
        self._guard = SamplerGuard()
        self._count = EpochCount()

    def __copy__(self) -> "SamplerProgress":
        copied = object.__new__(SamplerProgress)
        copied.__dict__ = self.__dict__ | {
            "_guard": copy.copy(self._guard),
            "_count": copy.copy(self._count),
        }
        return copied

    def upcoming(self) -> Cursor:
        """The place at which the next pass begins."""
        return self._next

    def began(self) -> Cursor:
        """The place at which the pass that is under way began; of none, that of the next one."""
        return self._next if self._running is None else self._began

    def iterate(self) -> DrawIterator:
        """The iterator of a new pass."""
        cursor = self._next
        self._guard.on_iter(
            self._owner, rank=cursor.rank, replicas=cursor.replicas, draws=len(cursor.plan)
        )
        return SamplerPass(self).iterator()

    def begin(self, sampler_pass: SamplerPass) -> Cursor:
        """Hand a pass its place; the next pass begins with the epoch after it."""
        saved = sampler_pass.saved_place
        place = self._next if saved is None else saved
        if saved is None and is_thrown_away():
            return place
        self._guard.on_first_draw(
            sampler_pass,
            position=place.position,
            at_saved_place=saved is not None,
            can_go_on=saved is not None and len(saved) > 0,
        )
        self._count.on_first_draw(place.plan.epoch)
        self._running = sampler_pass
        # What is computed of an epoch is let go of when its pass is over.
        self._began = replace(place, plan=place.plan.released())
        self._next = place.at(place.plan.epoch + 1)
        return place

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one, from its start; from a loaded place if that is in it."""
        meant = self._count.meant_by(non_negative(epoch, "epoch"))
        if meant is None:
            return
        self._guard.on_set_epoch(meant)
        if meant != self._next.plan.epoch:
            self._next = self._next.at(meant)
        self._running = None

    def save(self, position: int | None) -> dict[str, Any]:
        """The state at a position of the running epoch, by default at what was asked for."""
        place = self._next if self._running is None else self._running.cursor
        if position is None:
            self._guard.on_save()
        else:
            self._require_reached(non_negative(position, "position"), place)
            place = replace(place, position=position)
        return place.or_next_epoch().state()

    def _require_reached(self, position: int, place: Cursor) -> None:
        draws = len(place.plan)
        # The last batches of all ranks may go beyond the end, once the end was asked for.
        is_under_way = self._running is not None and place.position < draws
        if position > draws and (is_under_way or position >= 2 * draws):
            raise ValueError(
                f"position={position:,} is beyond epoch {place.plan.epoch}, which has {draws:,} "
                "draws: it counts those of the running epoch, over all ranks, not those of epochs "
                "before"
            )

    def place_of(self, state: Any) -> Cursor:
        """The place that a state was saved at.

        Raises:
            MismatchError: when the state is of other draws.
        """
        return self._next.load(state, owner=self._owner)

    def load(self, state: Any) -> None:
        """Continue from a state, which is refused as in `place_of`."""
        self._next = self.place_of(state).or_next_epoch()
        epoch = self._next.plan.epoch
        self._count.on_load(epoch)
        self._guard.on_load(epoch, self._next.position)
        self._running = None
