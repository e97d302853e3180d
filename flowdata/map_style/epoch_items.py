"""EpochItems: what an epoch of a plan has, as a map-style data set: draws, or packs of them."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.states import EPOCH, PLAN, SEED, read_state, save_state, saved_count
from flowdata.errors import MismatchError
from flowdata.guards.counts import EpochCount
from flowdata.guards.dataset import DatasetGuard
from flowdata.guards.fetching import UNSEEN, Fetch, find_fetch
from flowdata.map_style import inner
from flowdata.map_style.served import MOST, ServedDraws, require_cell

_NAMED = "named"


class PlanOfItems(Protocol):
    """An EpochPlan, or a PackPlan, whose items are packs."""

    @property
    def epoch(self) -> int:
        """Number of the epoch."""

    @property
    def seed(self) -> int:
        """The seed of all epochs."""

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """What decides what an epoch has, except seed and epoch."""

    def at_epoch(self, epoch: int, *, seed: int | None = None) -> Self:
        """The plan of another epoch."""


T_co = TypeVar("T_co", covariant=True)
P = TypeVar("P", bound=PlanOfItems)


class EpochItems(Dataset[T_co], Generic[T_co, P]):
    """A data set of rows, seen through the plan of the running epoch.

    It knows which epoch each pass over it draws, keeps that in its state, and tells the data set.
    A class of it says what its items are.

    Args:
        dataset: of rows by number.
        plan: of any epoch.
    """

    _OWNER: ClassVar[str]
    """What errors and warnings call it."""
    _SAMPLER: ClassVar[str]
    """The sampler of the same draws."""

    def __init__(self, dataset: Any, plan: P) -> None:
        self._plan = plan
        self._count = EpochCount()
        self.dataset = dataset
        self._told: int | None = None
        """The epoch that the data set was told last in this process."""
        self._loaded: int | None = None
        """The epoch of a loaded state, until another is set."""
        self._served = ServedDraws(len(plan), owner=self._OWNER)
        self._guard = DatasetGuard(self._served, owner=self._OWNER)

    @property
    def epoch(self) -> int:
        """The running epoch, the same in all processes of this data set."""
        return self._served.epoch

    @property
    def plan(self) -> P:
        """The plan of the running epoch."""
        return self._plan_of(self._served.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw ``epoch`` from now on, in worker processes too, until the next call."""
        served = self._served
        if served.epoch_was_set and served.epoch != self._told:
            self._count.on_pass_elsewhere(served.epoch)
        meant = self._count.meant_by(self._plan.at_epoch(epoch).epoch)
        if meant is None:
            return
        epoch = require_cell(self._plan_of(meant).epoch, "the epoch")
        self._guard.on_set_epoch(epoch)
        if epoch != self._loaded:
            # What it has loaded of this epoch, its own random state above all, is to stay.
            inner.set_epoch_of(self.dataset, epoch)
        self._told, self._loaded = epoch, None
        served.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """A fresh dict: the epoch that was set, and the state of the data set if it has one.

        It is JSON-able if that is. Which of its items were served is the sampler's to know.
        """
        named = {_NAMED: self._served.epoch_was_set}
        return save_state(self.plan, **named, **inner.state_of(self.dataset))

    def load_state_dict(self, state: Any) -> None:
        """Go on in the epoch of a state, with its seed; one that the loop has set before is kept.

        Args:
            state: any mapping.

        Raises:
            MismatchError: when the state is of other weights or options, or not a state at all.
            RuntimeError: when nobody had set the epoch that was saved, so that it is not known
                which of its items were served.
        """
        identity = {PLAN: self._plan.identity()}
        found = read_state(state, identity, owner=self._OWNER, needed=(_NAMED,))
        if not isinstance(found[_NAMED], bool):
            raise MismatchError(
                f"not a {self._OWNER} state: {_NAMED} must be true or false, got {found[_NAMED]!r}"
            )
        # Where a loader of a framework has only counted its passes, the state knows better.
        is_kept = self._served.epoch_was_set and not self._count.is_counted
        if not (is_kept or found[_NAMED]):
            raise RuntimeError(
                f"the state was saved in epoch {found[EPOCH]}, which {self._OWNER} had found by "
                "itself, so nobody knows what of it was served: call set_epoch(epoch) before "
                f"every epoch, from the first, or give the DataLoader a {self._SAMPLER} instead"
            )
        # All is checked before anything is set: a refused state changes nothing.
        epoch, seed = (
            saved_count(found[name], name, owner=self._OWNER, most=MOST) for name in (EPOCH, SEED)
        )
        if is_kept:
            epoch = self.epoch
        inner.set_epoch_of(self.dataset, epoch)
        # As it was saved: `found` has lists in place of tuples.
        inner.load_state_of(self.dataset, state, owner=self._OWNER)
        if seed != self.plan.seed:
            self._served.seed = seed
        if not is_kept:
            self._guard.on_load(epoch)
            self._served.set_epoch(epoch, is_loaded=True)
        self._count.on_load(epoch)
        self._told = self._loaded = epoch

    def __len__(self) -> int:
        # Samplers ask at each pass, in the main process, where a framework's frames can be seen.
        self._guard.on_len(len(self._plan))
        return len(self._plan)

    def __iter__(self) -> Iterator[T_co]:
        self._guard.on_iter()
        return (self[place] for place in range(len(self._plan)))

    @abstractmethod
    def __getitem__(self, place: Any) -> Any:
        """The item of a place in the epoch, or those of several."""

    @abstractmethod
    def _rows_at(self, plan: P, places: NDArray[np.int64]) -> list[Any]:
        """What a plan has in these places: a row of each, or a list of rows."""

    def _rows(self, places: NDArray[np.int64], *, is_batch: bool = False) -> list[Any]:
        """The rows in these places, in the epoch of the pass that reads them.

        Args:
            places: in [0, len(plan)).
            is_batch: asked for by a loader, of whatever kind, and not by a person.
        """
        fetch = self._fetch() or (UNSEEN if is_batch else None)
        self._guard.on_items(len(self._plan))
        self._count.on_first_draw(self.epoch)
        is_new = False
        if fetch is None:
            epoch = self.epoch
            self._guard.on_look(places.size, epoch, len(self._plan))
        else:
            batch = fetch if isinstance(fetch, Fetch) else None
            epoch, is_new, times = self._served.serve(places, batch)
            self._guard.on_reads(times)
        if self._served.epoch_was_set and epoch != self._told:
            # A worker process has a copy of the data set, which `set_epoch` has not reached.
            inner.set_epoch_of(self.dataset, epoch)
            self._told = epoch
        rows = self._rows_at(self._plan_of(epoch), places)
        if is_new:
            self._served.require_own(epoch)
        return rows

    def _fetch(self) -> object | None:
        """The batch that is being read, if that has to be known."""
        return UNSEEN if self._served.epoch_was_set else find_fetch()

    def _plan_of(self, epoch: int) -> P:
        """The plan of an epoch, which is kept: the next item is most probably of the same."""
        self._plan = self._plan.at_epoch(epoch, seed=self._served.seed)
        return self._plan


def require_numbered_rows(dataset: Any) -> None:
    """Make sure that a data set has rows by number, which are no draws already.

    Raises:
        TypeError: saying what to do instead.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, EpochItems):
        raise TypeError(
            f"a {kind} has draws, which are no rows to draw from again: make one {kind}, "
            "of the data set in it, with the product of the weights"
        )
    numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not numbered or isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{kind} has no rows by number, which drawing by weight needs: "
            "store it as a map-style data set (datasets.Dataset.from_generator, from_parquet), "
            "or as tar shards for FlowShards"
        )
