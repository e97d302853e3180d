"""Division: what a stream's epochs are made of, and between whom they are divided."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from numpy.typing import ArrayLike

from flowdata.core.lengths import HasLengths
from flowdata.core.shard_packs import ShardPacks
from flowdata.core.shard_plan import ShardPlan
from flowdata.streaming.draw_order import StreamOrder, require_fitting_batches
from flowdata.streaming.order import Layout, SlotOrder
from flowdata.streaming.pack_order import PackOrder
from flowdata.streaming.stretches import CURRENT_ORDER, ORDER, Stretch, remaining_slots

SlotPlan: TypeAlias = ShardPlan | ShardPacks
"""What an epoch consists of: draws, or packs of them."""


class Division:
    """An epoch's slots, in an order, and how they are divided.

    Args:
        plan: the slots.
        ranks, rank: how many there are, and which one this is.
        drop_last: see `Layout`.
        window, shards_open: see `StreamOrder`.

    Raises:
        ValueError: for windows that are too large, and ranks without a slot.
    """

    def __init__(
        self,
        plan: SlotPlan,
        *,
        ranks: int,
        rank: int,
        drop_last: bool,
        window: int,
        shards_open: int,
    ) -> None:
        if window + shards_open > 1 << 16:
            raise ValueError(
                f"window + shards_open must be at most 65,536, got window={window:,} and "
                f"shards_open={shards_open:,}"
            )
        self.plan = plan
        self.ranks, self.rank, self._drop_last = ranks, rank, drop_last
        self._window, self._shards_open = window, shards_open
        # What divides the table into shards: with other shards, a state means other draws.
        self._shards = hashlib.sha256(plan.bounds.astype("<i8").tobytes()).hexdigest()[:32]
        self._require_slots(plan)

    def of_packs(
        self, lengths: HasLengths | ArrayLike, max_length: int, **options: Any
    ) -> "Division":
        """The same with packs for slots, of as many draws each cluster as a window has of a shard.

        Args:
            lengths, max_length, options: see `ShardPacks`.

        Raises:
            ValueError: for ranks without a pack.
        """
        assert isinstance(self.plan, ShardPlan)
        least = self._window // self._shards_open
        packs = ShardPacks(self.plan, lengths, max_length, least_draws=least, **options)
        self._require_slots(packs)
        made = copy.copy(self)
        made.plan = packs
        return made

    @property
    def slots(self) -> str:
        """What slots are, in words."""
        return _slots(self.plan)

    def layout(self, workers: int, batch_size: int | None) -> Layout:
        """How an epoch, or what is left of it, is divided between so many workers of each rank."""
        return Layout(self.ranks, max(workers, 1), batch_size or 1, self._drop_last)

    def per_rank(self) -> int:
        """Slots of each rank in a whole epoch."""
        return self.layout(0, None).per_rank(len(self.plan))

    def order(self, plan: SlotPlan) -> SlotOrder:
        """The order of the slots of an epoch."""
        if isinstance(plan, ShardPacks):
            return PackOrder(plan, shards_open=self._shards_open)
        return StreamOrder(plan, window=self._window, shards_open=self._shards_open)

    def left(self, plan: SlotPlan, stretches: Sequence[Stretch]) -> int:
        """Slots of an epoch that are left after some stretches."""
        return len(remaining_slots(self.order(plan), len(plan), stretches) if stretches else plan)

    def require_fitting(self, batch_size: int | None) -> None:
        """Make sure that batches are those that the plan is arranged for."""
        require_fitting_batches(self.plan.arrange, self.ranks, batch_size)

    def options(self) -> dict[str, Any]:
        """What decides, beside the plan, in which order slots come."""
        return {
            ORDER: CURRENT_ORDER,
            "window": self._window,
            "shards_open": self._shards_open,
            "shards": self._shards,
        }

    def _require_slots(self, plan: SlotPlan) -> None:
        if self.layout(0, None).per_rank(len(plan)) == 0:
            raise ValueError(
                f"drop_last=True leaves no {_slots(plan)[:-1]}: the epoch has {len(plan)} for "
                f"{self.ranks} ranks"
            )


def _slots(plan: SlotPlan) -> str:
    return "packs" if isinstance(plan, ShardPacks) else "draws"
