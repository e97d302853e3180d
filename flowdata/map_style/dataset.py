"""FlowDataset: the draws of an epoch plan as a map-style data set."""

from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrangement import Arrangement
from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.map_style import inner
from flowdata.map_style.checked_weights import require_alpha, require_length
from flowdata.map_style.draw_numbers import draw_numbers, many_draws
from flowdata.map_style.epoch_items import EpochItems, require_numbered_rows

T_co = TypeVar("T_co", covariant=True)


class MapDataset(Protocol[T_co]):
    """A map-style data set: a length and items by row number."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> T_co: ...


class FlowDataset(EpochItems[T_co, EpochPlan], Generic[T_co]):
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
        weights, epoch_size, seed, scheme, alpha, arrange, strata: see `EpochPlan`. Batches are
            those of `Strata` or `ByLength` only where draws are read in order: without
            ``shuffle=True``, under the transformers Trainer by
            ``TrainingArguments(train_sampling_strategy="sequential")``.

    Raises:
        MismatchError: when data set and weights have different lengths, or the data set's rows
            are weighted for another alpha.
        InvalidLossError: for weights that cannot be sampled.
        TypeError: for a data set without rows by number, such as a stream, or one of draws.

    >>> letters = FlowDataset(["a", "b"], [1.0, 3.0], epoch_size=8, seed=1)
    >>> "".join(sorted(letters[j] for j in range(len(letters))))
    'aabbbbbb'
    """

    _OWNER, _SAMPLER = "FlowDataset", "FlowSampler"

    def __init__(
        self,
        dataset: MapDataset[T_co],
        weights: FlowWeights | HasWeights | ArrayLike,
        *,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        arrange: Arrangement | None = None,
        strata: Strata | None = None,
    ) -> None:
        require_numbered_rows(dataset)
        plan = EpochPlan(
            weights,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
        )
        require_length(dataset, len(plan.weights))
        require_alpha(dataset, weights, alpha)
        super().__init__(dataset, plan)

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

    def __len__(self) -> int:
        if (arrange := self._plan.arrange) is not None:
            self._guard.on_len_of_arranged(type(arrange).__name__)
        return super().__len__()

    @overload
    def __getitem__(self, draw: int) -> T_co: ...
    @overload
    def __getitem__(self, draw: Any) -> Any: ...
    def __getitem__(self, draw: Any) -> Any:
        """The item of a draw, or those of a list, slice or array of draws."""
        places = draw_numbers(draw, len(self._plan))
        if isinstance(places, int):
            [row] = self._rows(np.array([places]))
            return self.dataset[row]
        return inner.index_rows(self.dataset, self._rows(places))

    def __getitems__(self, draws: Sequence[int]) -> Sequence[T_co]:
        rows = self._rows(many_draws(draws, len(self._plan)), is_batch=True)
        items: Sequence[T_co] = inner.fetch_rows(self.dataset, rows)
        return items

    def _rows_at(self, plan: EpochPlan, places: NDArray[np.int64]) -> list[int]:
        rows: list[int] = plan.rows(places).tolist()
        return rows
