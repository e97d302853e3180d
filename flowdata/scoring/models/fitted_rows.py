"""The rows on which a head was fitted in this process, so that scoring them can be warned of."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from flowdata.errors import warn
from flowdata.table.digest import Digest
from flowdata.table.fingerprint import rows_read

_ROWS_READ = 16
_LEAST_SHARE = 0.25
# A row takes 8 bytes, and a probe is seldom scored long after another one.
_MOST_HEADS = 8

# By the content of the head: a copy of the model and one that its state was loaded into have it
# too, and models, states and pickles stay as they are.
_FITTED: OrderedDict[str, tuple[tuple[int, ...], NDArray[np.uint64]]] = OrderedDict()


@dataclass(frozen=True)
class HashingCollate:
    """Rows, hashed in a loader worker if there are any: (hashes, what the collate_fn made)."""

    collate_fn: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> tuple[NDArray[np.uint64], Any]:
        """Hash rows, and make a batch of them."""
        return hashes_of(rows), self.collate_fn(rows)


def hashes_of(rows: list[Any]) -> NDArray[np.uint64]:
    """A hash of each row that has content."""
    found = []
    for row in rows:
        digest = Digest()
        digest.feed(_compact(row))
        if digest.has_content:
            found.append(int(digest.hexdigest()[:16], 16))
    return np.array(found, dtype=np.uint64)


def _compact(value: Any) -> Any:
    """The same with lists of numbers as arrays: hashing tokens one by one would take too long."""
    if isinstance(value, Mapping):
        return {name: _compact(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_compact, value))
    if isinstance(value, list) and value and all(isinstance(part, int | float) for part in value):
        return np.asarray(value)
    return value


def remember(head: nn.Module, hashes: NDArray[np.uint64]) -> None:
    """Remember the rows of a head that was fitted on them."""
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not layers:
        return
    # Of several layers the last one is looked for, which no other head has.
    last = layers[-1]
    _FITTED[_content(last)] = tuple(last.weight.shape), np.unique(hashes)
    while len(_FITTED) > _MOST_HEADS:
        _FITTED.popitem(last=False)


def warn_if_fitted_on(model: nn.Module, dataset: Any) -> None:
    """Warn where a head of the model was fitted on these rows, or on some of them."""
    shapes = {shape for shape, _ in _FITTED.values()}
    contents = (
        _content(module)
        for module in model.modules()
        if isinstance(module, nn.Linear) and tuple(module.weight.shape) in shapes
    )
    fitted = next((_FITTED[content][1] for content in contents if content in _FITTED), None)
    if fitted is None:
        return
    hashes = hashes_of([dataset[row] for row in rows_read(len(dataset), _ROWS_READ)])
    share = np.isin(hashes, fitted).mean() if hashes.size else 0.0
    if share >= _LEAST_SHARE:
        warn(
            f"the head was fitted on {'these rows' if share == 1 else 'some of these rows'} by "
            "linear_probe or score_probe: it has learned their labels, wrong ones too, so that "
            "their losses say little. score_probe scores each row by a head that has not seen it"
        )


def _content(head: nn.Linear) -> str:
    digest = Digest()
    # What was fitted is kept in the head's own type, on its device.
    digest.feed([parameter.detach() for parameter in head.parameters()])
    return digest.hexdigest()
