"""FlowSampler: an epoch plan as a torch sampler."""

from typing import Any

from numpy.typing import ArrayLike

from flowdata.core.arrangement import Arrangement
from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.map_style.checked_weights import check_drawn
from flowdata.map_style.plan_sampler import PlanSampler


class FlowSampler(PlanSampler[int]):
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
        weights, epoch_size, seed, scheme, alpha, arrange, strata: see `EpochPlan`.
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
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        dataset: Any = None,
    ) -> None:
        plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
        )
        check_drawn(dataset, weights, plan.weights, alpha)
        super().__init__(plan, rank=rank, num_replicas=num_replicas, drop_last=drop_last)

    @property
    def plan(self) -> EpochPlan:
        """The plan of `epoch`."""
        plan: EpochPlan = super().plan
        return plan
