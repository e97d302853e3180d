"""DistributedFlowSampler: the share of one rank, as torch's DistributedSampler takes it."""

from collections.abc import Sized
from typing import Any

import torch.distributed as dist
from numpy.typing import ArrayLike
from torch.utils.data import DistributedSampler

from flowdata.core.arrangement import Arrangement
from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.map_style.sampler import FlowSampler


# DistributedSampler has plain attributes where these are properties of the plan.
class DistributedFlowSampler(FlowSampler, DistributedSampler[int]):  # type: ignore[override]
    """FlowSampler that takes its rank and number of replicas from torch.distributed.

    It is a ``DistributedSampler``, so frameworks that check for one leave it alone. Give it to
    the DataLoader of a DDP loop, under torchrun or Lightning; under accelerate and
    transformers use `FlowSampler` or `FlowDataset`, which they split themselves.

    Args:
        num_replicas: default ``torch.distributed.get_world_size()``.
        rank: default ``torch.distributed.get_rank()``.

    All other arguments are those of `FlowSampler`.

    Raises:
        RuntimeError: when neither is given and no process group is initialised.
    """

    def __init__(
        self,
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        num_replicas: int | None = None,
        rank: int | None = None,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
        drop_last: bool = False,
        dataset: Any = None,
    ) -> None:
        if num_replicas is None or rank is None:
            if not (dist.is_available() and dist.is_initialized()):
                raise RuntimeError(
                    "DistributedFlowSampler needs torch.distributed.init_process_group() first, "
                    "or num_replicas= and rank=; for one process use FlowSampler"
                )
            num_replicas = dist.get_world_size() if num_replicas is None else num_replicas
            rank = dist.get_rank() if rank is None else rank
        FlowSampler.__init__(
            self,
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
            num_replicas=num_replicas,
            rank=rank,
            drop_last=drop_last,
            dataset=dataset,
        )
        # Every DistributedSampler has this attribute; draws are always in a random order.
        self.shuffle = True

    @property
    def dataset(self) -> Sized:  # type: ignore[override]
        """The draws of an epoch, under the name ``DistributedSampler`` has for its data."""
        return self.plan

    @property
    def total_size(self) -> int:  # type: ignore[override]
        """Draws of all ranks in an epoch, with padding or without the dropped ones."""
        return self.num_samples * self.num_replicas
