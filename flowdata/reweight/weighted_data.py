"""Data sets whose items come with their weights."""

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from flowdata.core.weights import FlowWeights
from flowdata.errors import InvalidLossError
from flowdata.map_style.checked_weights import require_length
from flowdata.map_style.weighted_item import WeightedItem
from flowdata.reweight.patches import patch_column_remover
from flowdata.reweight.token_weights import TokenWeights

WEIGHT_KEY = "__weight__"
_KEY = "__key__"
_PAIR = 2
"""Parts of a tuple without a weight: input and target."""
_PASSED_ON = ("set_epoch", "state_dict", "load_state_dict")


class WeightedRows(Dataset[WeightedItem]):
    """A map-style data set, with a weight for each row.

    Raises:
        MismatchError: for weights of another length.
    """

    reweighted_for: tuple[str, float] | None = None
    """Fingerprint of the weights, and the alpha of the draws that are to be weighted."""

    def __init__(
        self, dataset: Any, weights: FlowWeights, normalize: Any, alpha: float = 0.0
    ) -> None:
        require_length(dataset, len(weights))
        self.dataset = dataset
        self._values = loss_weights(weights, normalize, alpha)
        self.reweighted_for = weights.fingerprint, alpha

    def __len__(self) -> int:
        return self._values.size

    def __getitem__(self, row: int) -> WeightedItem:
        patch_column_remover()
        return WeightedItem(self.dataset[row], self._weight(row), row)

    def __getitems__(self, rows: Sequence[int]) -> list[WeightedItem]:
        patch_column_remover()
        # torch's fetcher asks for a whole batch at once where a data set has this method.
        fetch: Any = getattr(self.dataset, "__getitems__", None)
        items = fetch(rows) if callable(fetch) else [self.dataset[row] for row in rows]
        return [
            WeightedItem(item, self._weight(row), row)
            for item, row in zip(items, rows, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        return pass_on(self, name)

    def _weight(self, row: int) -> Any:
        return float(self._values[row])


class WeightedTokenRows(WeightedRows):
    """A map-style data set of texts, with a weight for each response token."""

    def __init__(self, dataset: Any, weights: TokenWeights, normalize: Any) -> None:
        self.dataset = dataset
        self._values = loss_weights(weights.weights, normalize)
        self._offsets = weights.offsets

    def __len__(self) -> int:
        return self._offsets.size - 1

    def _weight(self, row: int) -> Any:
        # As the rows of a list, negative ones count from its end.
        row = range(len(self))[row]
        return self._values[self._offsets[row] : self._offsets[row + 1]]


class WeightedStream(IterableDataset[WeightedItem]):
    """An iterable data set whose samples bring their weights."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(cast(Any, self.dataset))

    def __iter__(self) -> Iterator[WeightedItem]:
        for sample in self.dataset:
            patch_column_remover()
            if isinstance(sample, WeightedItem):
                # A pack, with a weight for each of its labels.
                yield sample
            elif isinstance(sample, Mapping) and WEIGHT_KEY in sample:
                item: Any = {name: part for name, part in sample.items() if name != WEIGHT_KEY}
                yield WeightedItem(item, _check_weight(sample[WEIGHT_KEY]), sample.get(_KEY))
            elif isinstance(sample, tuple) and len(sample) > _PAIR and _is_number(sample[-1]):
                yield WeightedItem(sample[:-1], _check_weight(sample[-1]), None)
            else:
                raise TypeError(
                    "a stream needs samples with a weight: dicts with a __weight__, as "
                    "FlowShards(..., mode='reweight') makes them, or tuples with it after input "
                    f"and target, by .to_tuple(..., '__weight__'); got {_kind(sample)}"
                )

    def __getattr__(self, name: str) -> Any:
        return pass_on(self, name)


def loss_weights(
    weights: FlowWeights, normalize: str | None, alpha: float = 0.0
) -> NDArray[np.float32]:
    """What losses are multiplied by where rows are drawn by ``w ** alpha``, shape (n,).

    Over the draws, or for alpha = 0 over a pass over all rows, the expected weighted loss is
    ``mean(w * loss)`` of all rows, those of weight 0 included, w being divided as `normalize` says.

    Raises:
        InvalidLossError: for weights that float32 cannot hold.
        ValueError: for an unknown option.
    """
    mean_of_largest = weights.total / len(weights)
    # `residual` stands for weights of mean 1; here is the mean that they are to have.
    means = {
        None: weights.mean,
        "mean": 1.0,
        "max": mean_of_largest,
        "sum": 1.0 / len(weights),
    }
    if normalize not in means:
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    with np.errstate(over="ignore", under="ignore"):
        scaled = (weights.residual(alpha) * means[normalize]).astype(np.float32)
    if not np.isfinite(scaled).all() or not scaled.any():
        raise InvalidLossError(
            f"with normalize={normalize!r} the largest weight of a loss is {scaled.max()} in "
            'float32, and nothing could be trained: use normalize="mean"'
        )
    return scaled


def _is_number(value: Any) -> bool:
    # A vector may be a target at the end of a tuple without a weight, and so may a flag.
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _kind(sample: Any) -> str:
    parts = f" of {len(sample)}" if isinstance(sample, tuple) else ""
    return type(sample).__name__ + parts


def _check_weight(weight: Any) -> float:
    value = float(weight)
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"a sample of the stream has weight {value}: it must be finite and >= 0")
    return value


def pass_on(view: Any, name: str) -> Any:
    """What frameworks call on a data set reaches the one inside, where it has it."""
    if name in _PASSED_ON:
        return getattr(view.dataset, name)
    raise AttributeError(f"{type(view).__name__!r} object has no attribute {name!r}")
