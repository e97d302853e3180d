"""FlowDataset: the draws of an epoch plan as a map-style data set."""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.plan import EpochPlan, EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.errors import MismatchError, warn
from flowdata.guards.asking import Asker, asker, fetching
from flowdata.guards.checks import ANY, check_even, named_by_loop

_EPOCH = "epoch"
_NAMED = "named"
_PLAN = "plan"

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
    process: on several ranks, after breaking out of a pass, and where a transform around it reads
    an item more than once a pass, call `set_epoch`. So too where such a transform is shuffled
    with ``drop_last``. Items that no DataLoader fetches (``dataset[j]``, as a look at the data
    takes them) are read from the running epoch without being marked.

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
        self._served = _ServedDraws(len(self._plan))
        self._named: int | None = None

    @property
    def epoch(self) -> int:
        """The running epoch, the same in all processes of this data set."""
        return self._served.epoch

    @property
    def plan(self) -> EpochPlan:
        """The plan of the running epoch."""
        self._plan = self._plan.at_epoch(self._served.epoch)
        return self._plan

    def set_epoch(self, epoch: int) -> None:
        """Draw ``epoch`` from now on, in worker processes too, until the next call."""
        self._plan = self._plan.at_epoch(epoch)
        self._named = named_by_loop(epoch, self._named, begun=ANY)
        self._served.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """A fresh, JSON-able dict: the epoch that `set_epoch` named, for `load_state_dict`.

        Which of its items were served is the sampler's to know.
        """
        return {_EPOCH: self.epoch, _NAMED: self._served.named, _PLAN: self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the epoch of a state; where `set_epoch` was called already, that holds.

        Raises:
            MismatchError: when the state is of other weights or options, or not a state at all.
            RuntimeError: when nobody had named the epoch that was saved, so that it is not known
                which of its items were served.
        """
        if not isinstance(state, dict) or not {_EPOCH, _NAMED, _PLAN} <= state.keys():
            raise MismatchError(f"not a FlowDataset state: {state!r}")
        if state[_PLAN] != self._identity():
            raise MismatchError(
                f"the saved state draws by {state[_PLAN]}, this data set by {self._identity()}; "
                "build it from the same loss table and with the same options"
            )
        if self._served.named:
            return
        if not state[_NAMED]:
            raise RuntimeError(
                f"the state was saved in epoch {state[_EPOCH]}, which FlowDataset had found by "
                "itself, so nobody knows what of it was served: call set_epoch(epoch) before "
                "every epoch, from the first, or give the DataLoader a FlowSampler instead"
            )
        self.set_epoch(state[_EPOCH])

    def _identity(self) -> dict[str, Any]:
        plan = self._plan
        return {
            "seed": plan.seed,
            "epoch_size": len(plan),
            "scheme": plan.scheme,
            "alpha": plan.alpha,
            "weights": plan.weights.fingerprint,
            "strata": plan.strata.fingerprint if plan.strata else "",
        }

    def __len__(self) -> int:
        # Samplers ask at each pass, in the process that knows for whom.
        asked = asker()
        if asked.passing and not asked.preparing:
            check_even(asked, len(self._plan))
            self._served.check_naming(asked)
        return len(self._plan)

    def __iter__(self) -> Iterator[T_co]:
        if asker().lengths:
            raise ValueError(
                "the lengths of the draws of one epoch say nothing about the next: FlowDataset "
                "cannot be grouped by length. Use "
                'TrainingArguments(train_sampling_strategy="sequential"): the draws are shuffled '
                "already"
            )
        return (self[draw] for draw in range(len(self._plan)))

    def __getitem__(self, draw: int) -> T_co:
        size = len(self._plan)
        if not -size <= draw < size:
            raise IndexError(f"draw {draw} is outside an epoch of {size:,} draws")
        if not self._served.named and fetching():
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
        self._plan = self._plan.at_epoch(self._served.serve(places))
        rows = self._plan.rows(places).tolist()
        fetch_all: Any = getattr(self.dataset, "__getitems__", None)
        if callable(fetch_all):
            items: Sequence[T_co] = fetch_all(rows)
            return items
        return [self.dataset[row] for row in rows]


class _ServedDraws:
    """Which draws of which epoch were served, over all worker processes.

    The mark of a draw is its last epoch modulo 255, plus 1. No lock is needed: between two
    epochs the DataLoader waits for its workers, and inside one, workers that find the first
    repeated draw at the same time come to the same next epoch.
    """

    def __init__(self, draws: int) -> None:
        self._marks = torch.zeros(draws, dtype=torch.uint8)
        # The epoch, whether it was named, and whether that it was not is settled.
        self._state = torch.zeros(3, dtype=torch.int64)
        self._looked = False
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_seen": None, "_told": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy has memory of its own, which its workers have to share too.
        self.__dict__.update(state)
        self._share()

    def _share(self) -> None:
        for tensor in (self._marks, self._state):
            tensor.share_memory_()  # type: ignore[no-untyped-call]
        # The same memory: to index an array takes a tenth of what a tensor takes.
        self._seen, self._told = self._marks.numpy(), self._state.numpy()

    @property
    def epoch(self) -> int:
        return int(self._told[0])

    @property
    def named(self) -> bool:
        return bool(self._told[1])

    def set_epoch(self, epoch: int) -> None:
        self._told[:2] = epoch, 1

    def serve(self, draws: NDArray[np.int64]) -> int:
        """The epoch of a batch: the next one if any of it was served in the running one."""
        epoch = self.epoch
        if self.named:
            return epoch
        if not self._looked:
            self._looked = True
            self.check_naming(asker())
        marks = self._seen
        if (marks[draws] == epoch % 255 + 1).any():
            epoch += 1
            self._told[0] = epoch
        marks[draws] = epoch % 255 + 1
        return epoch

    def check_naming(self, asked: Asker) -> None:
        """Warn, once in all processes, where the epochs cannot be told apart unnamed."""
        if self.named or self._told[2]:
            return
        if asked.watched:
            # Nor are workers to warn, which may be ahead of the callback.
            self._told[2] = 1
            return
        if asked.lightning:
            text = (
                "Lightning names the epoch to samplers only: give its Trainer "
                "callbacks=[flowdata.frameworks.lightning.FlowCallback(dataset)], where dataset "
                "is this FlowDataset"
            )
        elif asked.accelerate:
            text = (
                "accelerate names the epoch to its sampler, or to a data set around this one, and "
                "thereby hides it from FlowDataset: use shuffle=False, as the draws are shuffled "
                'already (under the transformers Trainer: train_sampling_strategy="sequential"), '
                "and nothing around FlowDataset; or call its set_epoch(epoch) before every epoch "
                "(the Trainer: add flowdata.frameworks.trainer.FlowCallback to the callbacks)"
            )
        elif _world_size() > 1:
            text = (
                "FlowDataset cannot tell by itself when an epoch begins on several ranks, as "
                "each serves a part of it: call its set_epoch(epoch) before every epoch"
            )
        else:
            return
        self._told[2] = 1
        warn(text)


def _world_size() -> int:
    """Ranks of this run, also in a loader worker that has no process group of its own."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))
