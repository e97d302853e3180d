"""The order of a streamed epoch whose slots are packs."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import KeyedPermutation, Purpose
from flowdata.core.shard_packs import ShardPacks
from flowdata.streaming.order import Part, Share, SlotOrder, Window


class PackOrder(SlotOrder):
    """The packs of one epoch's slots, and their windows.

    Slots are those of packs, in reading order: section after section, in each cluster after
    cluster. Sections take the place of shards: so many are open that they have about
    ``shards_open`` shards. A window takes whole clusters of all of them, as far as the worker has
    them, since the rows of a pack are all over its cluster: so shards are read onwards, each row
    once for each of its draws, or packs, at most.

    Args:
        packs: of the epoch.
        shards_open: shards that are gone through at once, about.
    """

    def __init__(self, packs: ShardPacks, *, shards_open: int) -> None:
        sections = -(-shards_open * packs.sections // (packs.bounds.size - 1))
        super().__init__(packs.epoch, packs.first_of_section, sections)
        self._packs = packs

    def _windows_of_group(self, share: Share, group: int) -> Iterator[Part]:
        ordinals, begins, ends = share.of_group(group)
        # Where the packs of each cluster begin among the worker's, of each section, and its end.
        edges = []
        for section, begin, end in zip(
            ordinals.tolist(), begins.tolist(), ends.tolist(), strict=True
        ):
            cuts = share.slots.count_below(self._packs.first_of_clusters(section))
            edges.append(np.unique(cuts.clip(begin, end)))
        clusters = np.array([cuts.size - 1 for cuts in edges])
        windows, before = int(clusters.max()), share.before(group)
        for number in range(windows):
            chosen = clusters * number // windows, clusters * (number + 1) // windows
            lows, highs = (
                np.array([cuts[place] for cuts, place in zip(edges, places, strict=True)])
                for places in chosen
            )
            taken = lows < highs
            start = before + int((lows - begins).sum())
            yield Part(group, number, ordinals[taken], lows[taken], highs[taken], start)

    def _window_of(self, share: Share, part: Part, skip: int) -> tuple[Window, int]:
        numbers = share.slots.at(part.places())
        found = self._packs.of(numbers)
        packs = [found[place] for place in self._order_of(share, part).tolist()]
        sizes = [pack.size for pack in packs]
        drawn = np.concatenate(packs)
        by_row = drawn.argsort(kind="stable")
        order = np.empty_like(by_row)
        order[by_row] = np.arange(by_row.size)
        shards, rows = self._by_shard(drawn[by_row])
        shares = self._packs.shares[shards].tolist()
        return Window(part.group, shards, rows, order, shares, sizes), sum(sizes[:skip])

    def _by_shard(self, rows: NDArray[np.int64]) -> tuple[list[int], list[NDArray[np.int64]]]:
        """The shards of ascending rows, and the rows of each."""
        shards = np.searchsorted(self._packs.bounds, rows, side="right") - 1
        cuts = np.flatnonzero(np.diff(shards)) + 1
        return shards[np.concatenate([[0], cuts])].tolist(), np.split(rows, cuts)

    def _order_of(self, share: Share, part: Part) -> NDArray[np.int64]:
        order = KeyedPermutation(
            part.size,
            seed=self._packs.seed,
            epoch=self.epoch,
            purpose=Purpose.WINDOW_ORDER,
            part=(*share.random_key, part.group, part.number),
        )
        return order(np.arange(part.size))
