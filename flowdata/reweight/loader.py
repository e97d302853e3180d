"""reweight: a data set and collate_fn whose batches have weighted targets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

import flowdata.reweight.operations  # noqa: F401
from flowdata.errors import MismatchError
from flowdata.losses import LossTable
from flowdata.plan import EpochSize
from flowdata.reweight.target import WeightedTarget
from flowdata.sampler import FlowSampler
from flowdata.weights import FlowWeights, HasWeights, as_weights

Target: TypeAlias = int | str | Callable[[Any, Callable[[Tensor], Tensor]], Any] | None
Level: TypeAlias = Literal["sample", "token"]
Weights: TypeAlias = FlowWeights | HasWeights | ArrayLike

_NAMES = ("labels", "label", "target", "targets")
_IGNORED = 0


class _Weighed(NamedTuple):
    """An item with its weight: a number, or those of its tokens."""

    item: Any
    weight: Any


def reweight(
    dataset: Any,
    weights: Weights | None = None,
    *,
    target: Target = None,
    normalize: Literal["mean", "max", "sum"] | None = "mean",
    level: Level = "sample",
    alpha: float = 0.0,
    entry: str | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> tuple[Any, Callable[[list[Any]], Any]]:
    """A data set and a ``collate_fn`` for any DataLoader, whose batches weight their own loss.

    The target of each batch is a `WeightedTarget`, which the losses of torch multiply by its
    weights; the loop stays as it is. Weights of mean 1 (the default) keep the learning rate;
    ``normalize=None`` is the paper's ``mean(w * loss)``.

    Args:
        dataset: map-style data set of n samples; or an iterable one, whose samples are dicts with
            a ``"__weight__"``, or tuples with the weight at their end.
        weights: n weights; for ``level="token"`` a LossTable with token losses; None for an
            iterable data set.
        target: where a batch has its target: a position, a key, or a function (batch, weigh) ->
            batch that passes the target through ``weigh``. By default the last of a tuple or
            list, and "labels", "label", "target" or "targets" of a dict.
        normalize: "mean", "max", "sum" or None: what the weights are divided by.
        level: "sample", or "token" for one weight for each response token of a language model.
        alpha: weights for draws in proportion to ``w ** alpha`` (`FlowWeights.residual`).
        entry: put the weights under this key of a dict batch (or at the end of a tuple), and
            leave the target plain: for loops that one may edit.
        collate_fn: makes a batch of items; default torch's.

    Raises:
        MismatchError: for weights of another length than the data set.
        TypeError: in the loader, for a batch without such a target.
        ValueError: for an unknown option.
    """
    collate = _Collate(target, entry, collate_fn)
    if isinstance(dataset, IterableDataset):
        return _WeighedStream(dataset), collate
    if weights is None:
        raise TypeError("weights are needed: only an iterable data set has them in its samples")
    if level == "token":
        return _WeighedTokens(dataset, weights, normalize), collate
    if level != "sample":
        raise ValueError(f'level must be "sample" or "token", got {level!r}')
    values = _values(as_weights(weights), normalize, alpha)
    _check_length(dataset, values.size)
    return _WeighedRows(dataset, values), collate


def reweighting_loader(
    dataset: Any,
    weights: Weights | None = None,
    *,
    target: Target = None,
    normalize: Literal["mean", "max", "sum"] | None = "mean",
    level: Level = "sample",
    alpha: float = 0.0,
    epoch_size: EpochSize = "full",
    seed: int = 0,
    entry: str | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """The DataLoader of `reweight`; with ``alpha`` it draws by ``w ** alpha`` too.

    Every ``alpha`` has the same expected gradient: 0 reweights only, 1 resamples only.

    Args:
        epoch_size, seed: of the draws, with ``alpha`` above 0.
        options: of the DataLoader.
    """
    if alpha > 0 and weights is not None:
        if level == "token":
            raise ValueError("samples are drawn, not tokens: alpha needs level='sample'")
        options["sampler"] = FlowSampler(weights, alpha=alpha, epoch_size=epoch_size, seed=seed)
    weighed, collate = reweight(
        dataset,
        weights,
        target=target,
        normalize=normalize,
        level=level,
        alpha=alpha,
        entry=entry,
        collate_fn=collate_fn,
    )
    return DataLoader(weighed, collate_fn=collate, **options)


def _values(weights: FlowWeights, normalize: str | None, alpha: float) -> NDArray[np.float32]:
    if alpha > 0:
        return weights.residual(alpha).astype(np.float32)
    divisors = {
        None: 1.0,
        "mean": weights.mean,
        "max": weights.max,
        "sum": weights.mean * len(weights),
    }
    if normalize not in divisors:
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    return (weights.values / divisors[normalize]).astype(np.float32)


def _check_length(dataset: Any, weights: int) -> None:
    if len(dataset) != weights:
        raise MismatchError(
            f"the data set has {len(dataset):,} rows, but there are {weights:,} weights; score "
            "this data set, or pass the one that was scored"
        )


class _WeighedRows(Dataset[_Weighed]):
    def __init__(self, dataset: Any, values: NDArray[np.float32]) -> None:
        self.dataset = dataset
        self._values = values

    def __len__(self) -> int:
        return self._values.size

    def __getitem__(self, row: int) -> _Weighed:
        return _Weighed(self.dataset[row], self._weight(row))

    def __getitems__(self, rows: Sequence[int]) -> list[_Weighed]:
        fetch: Any = getattr(self.dataset, "__getitems__", None)
        items = fetch(rows) if callable(fetch) else [self.dataset[row] for row in rows]
        weights = [self._weight(row) for row in rows]
        return [_Weighed(item, weight) for item, weight in zip(items, weights, strict=True)]

    def _weight(self, row: int) -> Any:
        return float(self._values[row])


class _WeighedTokens(_WeighedRows):
    def __init__(self, dataset: Any, table: Any, normalize: Any) -> None:
        if not isinstance(table, LossTable):
            raise TypeError(
                'level="token" needs a LossTable with token losses: score with '
                "CausalLM(token_losses=True) and load with tokens=True"
            )
        _check_length(dataset, len(table))
        super().__init__(dataset, _values(table.token_weights(), normalize, 0.0))
        self._offsets = table.token_offsets

    def __len__(self) -> int:
        return self._offsets.size - 1

    def _weight(self, row: int) -> Any:
        return self._values[self._offsets[row] : self._offsets[row + 1]]


class _WeighedStream(IterableDataset[_Weighed]):
    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))

    def __iter__(self) -> Iterator[_Weighed]:
        for sample in self.dataset:
            if isinstance(sample, Mapping) and "__weight__" in sample:
                item: Any = {name: part for name, part in sample.items() if name != "__weight__"}
                yield _Weighed(item, sample["__weight__"])
            elif isinstance(sample, tuple) and isinstance(sample[-1], float):
                yield _Weighed(sample[:-1], sample[-1])
            else:
                raise TypeError(
                    "a stream needs samples with a weight: dicts with a __weight__, as "
                    "FlowShards(..., mode='reweight') makes them, or tuples with it at their end, "
                    f"by .to_tuple(..., '__weight__'); got {type(sample).__name__}"
                )


class _Collate:
    """Makes a batch of items, and gives its target the weights."""

    def __init__(
        self, target: Target, entry: str | None, collate_fn: Callable[[list[Any]], Any] | None
    ) -> None:
        self._target, self._entry = target, entry
        self._collate = collate_fn or default_collate

    def __call__(self, items: list[_Weighed]) -> Any:
        if not all(isinstance(item, _Weighed) for item in items):
            raise TypeError(
                "these items have no weights: give the DataLoader the data set that reweight "
                "returned, together with its collate_fn"
            )
        batch = self._collate([item.item for item in items])
        weights = [item.weight for item in items]
        if self._entry is None:
            return self._placed(batch, lambda target: _weigh(target, weights))
        values = torch.tensor(weights, dtype=torch.float32)
        if isinstance(batch, Mapping):
            cast(Any, batch)[self._entry] = values
            return batch
        return (*batch, values)

    def _placed(self, batch: Any, weigh: Callable[[Tensor], Tensor]) -> Any:
        if callable(self._target):
            return self._target(batch, weigh)
        place = self._target
        if isinstance(batch, Mapping):
            place = (
                next((name for name in _NAMES if name in batch), "labels")
                if place is None
                else place
            )
            if place not in batch:
                raise TypeError(f"the batch has no {place!r}, but {list(batch)}: give target=")
            cast(Any, batch)[place] = weigh(batch[place])
            return batch
        if not isinstance(batch, list | tuple):
            raise TypeError(
                f"the batch is a {type(batch).__name__}: give target= as a function (batch, weigh)"
            )
        position = -1 if place is None else place
        if not isinstance(position, int) or not -len(batch) <= position < len(batch):
            raise TypeError(f"a batch of {len(batch)} parts has no target {place!r}")
        parts = list(batch)
        parts[position] = weigh(parts[position])
        if isinstance(batch, tuple):
            return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
        return parts


def _weigh(target: Any, weights: list[Any]) -> WeightedTarget:
    if not isinstance(target, Tensor):
        raise TypeError(f"the target is a {type(target).__name__}, not a tensor: give target=")
    if len(target) != len(weights):
        raise ValueError(f"a batch of {len(weights)} samples has a target of {len(target)}")
    name = f"a batch of {len(weights)} samples"
    if not isinstance(weights[0], np.ndarray):
        return WeightedTarget(target, torch.tensor(weights, dtype=torch.float32), name)
    # Label t is predicted from position t - 1, so the first of a row never counts.
    spread = torch.zeros(target.shape, dtype=torch.float32)
    for row, tokens in enumerate(weights):
        places = (target[row, 1:] >= _IGNORED).nonzero()[:, 0] + 1
        if places.numel() != len(tokens):
            raise ValueError(
                f"sample {row} of the batch has {places.numel()} labels, but its table has "
                f"{len(tokens)} response tokens: it was scored with other labels or another length"
            )
        spread[row, places] = torch.from_numpy(tokens)
    return WeightedTarget(target, spread, name)
