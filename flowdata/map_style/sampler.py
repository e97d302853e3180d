"""FlowSampler: an epoch plan as a torch sampler."""

import copy
import operator
from collections.abc import Iterator
from typing import Any, Self

from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from flowdata.core.cursor import Cursor
from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.guards.lengths import advise_rows
from flowdata.map_style.checked_weights import (
    require_alpha,
    require_length,
    require_rows,
    warn_of_zeros,
)
from flowdata.map_style.progress import SamplerProgress


class FlowSampler(Sampler[int]):
    """Draws rows in proportion to their weights; give it to a DataLoader as ``sampler=``.

    Every ``iter()`` is the next epoch, with new draws, unless `set_epoch` names one. Of R
    replicas, rank r takes draws r, r + R, r + 2R, ... of the same plan, so an epoch does not
    depend on R. Where R does not divide the epoch, its first draws are repeated at the end
    (or, with ``drop_last``, its last ones left out), as ``DistributedSampler`` does.

    The state is (seed, epoch, position), where the position counts the draws of all ranks. It
    can be loaded with another number of ranks; resuming costs what starting an epoch costs.
    A DataLoader with workers asks for draws ahead of the batches it has delivered: there, use
    torchdata's StatefulDataLoader, or state the position yourself, see `state_dict`.

    Args:
        weights, epoch_size, seed, scheme, alpha, strata: see `EpochPlan`.
        num_replicas: R. Leave it 1 under frameworks that split the sampler themselves
            (accelerate, transformers).
        rank: r, in [0, R).
        drop_last: leave out the draws of the last incomplete round of ranks.
        dataset: the data that is drawn from: its length is checked, and nothing else done with it.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        MismatchError: for weights of another number of rows than the data set has, or rows that
            `reweight` has weighted for another alpha.
        ValueError: for an unknown option or a rank outside [0, num_replicas).
        RuntimeError: on iterating with several replicas where a framework splits the draws again.

    It warns where a DataLoader's data set has another number of rows than there are weights, or
    losses that are multiplied by all of them, where
    the draws of all ranks would be the same, and where a framework hides from it
    which epoch is meant.

    >>> sampler = FlowSampler([1.0, 3.0], epoch_size=8, seed=1)
    >>> len(sampler), sorted(sampler)
    (8, [0, 0, 1, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        strata: Strata | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        dataset: Any = None,
    ) -> None:
        if not 0 <= operator.index(rank) < operator.index(num_replicas):
            raise ValueError(
                f"rank must be in [0, num_replicas), got rank={rank}, num_replicas={num_replicas}"
            )
        plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            strata=strata,
        )
        if dataset is not None:
            require_rows(dataset)
            require_length(dataset, len(plan.weights))
            require_alpha(dataset, weights, alpha)
        warn_of_zeros(plan.weights, alpha)
        start = Cursor(plan, rank=rank, replicas=num_replicas, drop_last=drop_last)
        if len(start) == 0:
            raise ValueError(
                f"drop_last=True leaves no draw: the epoch has {len(plan)} draws for "
                f"{num_replicas} replicas"
            )
        self._progress = SamplerProgress(start, owner=type(self).__name__)

    def __copy__(self) -> Self:
        # What a copy draws is no progress of the original.
        copied = object.__new__(type(self))
        copied.__dict__ = self.__dict__ | {"_progress": copy.copy(self._progress)}
        return copied

    @property
    def plan(self) -> EpochPlan:
        """The plan of `epoch`."""
        return self._progress.upcoming().plan

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration draws."""
        return self.plan.epoch

    @property
    def seed(self) -> int:
        """The seed of all epochs."""
        return self.plan.seed

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
        """Whether the draws of an incomplete round of ranks are left out."""
        return self._progress.upcoming().drop_last

    @property
    def num_samples(self) -> int:
        """Draws of this rank in a whole epoch."""
        return len(self._progress.upcoming().at(self.epoch))

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        advise_rows(self.plan.weights)
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
                (steps x batch size x ranks). By default those that were asked for, which under
                DataLoader workers, and under accelerate, includes batches fetched ahead.

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
