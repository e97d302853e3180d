"""Cursor: a place in an epoch, and what one of several replicas still has to draw from there."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import EPOCH, PLAN, SEED, read_state, save_state, saved_count

POSITION = "position"


@dataclass(frozen=True)
class Cursor:
    """The draws, or packs, of one replica from a position on, in steps of one each.

    Of R replicas, number r takes draws ``position + r``, ``position + r + R``, ... of the plan.
    Where R does not divide what is left, the epoch's first draws fill the last step, or, with
    ``drop_last``, the draws of the incomplete step are left out.

    Attributes:
        plan: of the epoch: an EpochPlan, or a PackPlan, whose draws are packs.
        position: draws of the epoch that are done, by all replicas together.
        rank: r, in [0, replicas).
        replicas: R.
        drop_last: leave out the draws of an incomplete step.

    >>> from flowdata import EpochPlan
    >>> cursor = Cursor(EpochPlan([1.0, 1.0, 1.0], epoch_size=3), rank=1, replicas=2)
    >>> len(cursor), cursor.step(1).position, len(cursor.step(1))
    (2, 2, 1)
    """

    plan: Any
    position: int = 0
    rank: int = 0
    replicas: int = 1
    drop_last: bool = False

    def __len__(self) -> int:
        """Steps that are left."""
        left = max(len(self.plan) - self.position, 0)
        return left // self.replicas if self.drop_last else -(-left // self.replicas)

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """The rows that this replica draws in steps [start, stop) from here on."""
        rows: NDArray[np.int64] = self.plan.rows(self.numbers(start, stop))
        return rows

    def numbers(self, start: int, stop: int) -> NDArray[np.int64]:
        """The draws, or packs, that this replica has in steps [start, stop) from here on."""
        steps = np.arange(start, stop, dtype=np.int64)
        numbers = self.position + self.rank + steps * self.replicas
        # Beyond its end an epoch goes on with its first draws, as torch's DistributedSampler does.
        return numbers % len(self.plan)

    def step(self, steps: int) -> "Cursor":
        """The place that many steps later."""
        return replace(self, position=min(self.position + steps * self.replicas, len(self.plan)))

    def at(self, epoch: int, position: int = 0) -> "Cursor":
        """A place in an epoch of the same plan."""
        return replace(self, plan=self.plan.at_epoch(epoch), position=position)

    def or_next_epoch(self) -> "Cursor":
        """This place; where no step is left, the beginning of the next epoch."""
        return self if len(self) else self.at(self.plan.epoch + 1)

    def state(self) -> dict[str, Any]:
        """A fresh, JSON-able dict from which `load` makes the same place."""
        return save_state(self.plan, **{POSITION: self.position})

    def load(self, state: Any, *, owner: str) -> "Cursor":
        """The place that was saved, for this replica; see `read_state` for what is checked."""
        found = read_state(state, {PLAN: self.plan.identity()}, owner=owner, needed=(POSITION,))
        return replace(
            self,
            plan=self.plan.at_epoch(found[EPOCH], seed=found[SEED]),
            position=saved_count(found[POSITION], POSITION, owner=owner, most=len(self.plan)),
        )
