"""The order of a streamed epoch whose slots are draws."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import Purpose, random_bits, shuffled
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
        total = int(counts.sum())
        bounds = _window_bounds(total, self._window, ramp=group == 0)
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            lows, highs = (begin + counts * bound // total for bound in (low, high))
            taken = lows < highs
            if taken.any():
                yield Part(group, number, ordinals[taken], lows[taken], highs[taken])

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
        if (strata := self._plan.strata) is None:
            return shuffled(part.size, bits)
        codes = self._plan.strata_of(np.concatenate(self._rows_of(share.slots, part)))
        assert codes is not None
        return deal_to_batches(
            codes.argsort(kind="stable"), max(strata.batch_size // share.ranks, 1), bits
        )

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


def require_fitting_strata(strata: Strata | None, ranks: int, batch_size: int | None) -> None:
    """Make sure that the batches of strata are those of all ranks together.

    Raises:
        ValueError: if they are not, as far as batches are known.
    """
    if strata is None:
        return
    each, over = divmod(strata.batch_size, ranks)
    if over or batch_size not in (None, each):
        raise ValueError(
            f"strata are of batches of {strata.batch_size} draws over all ranks, but there are "
            f"{ranks} ranks with batches of {batch_size or each}: give "
            "Strata(batch_size=batch size of a rank x ranks)"
        )
