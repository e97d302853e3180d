"""PlanSampler: a plan's epochs as a torch sampler, resumable at any draw."""

import copy
import operator
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

from torch.utils.data import Sampler

from flowdata.core.cursor import Cursor
from flowdata.core.pack_plan import PackPlan
from flowdata.core.permutation import CHUNK
from flowdata.core.plan import EpochPlan
from flowdata.core.weights import FlowWeights
from flowdata.guards.lengths import advise_rows
from flowdata.map_style.draw_iterator import Items, rows_of
from flowdata.map_style.progress import SamplerProgress

T_co = TypeVar("T_co", covariant=True)


class PlanSampler(Sampler[T_co], Generic[T_co]):
    """What samplers of all kinds of plans have: passes, epochs, ranks and a state.

    Args:
        plan: of any epoch.
        rank, num_replicas, drop_last: see `FlowSampler`.
        item: what errors call what is drawn.
        items: what is drawn in some steps from a place on; default the rows of draws.
        chunk: steps that are computed at a time.

    Raises:
        ValueError: for a rank outside [0, num_replicas), or one without anything to draw.
    """

    def __init__(
        self,
        plan: EpochPlan | PackPlan,
        *,
        rank: int,
        num_replicas: int,
        drop_last: bool,
        item: str = "draw",
        items: Items = rows_of,
        chunk: int = CHUNK,
    ) -> None:
        if not 0 <= operator.index(rank) < operator.index(num_replicas):
            raise ValueError(
                f"rank must be in [0, num_replicas), got rank={rank}, num_replicas={num_replicas}"
            )
        start = Cursor(plan, rank=rank, replicas=num_replicas, drop_last=drop_last)
        if len(start) == 0:
            raise ValueError(
                f"drop_last=True leaves no {item}: the epoch has {len(plan)} {item}s for "
                f"{num_replicas} replicas"
            )
        self._progress = SamplerProgress(start, owner=type(self).__name__, items=items, chunk=chunk)

    def __copy__(self) -> Self:
        # What a copy draws is no progress of the original.
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__ | {"_progress": copy.copy(self._progress)}
        return copied

    @property
    def plan(self) -> Any:
        """The plan of `epoch`: an EpochPlan, or a PackPlan."""
        return self._progress.upcoming().plan

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration draws."""
        epoch: int = self.plan.epoch
        return epoch

    @property
    def running(self) -> Cursor:
        """The place at which the pass that is under way began; of none, that of the next one.

        It is the same object until another pass begins.
        """
        return self._progress.began()

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        seed: int = self.plan.seed
        return seed

    @property
    def num_replicas(self) -> int:
        """Replicas that an epoch is divided between."""
        return self._progress.upcoming().replicas

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self._progress.upcoming().rank

    @property
    def drop_last(self) -> bool:
        """Whether what is drawn in an incomplete round of ranks is left out."""
        return self._progress.upcoming().drop_last

    @property
    def num_samples(self) -> int:
        """Draws, or packs, of this rank in a whole epoch."""
        return len(self._progress.upcoming().at(self.epoch))

    @property
    def _weights(self) -> FlowWeights:
        weights: FlowWeights = self.plan.weights
        return weights

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[T_co]:
        advise_rows(self._weights)
        return self._progress.iterate()

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` the next one to be drawn, from its start.

        Naming the epoch that a loaded state is in does nothing, so that a resumed loop may call
        it as usual.
        """
        self._progress.set_epoch(epoch)

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """A fresh, JSON-able dict from which `load_state_dict` continues.

        Args:
            position: draws of the current epoch that were trained on, over all ranks
                (steps x batch size x ranks), or packs (steps x ranks). By default those that were
                asked for, which under DataLoader workers, and under accelerate, includes batches
                fetched ahead.

        Raises:
            ValueError: for a position beyond the end of the epoch.
        """
        return self._progress.save(position)

    def load_state_dict(self, state: Any) -> None:
        """Continue from a state of a sampler with the same weights and options: any mapping.

        Seed, epoch and position are taken from the state; the number of ranks is free.

        Raises:
            MismatchError: when the state is of other weights or strata, or of another epoch size,
                scheme or alpha, or not a state at all.
        """
        self._progress.load(state)
