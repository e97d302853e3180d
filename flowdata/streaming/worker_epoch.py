"""WorkerEpoch: what one worker has to give of an epoch, and how far it is."""

from collections.abc import Iterator, Sequence

from flowdata.streaming.order import SlotOrder, Window
from flowdata.streaming.slots import Slots


class WorkerEpoch:
    """One worker's part of one epoch.

    What is counted are packs, where the stream makes packs of its draws.

    Attributes:
        epoch: its number.
        total: samples that this worker gives, those done before a resume included.
        done: samples that were given out.
        drawn: draws that those took; more than ``done`` where some were dropped.
        read: draws that were read, ahead of those given out.
        lost: draws that were dropped of packs which were given out all the same.
        ended: whether it gave out all.
    """

    def __init__(
        self, order: SlotOrder, slots: Slots, random_key: Sequence[int], ranks: int
    ) -> None:
        self._order, self._slots = order, slots
        self._random_key, self._ranks = random_key, ranks
        self.epoch = order.epoch
        self.total = len(slots)
        self.done = self.drawn = self.read = self.lost = 0
        self.ended = False

    def windows(self) -> Iterator[tuple[Window, int]]:
        """The windows from the next draw on; after the last draw, the first comes once more."""
        done = self.read % self.total
        return self._order.windows(self._slots, self._random_key, done, ranks=self._ranks)
