"""FlowDataset: the draws of an epoch plan as a map-style data set."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.states import EPOCH, PLAN, SEED, read_state, save_state
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError
from flowdata.guards.dataset import DatasetGuard
from flowdata.guards.detection import is_fetching_item
from flowdata.map_style.served import ServedDraws, require_cell

_NAMED = "named"

T_co = TypeVar("T_co", covariant=True)


class MapDataset(Protocol[T_co]):
    """A map-style data set: a length and items by row number."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> T_co: ...


class FlowDataset(Dataset[T_co], Generic[T_co]):
    """A view of a data set whose item j is the row of draw j: ``dataset[plan[j]]``.

    For frameworks that build the DataLoader and its sampler themselves: whatever sampler visits
    each item once (``shuffle=True``, sequential, distributed), it has visited the plan's draws.

    Each epoch draws anew. A framework that calls `set_epoch` decides which epoch it is, from
    then on. Where nobody calls it, a batch that asks for an item again is the first of the next
    epoch: the items served in the running one are marked in shared memory (one byte a draw), so
    DataLoader workers agree, also persistent ones. That takes passes that are whole, and one
    process. So call `set_epoch` on several ranks, after breaking out of a pass, where a sampler or
    a transform around it reads an item more than once a pass, and where such a transform is
    shuffled with ``drop_last=True``. Items that no DataLoader fetches (``dataset[j]``, as a look at
    the data takes them) are read from the running epoch without being marked.

    Args:
        dataset: map-style data set of n rows; ``__getitems__`` is used where it has one.
        weights, epoch_size, seed, scheme, alpha, strata: see `EpochPlan`. Batches are filled from
            strata only if the sampler is sequential.

    Raises:
        MismatchError: when data set and weights have different lengths.
        InvalidLossError: for weights that cannot be sampled.
        TypeError: for a data set without rows by number, such as a stream.

    >>> letters = FlowDataset(["a", "b"], [1.0, 3.0], epoch_size=8, seed=1)
    >>> "".join(sorted(letters[j] for j in range(len(letters))))
    'aabbbbbb'
    """

    def __init__(
        self,
        dataset: MapDataset[T_co],
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        strata: Strata | None = None,
    ) -> None:
        numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if not numbered or isinstance(dataset, IterableDataset):
            raise TypeError(
                f"{type(dataset).__name__} has no rows by number, which drawing by weight needs: "
                "store it as a map-style data set (datasets.Dataset.from_generator, from_parquet), "
                "or as tar shards for FlowShards"
            )
        self._plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            strata=strata,
        )
        if len(dataset) != len(self._plan.weights):
            raise MismatchError(
                f"the data set has {len(dataset):,} rows, but there are "
                f"{len(self._plan.weights):,} weights; score this data set, or pass the one that "
                "was scored"
            )
        self.dataset = dataset
        self._served = ServedDraws(len(self._plan))
        self._guard = DatasetGuard(self._served)

    @property
    def epoch(self) -> int:
        """The running epoch, the same in all processes of this data set."""
        return self._served.epoch

    @property
    def plan(self) -> EpochPlan:
        """The plan of the running epoch."""
        return self._plan_of(self._served.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw ``epoch`` from now on, in worker processes too, until the next call."""
        self._plan_of(epoch)
        self._guard.on_set_epoch(epoch)
        self._served.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """A fresh, JSON-able dict: the epoch that was set, for `load_state_dict`.

        Which of its items were served is the sampler's to know.
        """
        return save_state(self.plan, **{_NAMED: self._served.epoch_was_set})

    def load_state_dict(self, state: Any) -> None:
        """Go on in the epoch of a state, with its seed; an epoch that was set before is kept.

        Args:
            state: any mapping.

        Raises:
            MismatchError: when the state is of other weights or options, or not a state at all.
            RuntimeError: when nobody had set the epoch that was saved, so that it is not known
                which of its items were served.
        """
        identity = {PLAN: self._plan.identity()}
        found = read_state(state, identity, owner="FlowDataset", needed=(_NAMED,))
        if not (self._served.epoch_was_set or found[_NAMED]):
            raise RuntimeError(
                f"the state was saved in epoch {found[EPOCH]}, which FlowDataset had found by "
                "itself, so nobody knows what of it was served: call set_epoch(epoch) before "
                "every epoch, from the first, or give the DataLoader a FlowSampler instead"
            )
        # Both are checked before either is set: a refused state changes nothing.
        epoch = require_cell(found[EPOCH], "the epoch")
        if found[SEED] != self.plan.seed:
            self._served.seed = found[SEED]
        if not self._served.epoch_was_set:
            self.set_epoch(epoch)

    def _plan_of(self, epoch: int) -> EpochPlan:
        """The plan of an epoch, which is kept: the next item is most probably of the same."""
        self._plan = self._plan.at_epoch(epoch, seed=self._served.seed)
        return self._plan

    def __len__(self) -> int:
        # Samplers ask at each pass, in the main process, where a framework's frames can be seen.
        self._guard.on_len(len(self._plan))
        return len(self._plan)

    def __iter__(self) -> Iterator[T_co]:
        self._guard.on_iter()
        return (self[draw] for draw in range(len(self._plan)))

    def __getitem__(self, draw: int) -> T_co:
        size = len(self._plan)
        if not -size <= draw < size:
            raise IndexError(f"draw {draw} is outside an epoch of {size:,} draws")
        if not self._served.epoch_was_set and is_fetching_item():
            # What stands between the DataLoader and this data set reads items one by one.
            return self.__getitems__([int(draw)])[0]
        return self.dataset[self.plan[int(draw)]]

    def __getitems__(self, draws: Sequence[int]) -> Sequence[T_co]:
        places, size = np.array(draws, dtype=np.int64), len(self._plan)
        # Of a batch, a small list, these are faster than numpy's.
        if len(draws) and not 0 <= min(draws) <= max(draws) < size:
            places[places < 0] += size
            if not 0 <= places.min() <= places.max() < size:
                raise IndexError(f"a draw of {draws} is outside an epoch of {size:,} draws")
        if not self._served.epoch_was_set:
            self._guard.on_items()
        rows = self._plan_of(self._served.mark(places)).rows(places).tolist()
        # datasets.Dataset reads a batch of rows at once many times faster than row by row.
        fetch_all: Any = getattr(self.dataset, "__getitems__", None)
        if callable(fetch_all):
            items: Sequence[T_co] = fetch_all(rows)
            return items
        return [self.dataset[row] for row in rows]
