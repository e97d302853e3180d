"""Collate: makes a batch of weighted items, and gives its target the weights."""

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from flowdata.map_style.weighted_item import WeightedItem
from flowdata.reweight.collated_rows import CollatedRows, copied
from flowdata.reweight.flattened import other_labels, spans_in_row, weights_of_row
from flowdata.reweight.target import WeightedTarget
from flowdata.reweight.target_data import plain

AddWeights: TypeAlias = Callable[[Any], WeightedTarget]
Target: TypeAlias = int | str | Callable[[Any, AddWeights], Any] | None

_TARGET_KEYS = ("labels", "label", "target", "targets")
_ROWS_SHOWN = 8
_FIRST_CLASS = 0
"""Smaller labels are ignored by losses, as the -100 of torch, and have no weight of a token."""


class Collate:
    """A collate_fn.

    Args:
        target, entry, collate_fn: see `reweight`.
        reweight_id: of the call of `reweight` that it is for.
        shifted: whether label t of a text is predicted from token t - 1, so that its first never
            counts; else, as of an encoder-decoder, all labels do.
    """

    def __init__(
        self,
        target: Target,
        entry: str | None,
        collate_fn: Callable[[list[Any]], Any] | None,
        reweight_id: str,
        *,
        shifted: bool = True,
    ) -> None:
        self._target, self._entry, self._reweight_id = target, entry, reweight_id
        self._first_label = int(shifted)
        self._collate = collate_fn or default_collate
        self._rows = CollatedRows(self._collate, self._targets_of)

    def __call__(self, items: list[WeightedItem]) -> Any:
        """The batch of these items."""
        if not isinstance(items, list) or not all(isinstance(item, WeightedItem) for item in items):
            raise TypeError(
                "these items have no weights: give the DataLoader the data set that reweight "
                "returned, together with its collate_fn, and let it make the batches. Where an "
                "evaluation shares this collate_fn, give its data set weights of one: "
                "reweight(data, np.ones(len(data)))"
            )
        # The target is found in the batch, not in the items: padding and stacking are done by then.
        matters = _differ([item.weight for item in items])
        given = [copied(item.item) for item in items] if len(items) > 1 else []
        batch = self._collate([item.item for item in items])
        spans = spans_in_row(batch, given)
        if matters and spans is None:
            self._check_rows(batch, given)
        if self._entry is None:
            return self._replace_target(batch, lambda target: self._weighted(target, items, spans))
        if spans is None and not isinstance(items[0].weight, np.ndarray):
            weights = torch.tensor([item.weight for item in items], dtype=torch.float32)
        else:
            # Weights of tokens need the labels of the batch, for their places.
            found: list[Tensor] = []
            batch = self._replace_target(
                batch, lambda target: self._collect(target, items, spans, found)
            )
            [weights] = found
        if isinstance(batch, Mapping):
            cast(Any, batch)[self._entry] = weights
            return batch
        return [*batch, weights] if isinstance(batch, list) else (*batch, weights)

    def _check_rows(self, batch: Any, items: list[Any]) -> None:
        """Make sure that rows are those of the items.

        Weights that are an entry need no target; without one, nobody can tell.
        """
        try:
            targets = self._targets_of(batch)
            for target in targets:
                _require_rows(target, len(items))
        except (TypeError, ValueError):
            if self._entry is None:
                raise
            return
        if targets:
            self._rows.check(batch, items, self._own_targets(batch, items), targets)

    def _targets_of(self, batch: Any) -> list[Any]:
        """What of a batch is given weights; the batch stays as it is."""
        found: list[Any] = []

        def note(target: Any) -> Any:
            found.append(plain(target))
            return target

        self._replace_target(copy.copy(batch), note)
        return found

    def _own_targets(self, batch: Any, items: list[Any]) -> list[Any] | None:
        """The target of each item, where it has one in the same place as the batch."""
        if callable(self._target):
            return None
        if isinstance(batch, Mapping):
            place = self._place_in(batch)
            # transformers' collators take labels from elsewhere.
            for name in (place, *_TARGET_KEYS, "label_ids", "input_ids"):
                if all(isinstance(item, Mapping) and name in item for item in items):
                    return [item[name] for item in items]
            return None
        position: Any = -1 if self._target is None else self._target
        try:
            return [item[position] for item in items]
        except (TypeError, LookupError):
            return None

    def _place_in(self, batch: Mapping[Any, Any]) -> Any:
        if self._target is not None:
            return self._target
        return next((name for name in _TARGET_KEYS if name in batch), "labels")

    def _collect(
        self,
        target: Any,
        items: list[WeightedItem],
        spans: list[slice] | None,
        found: list[Tensor],
    ) -> Any:
        """The target as it is, and its weights put down in a list."""
        weighted = self._weighted(target, items, spans)
        found.append(weighted.weights)
        return plain(weighted)

    def _weighted(
        self, target: Any, items: list[WeightedItem], spans: list[slice] | None
    ) -> WeightedTarget:
        own, names = [item.weight for item in items], [item.name for item in items]
        if spans is None:
            weights = weights_of(target, own, names, first_label=self._first_label)
        else:
            weights = weights_of_row(target, own, names, spans)
        return WeightedTarget(target, weights, _batch_name(items), self._reweight_id)

    def _replace_target(self, batch: Any, add_weights: Callable[[Any], Any]) -> Any:
        if callable(self._target):
            return self._target(batch, add_weights)
        place: Any = self._target
        if isinstance(batch, Mapping):
            place = self._place_in(batch)
            if place not in batch:
                raise TypeError(f"the batch has no {place!r}, but {list(batch)}: give target=")
            cast(Any, batch)[place] = add_weights(batch[place])
            return batch
        if not isinstance(batch, list | tuple):
            raise TypeError(
                f"the batch is a {type(batch).__name__}: give target= as a function "
                "(batch, add_weights)"
            )
        position = -1 if place is None else place
        if not isinstance(position, int) or not -len(batch) <= position < len(batch):
            raise TypeError(f"a batch of {len(batch)} parts has no target {place!r}")
        parts = list(batch)
        parts[position] = add_weights(parts[position])
        if isinstance(batch, tuple):
            # A named tuple stays one.
            return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
        return parts


