"""Where a loop is in an epoch, and which rows the items of an epoch are."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from flowdata.core.cursor import Cursor
from flowdata.core.pack_plan import PackPlan
from flowdata.core.states import saved_count, shown
from flowdata.core.weights import FlowWeights
from flowdata.errors import MismatchError
from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.plan_sampler import PlanSampler

Order: TypeAlias = int | Literal["plan", "unknown"]
"""In which order an epoch is read: the plan's, that of ``torch.randperm`` with a generator of this
seed, or one that is not known."""
_ORDERS = ("plan", "unknown")


class Stretch(NamedTuple):
    """Items that were trained on one after the other: draws, or packs.

    Attributes:
        seed, epoch: of their plan.
        order: in which the epoch is read.
        start, stop: in that order. Beyond the end of an epoch come its first items again.
    """

    seed: int
    epoch: int
    order: Order
    start: int
    stop: int

    def leads_to(self, other: "Stretch") -> bool:
        """Whether the other one goes on where this one ends."""
        return self[:3] == other[:3] and self.stop == other.start


@dataclass(frozen=True)
class RunningPass:
    """What a source is reading.

    Attributes:
        seed, epoch: of the plan.
        position: items of the epoch that were done before it, as far as the source knows.
        began: of a sampler, an object that is another one in another pass.
    """

    seed: int
    epoch: int
    position: int = 0
    began: Cursor | None = None

    def is_pass_of(self, other: "RunningPass | None") -> bool:
        """Whether this is that other pass, as far as the source knows."""
        return (
            other is not None
            and (self.epoch, self.seed) == (other.epoch, other.seed)
            and (self.began is other.began)
        )


class Drawn:
    """A sampler, data set or stream of flowdata, as something that has epochs of items.

    Args:
        source: FlowSampler, FlowPackSampler, FlowDataset, FlowPacks, or FlowShards, which is not
            imported for it.
    """

    def __init__(self, source: Any) -> None:
        self._source = source
        self._plan: Any = source.plan
        self._is_stream = not isinstance(source, (PlanSampler, EpochItems))
        packs = source.packs if self._is_stream else None
        self.items = len(self._plan if packs is None else packs)
        """Draws, or packs, of an epoch."""
        self.has_order = isinstance(source, PlanSampler)
        """Whether it is read in the order of its plan, whatever reads it."""
        self._permutation: tuple[int, NDArray[np.int64]] | None = None

    @property
    def source(self) -> Any:
        """What was given."""
        return self._source

    @property
    def weights(self) -> FlowWeights:
        """What is drawn by."""
        weights: FlowWeights = self._draws.weights
        return weights

    def identity(self) -> dict[str, Any]:
        """What decides its draws, except seed and epoch."""
        identity: dict[str, Any] = self._plan.identity()
        return identity

    def running(self) -> RunningPass:
        """The pass that is under way, or the next one if none is."""
        source = self._source
        if isinstance(source, PlanSampler):
            place = source.running
            return RunningPass(place.plan.seed, place.plan.epoch, place.position, place)
        epoch = source.running_epoch if self._is_stream else source.epoch
        return RunningPass(source.plan.seed, epoch)

    def ranks(self) -> tuple[int, int]:
        """How many ranks there are, and which of them this is."""
        ranks = getattr(self._source, "num_replicas", 1)
        if ranks > 1:
            return ranks, self._source.rank if isinstance(self._source, PlanSampler) else 0
        if dist.is_available() and dist.is_initialized():
            # A framework divides the batches.
            return dist.get_world_size(), dist.get_rank()
        return 1, 0

    def numbers_of_rank(self, start: int, batch_size: int, ranks: int, rank: int) -> Any:
        """Which items a rank has of a step that begins at a position, in the order of the plan.

        A sampler of several replicas deals out items, a framework batches. None where it may be
        either.
        """
        if ranks == 1:
            numbers = start + np.arange(batch_size)
        elif not isinstance(self._source, PlanSampler):
            return None
        elif self._source.num_replicas > 1:
            numbers = start + rank + ranks * np.arange(batch_size)
        else:
            numbers = start + rank * batch_size + np.arange(batch_size)
        return numbers % self.items

    def rows(self, stretch: Stretch) -> NDArray[np.int64]:
        """The rows of a stretch whose order is known: of packs, those of one after another."""
        numbers = np.arange(stretch.start, stretch.stop) % self.items
        if isinstance(stretch.order, int):
            numbers = self._permuted(stretch.order)[numbers]
        return self.rows_of(stretch.seed, stretch.epoch, numbers)

    def rows_of(self, seed: int, epoch: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of items of an epoch."""
        self._go_to(seed, epoch)
        if not isinstance(self._plan, PackPlan):
            rows: NDArray[np.int64] = self._plan.rows(numbers)
            return rows
        return np.concatenate([np.zeros(0, dtype=np.int64), *self._plan.of(numbers)])

    def counts(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """How often an epoch draws each row."""
        self._go_to(seed, epoch)
        counts: NDArray[np.int64] = self._draws.counts()
        return counts

    @property
    def _draws(self) -> Any:
        """The plan of the draws, of which packs are made."""
        return self._plan.plan if isinstance(self._plan, PackPlan) else self._plan

    def _go_to(self, seed: int, epoch: int) -> None:
        # The epoch that is kept is most probably the next that is asked for.
        self._plan = self._plan.at_epoch(epoch, seed=seed)

    def _permuted(self, seed: int) -> NDArray[np.int64]:
        if self._permutation is None or self._permutation[0] != seed:
            generator = torch.Generator().manual_seed(seed)
            self._permutation = seed, torch.randperm(self.items, generator=generator).numpy()
        return self._permutation[1]


def is_source(thing: Any) -> bool:
    """Whether this is something that a `Drawn` can be made of."""
    # FlowShards, by what its class has: see `flowdata.frameworks.sources.is_stream`.
    return isinstance(thing, (PlanSampler, EpochItems)) or hasattr(type(thing), "draws_an_item")


def read_stretches(saved: Any) -> list[Stretch]:
    """The stretches of a saved state.

    Raises:
        MismatchError: if there is anything else in it.
    """
    if not isinstance(saved, (list, tuple)):
        raise MismatchError(f"not the stretches of a Monitor's state: {shown(saved)}")
    found = []
    for values in saved:
        if not isinstance(values, (list, tuple)) or len(values) != len(Stretch._fields):
            raise MismatchError(f"not a stretch of a Monitor's state: {shown(values)}")
        seed, epoch, order, start, stop = values
        numbers = {"seed": seed, "epoch": epoch, "start": start, "stop": stop}
        if order not in _ORDERS:
            numbers["order"] = order
        for name, value in numbers.items():
            saved_count(value, name, owner="Monitor")
        found.append(Stretch(seed, epoch, order, start, stop))
    return found
