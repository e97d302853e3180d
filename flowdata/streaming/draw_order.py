"""The order of a streamed epoch whose slots are draws."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrangement import Arrangement
from flowdata.core.by_length import ByLength
from flowdata.core.permutation import Purpose, random_bits, shuffled, sorted_at_random
from flowdata.core.shard_plan import ShardPlan
from flowdata.core.strata import Strata, deal_to_batches
from flowdata.streaming.order import Part, Share, SlotOrder, Window
from flowdata.streaming.slots import Slots

# The first windows of a worker are an eighth, a quarter and a half of the others: what comes out of
# a window comes only when all of it was read, and the first batch shall not have to wait for that.
_FIRST_WINDOWS = (8, 4, 2)


class StreamOrder(SlotOrder):
    """The rows of one epoch's draws, and their windows.

    Args:
        plan: the draws of the epoch.
        window: draws that are mixed, at most 65,536 less the shards open.
        shards_open: shards that are gone through at once.
    """

    def __init__(self, plan: ShardPlan, *, window: int, shards_open: int) -> None:
        super().__init__(plan.epoch, plan.first_slots, shards_open)
        self._plan, self._window = plan, window
        self._shares: dict[int, float] = {}

    def _windows_of_group(self, share: Share, group: int) -> Iterator[Part]:
        """The windows over the shards of a group: each takes an equal part of all of them.

        Shards that are open together are read to their end before the next ones are opened, and
        all end at the same time.
        """
        ordinals, begin, end = share.of_group(group)
        counts = end - begin
        total, before = int(counts.sum()), share.before(group)
        bounds = _window_bounds(total, self._window, ramp=group == 0)
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            lows, highs = (begin + counts * bound // total for bound in (low, high))
            taken = lows < highs
            if taken.any():
                start = before + int((lows - begin).sum())
                yield Part(group, number, ordinals[taken], lows[taken], highs[taken], start)

    def _window_of(self, share: Share, part: Part, skip: int) -> tuple[Window, int]:
        """The window over a part, of which so many slots are done; and the draws of these."""
        rows = self._rows_of(share.slots, part)
        order = self._order_of(share, part)
        shards = self._plan.shard_order[part.ordinals].tolist()
        return Window(part.group, shards, rows, order, list(map(self._share_of, shards))), skip

    def _order_of(self, share: Share, part: Part) -> NDArray[np.int64]:
        """The order in which the slots of a part come out."""
        bits = random_bits(
            self._plan.seed,
            self.epoch,
            Purpose.WINDOW_ORDER,
            *share.random_key,
            part.group,
            part.number,
        )
        if (arrange := self._plan.arrange) is None:
            return shuffled(part.size, bits)
        rows = np.concatenate(self._rows_of(share.slots, part))
        batch = max(arrange.batch_size // share.ranks, 1)
        if isinstance(arrange, ByLength):
            ends = [
                self._place_at(share, border) for border in (part.start, part.start + part.size)
            ]
            lengths = np.asarray(arrange.lengths)[rows]
            return batches_by_length(lengths, batch, part.start, (ends[0], ends[1]), bits)
        codes = self._plan.strata_of(rows)
        assert codes is not None
        return deal_to_batches(codes.argsort(kind="stable"), batch, bits)

    def _place_at(self, share: Share, border: int) -> float:
        """Where among the sorted draws the batch is that goes over a border of windows."""
        bits = random_bits(
            self._plan.seed, self.epoch, Purpose.BY_LENGTH, *share.random_key, border
        )
        return (int(bits.random_raw()) >> 11) * 2.0**-53

    def _share_of(self, shard: int) -> float:
        if shard not in self._shares:
            if len(self._shares) >= 2 * self._shards_open:
                self._shares.clear()
            before = self._plan.draws_before(shard, keep=2 * self._shards_open)
            self._shares[shard] = np.count_nonzero(np.diff(before)) / max(before.size - 1, 1)
        return self._shares[shard]

    def _rows_of(self, slots: Slots, part: Part) -> list[NDArray[np.int64]]:
        """The rows of a window, of each of its shards, ascending."""
        found = []
        for ordinal, low, high in zip(
            part.ordinals.tolist(), part.lows.tolist(), part.highs.tolist(), strict=True
        ):
            shard = int(self._plan.shard_order[ordinal])
            # Windows are made ahead: those of the next shards, while these are being read.
            before = self._plan.draws_before(shard, keep=2 * self._shards_open)
            wanted = slots.cut(low, high).array() - self._plan.first_slots[ordinal]
            rows = np.searchsorted(before, wanted, side="right") - 1
            found.append(rows + self._plan.bounds[shard])
        return found


def batches_by_length(
    lengths: NDArray[np.int64],
    batch_size: int,
    start: int,
    places: tuple[float, float],
    random: np.random.Philox,
) -> NDArray[np.int64]:
    """An order of draws in which those of a batch are about as long, and batches at random.

    Batches go on over the borders of windows: what one needs of a window, at its start or end, is
    taken from a place of the sorted draws that both windows know.

    Args:
        lengths: of the draws, shape (m,).
        batch_size: draws of a batch.
        start: draws before these.
        places: of the first and of the last batch, if these go over a border, in [0, 1).
        random: for the order.
    """
    order = sorted_at_random(np.maximum(lengths, 0), random)
    head, order = _taken(order, min(-start % batch_size, order.size), places[0])
    tail, order = _taken(order, order.size % batch_size, places[1])
    batches = sorted_at_random(np.zeros(order.size // batch_size, dtype=np.int64), random)
    order = np.concatenate([head, order.reshape(-1, batch_size)[batches].reshape(-1), tail])
    return order[
        sorted_at_random((np.arange(order.size) + start % batch_size) // batch_size, random)
    ]


def _taken(
    order: NDArray[np.int64], count: int, place: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """So many neighbours of a place in the order, and the others."""
    first = int(place * (order.size - count + 1))
    taken = slice(first, first + count)
    return order[taken], np.delete(order, taken)


def _window_bounds(total: int, window: int, *, ramp: bool) -> list[int]:
    """Where the windows over so many draws begin and end."""
    bounds = [0]
    if ramp:
        for part in _FIRST_WINDOWS:
            size = max(window // part, 1)
            if bounds[-1] + size < total:
                bounds.append(bounds[-1] + size)
    start = bounds[-1]
    windows = -(-(total - start) // window)
    return bounds + [start + (total - start) * (n + 1) // windows for n in range(windows)]


def require_fitting_batches(
    arrange: Arrangement | None, ranks: int, batch_size: int | None
) -> None:
    """Make sure that the batches of an arrangement are those of all ranks together.

    Raises:
        ValueError: if they are not, as far as batches are known.
    """
    if arrange is None:
        return
    each, over = divmod(arrange.batch_size, ranks)
    if over or batch_size not in (None, each):
        name = type(arrange).__name__
        what = "strata are" if isinstance(arrange, Strata) else f"{name} is"
        raise ValueError(
            f"{what} of batches of {arrange.batch_size} draws over all ranks, but there are "
            f"{ranks} ranks with batches of {batch_size or each}: give "
            f"{name}(batch_size=batch size of a rank x ranks)"
        )
