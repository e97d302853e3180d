"""FlowDataset: the draws of an epoch plan as a map-style data set."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.states import EPOCH, PLAN, SEED, read_state, save_state, saved_count
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError
from flowdata.guards.counts import EpochCount
from flowdata.guards.dataset import DatasetGuard
from flowdata.guards.fetching import UNSEEN, Fetch, find_fetch
from flowdata.map_style import inner
from flowdata.map_style.checked_weights import require_alpha, require_length
from flowdata.map_style.draw_numbers import draw_numbers, many_draws
from flowdata.map_style.served import MOST, ServedDraws, require_cell

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
    then on. Where nobody calls it, each pass of a DataLoader is the next epoch, also one that is
    left early, or that begins before another has ended; the workers of a loader agree, also
    persistent ones. Call `set_epoch` on several ranks, which count their own passes, and to go on
    from a state. Items that no DataLoader fetches (``dataset[j]``, as a look at the data takes
    them) are of the running epoch.

    A list, slice or array of draws gives what the data set gives for a list of rows (a dict of
    columns, for ``datasets.Dataset``), or a list of items. `set_epoch`, `state_dict` and
    `load_state_dict` reach the data set too, where it has them; its other attributes are read and
    set as this one's (``.transform``, ``.classes``), except those that go by row.

    Args:
        dataset: map-style data set of n rows; ``__getitems__`` is used where it has one.
        weights, epoch_size, seed, scheme, alpha, strata: see `EpochPlan`. Batches are filled from
            strata only if the sampler is sequential.

    Raises:
        MismatchError: when data set and weights have different lengths, or the data set's rows
            are weighted for another alpha.
        InvalidLossError: for weights that cannot be sampled.
        TypeError: for a data set without rows by number, such as a stream, or one of draws.

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
        _require_rows(dataset)
        self._plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            strata=strata,
        )
        require_length(dataset, len(self._plan.weights))
        require_alpha(dataset, weights, alpha)
        self._count = EpochCount()
        self.dataset = dataset
        self._told: int | None = None
        """The epoch that the data set was told last in this process."""
        self._loaded: int | None = None
        """The epoch of a loaded state, until another is set."""
        self._served = ServedDraws(len(self._plan))
        self._guard = DatasetGuard(self._served)

    def __getattr__(self, name: str) -> Any:
        # Asked for what is not here; a copy that is being built has no data set yet.
        dataset = self.__dict__.get("dataset")
        if dataset is None:
            raise AttributeError(f"FlowDataset has no attribute {name!r}")
        return inner.attribute(dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        dataset = self.__dict__.get("dataset")
        is_own = dataset is None or name in self.__dict__ or hasattr(type(self), name)
        if is_own or not inner.has_attribute(dataset, name):
            super().__setattr__(name, value)
        else:
            setattr(dataset, name, value)

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
        found = read_state(state, identity, owner="FlowDataset", needed=(_NAMED,))
        if not isinstance(found[_NAMED], bool):
            raise MismatchError(
                f"not a FlowDataset state: {_NAMED} must be true or false, got {found[_NAMED]!r}"
            )
        # Where a loader of a framework has only counted its passes, the state knows better.
        is_kept = self._served.epoch_was_set and not self._count.is_counted
        if not (is_kept or found[_NAMED]):
            raise RuntimeError(
                f"the state was saved in epoch {found[EPOCH]}, which FlowDataset had found by "
                "itself, so nobody knows what of it was served: call set_epoch(epoch) before "
                "every epoch, from the first, or give the DataLoader a FlowSampler instead"
            )
        # All is checked before anything is set: a refused state changes nothing.
        epoch, seed = (
            saved_count(found[name], name, owner="FlowDataset", most=MOST) for name in (EPOCH, SEED)
        )
        if is_kept:
            epoch = self.epoch
        inner.set_epoch_of(self.dataset, epoch)
        # As it was saved: `found` has lists in place of tuples.
        inner.load_state_of(self.dataset, state)
        if seed != self.plan.seed:
            self._served.seed = seed
        if not is_kept:
            self._guard.on_load(epoch)
            self._served.set_epoch(epoch, is_loaded=True)
        self._count.on_load(epoch)
        self._told = self._loaded = epoch

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

    @overload
    def __getitem__(self, draw: int) -> T_co: ...
    @overload
    def __getitem__(self, draw: Any) -> Any: ...
    def __getitem__(self, draw: Any) -> Any:
        """The item of a draw, or those of a list, slice or array of draws."""
        places = draw_numbers(draw, len(self._plan))
        if isinstance(places, int):
            [row] = self._rows(np.array([places]), self._fetch())
            return self.dataset[row]
        return inner.index_rows(self.dataset, self._rows(places, self._fetch()))

    def __getitems__(self, draws: Sequence[int]) -> Sequence[T_co]:
        places = many_draws(draws, len(self._plan))
        # Who asks for batches in this way is a loader, of whatever kind.
        rows = self._rows(places, self._fetch() or UNSEEN)
        items: Sequence[T_co] = inner.fetch_rows(self.dataset, rows)
        return items

    def _fetch(self) -> object | None:
        """The batch that is being read, if that has to be known."""
        return UNSEEN if self._served.epoch_was_set else find_fetch()

    def _rows(self, places: NDArray[np.int64], fetch: object | None) -> list[int]:
        """The rows of draws, in the epoch of the pass that reads them."""
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
        rows: list[int] = self._plan_of(epoch).rows(places).tolist()
        if is_new:
            self._served.require_own(epoch)
        return rows


def _require_rows(dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, FlowDataset):
        raise TypeError(
            "a FlowDataset has draws, which are no rows to draw from again: make one FlowDataset, "
            "of the data set in it, with the product of the weights"
        )
    numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if not numbered or isinstance(dataset, IterableDataset):
        raise TypeError(
            f"{kind} has no rows by number, which drawing by weight needs: "
            "store it as a map-style data set (datasets.Dataset.from_generator, from_parquet), "
            "or as tar shards for FlowShards"
        )