def weights_of(
    target: Any, weights: list[Any], names: list[Any], *, first_label: int = 1
) -> Tensor:
    """Weights for a target of shape (B, ...): shape (B,), or (B, T) if they are of tokens.

    Where label t of a row is predicted from position t - 1, its first never counts.

    Raises:
        TypeError: for a target that is not a tensor.
        ValueError: for one of another length, or with another number of labels than of weights.
    """
    _require_rows(target, len(weights))
    if not isinstance(weights[0], np.ndarray):
        return torch.tensor(weights, dtype=torch.float32)
    spread = torch.zeros(target.shape, dtype=torch.float32)
    for row, tokens in enumerate(weights):
        learned = target[row, first_label:] >= _FIRST_CLASS
        places = learned.nonzero()[:, 0] + first_label
        if places.numel() != len(tokens):
            raise other_labels(names[row], places.numel(), len(tokens))
        spread[row, places] = torch.from_numpy(tokens)
    return spread


def _require_rows(target: Any, samples: int) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"the target is a {type(target).__name__}, not a tensor: give target=")
    if target.ndim == 0 or len(target) != samples:
        raise ValueError(
            f"a batch of {samples} samples has a target of shape {tuple(target.shape)}: it needs "
            "one row for each sample, as their weights are given to rows"
        )


def _differ(weights: list[Any]) -> bool:
    """Whether it matters which row has which weight."""
    if isinstance(weights[0], np.ndarray):
        return len(weights) > 1
    return any(weight != weights[0] for weight in weights)


def _batch_name(items: list[WeightedItem]) -> str:
    names = [
        str(item.name) for item in itertools.islice(items, _ROWS_SHOWN) if item.name is not None
    ]
    if not names:
        return f"a batch of {len(items)} samples"
    more = ", ..." if len(items) > len(names) else ""
    return f"the batch of {len(items)} samples, rows {', '.join(names)}{more}"
