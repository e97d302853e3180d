"""Whether row i of a batch is item i, whose weight it gets: not mixed, moved, left out or repeated.

A target that is what its item says, perhaps padded, is that of its row. One that a collate function
makes, one-hot rows say, must be what it makes of that item alone: of two copies of it, as some
take no batch of one. Mixed with itself a row stays what it is; mixed with others, or moved, it is
not what it would be alone.
"""

import copy
import numbers
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdata.reweight.refusals import UnweightedLossError

_IGNORED = -100
_FIRST_ROWS, _ROWS = 8, 2
"""Rows of the first batch, and of those after it, that are collated alone."""
_TRIALS = 64
"""Of a row that is not as it should be: what is made at random differs between them."""
_FIRST_BATCHES, _EVERY = 4, 64
"""Batches of which the inputs are looked at, too: the first, and then one in so many."""
_MOST_KNOWN = 4096
"""Labels of which it is kept what they become; for more, some rows of each batch are checked."""
_TOLERANCE = 1e-5
_SHOWN = 8

_MOVES = (
    "moves, leaves out or repeats some, so that the weights of the items are not those of the "
    "rows. Keep a row for each item, in their order (where rows are to be sorted by length, by a "
    "sampler)"
)

FindTargets = Callable[[Any], list[Tensor]]


class CollatedRows:
    """Checks the batches of one collate function, in one process.

    Args:
        collate_fn: makes a batch of a list of items.
        find_targets: gives the targets of a batch.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], find_targets: FindTargets) -> None:
        self._collate, self._find_targets = collate_fn, find_targets
        self._batches = 0
        self._alone: dict[tuple[int, int], Tensor] = {}
        """By target and label: the row that an item of this label becomes alone."""

    def check(
        self, batch: Any, items: Sequence[Any], own: Sequence[Any] | None, targets: list[Tensor]
    ) -> None:
        """Make sure that each row of the targets of a batch is that of its item.

        Args:
            batch: what was made of the items.
            items: as they were before that.
            own: the target of each, where they have one.
            targets: those of the batch, each of shape (B, ...).

        Raises:
            UnweightedLossError: naming a row that is not.
        """
        self._batches += 1
        for number, target in enumerate(targets):
            if target.layout != torch.strided:
                target = target.to_dense()
            given = own if number == 0 else None
            agrees = [False] * len(items) if given is None else _agreeing(given, target)
            unknown = [row for row, known in enumerate(agrees) if not known]
            if unknown and (_are_numbers(given) or not _numbers_rows(target)):
                self._check_rows(items, given, unknown, target, number)
        self._refuse_moved_targets(batch, items, targets[0])
        if self._batches <= _FIRST_BATCHES or self._batches % _EVERY == 0:
            self._refuse_moved_rows(batch, items, targets[0])

    def _check_rows(
        self,
        items: Sequence[Any],
        own: Sequence[Any] | None,
        rows: list[int],
        target: Tensor,
        number: int,
    ) -> None:
        """Compare rows with what their items become alone: all of one label each, or some."""
        labels = {} if own is None else {row: _label(own[row]) for row in rows}
        alone_rows = [self._alone.get((number, label)) for label in labels.values()]  # type: ignore[arg-type]
        if _are_known(alone_rows, target[rows]):
            return
        if not labels or None in labels.values():
            few = _FIRST_ROWS if self._batches == 1 else _ROWS
            start = self._batches * few
            rows = [rows[(start + k) % len(rows)] for k in range(min(few, len(rows)))]
        for row in rows:
            place = number, labels.get(row)
            known = self._alone.get(place)  # type: ignore[arg-type]
            if known is not None and _same(known, target[row]):
                continue
            alone = self._require_row(items, target, row, number)
            if alone is None:
                return
            if place[1] is not None and len(self._alone) < _MOST_KNOWN:
                self._alone[number, place[1]] = alone.cpu()

    def _require_row(
        self, items: Sequence[Any], target: Tensor, row: int, number: int
    ) -> Tensor | None:
        """What an item becomes alone, or None where that is made at random, or cannot be told."""
        found, trials = target[row], list[Tensor]()
        with _random_state_kept():
            for _ in range(_TRIALS):
                batch = self._collated_alone(items[row], len(items))
                if batch is None:
                    return None
                alone = self._find_targets(batch)[number][0]
                alone = alone if alone.layout == torch.strided else alone.to_dense()
                if _same(alone, found):
                    return alone
                if trials and not _same(alone, trials[0]):
                    return None
                trials.append(alone)
        raise UnweightedLossError(
            f"row {row} of the batch that your collate_fn made has the target "
            f"{_shown(found, trials[0])}, but its item alone becomes {_shown(trials[0], found)}: "
            "the collate_fn mixes rows (mixup, cutmix, a mean of the batch), or "
            f"{_MOVES}, and mix inputs and targets in the loop"
        )

    def _collated_alone(self, item: Any, rows: int) -> Any:
        """The batch of two copies, or of as many as there were rows; None where it cannot be."""
        for copies in (2, rows):
            try:
                batch = self._collate([copied(item) for _ in range(copies)])
                self._find_targets(batch)[0][0]
            except Exception:
                # It may need a whole batch, or an item that it has not changed.
                continue
            return batch
        return None

    def _refuse_moved_targets(self, batch: Any, items: Sequence[Any], target: Tensor) -> None:
        """Make sure that no other part of a batch is its target in another order.

        Mixup makes one, which would come into the loss without weights.
        """
        for name, part in _new_parts(batch, items[0]):
            alike = isinstance(part, Tensor) and part.shape == target.shape
            if not alike or part.dtype != target.dtype or not _is_reordered(part, target):
                continue
            elsewhere = (part != target).reshape(len(target), -1).any(1)
            alone = self._collated_alone(items[int(elsewhere.nonzero()[0, 0])], len(items))
            if alone is None:
                continue
            # A part that only happens to have the same values is another one alone, too.
            if _same(dict(_new_parts(alone, items[0]))[name][0], self._find_targets(alone)[0][0]):
                raise UnweightedLossError(
                    f"the part {name!r} of the batch that your collate_fn made is its target in "
                    "another order, as for mixup, and would come into the loss without weights: "
                    "give the loop the order, and take target[order] there, which has them"
                )

    def _refuse_moved_rows(self, batch: Any, items: Sequence[Any], target: Tensor) -> None:
        """Make sure that no input is that of another item, where targets may be alike."""
        for name, part in _parts(batch):
            own = _own_parts(name, items)
            rows = isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(items)
            if own is None or not rows or part is target:
                continue
            agrees = _agreeing(own, part)
            if all(agrees):
                continue
            row = agrees.index(False)
            # One that the collate function only passes on, as it does for the item alone.
            source = [item for item, value in enumerate(own) if _is_own(value, part[row])]
            alone = self._collated_alone(items[row], len(items)) if len(source) == 1 else None
            if alone is not None and _is_own(own[row], dict(_parts(alone))[name][0]):
                raise UnweightedLossError(
                    f"row {row} of the batch that your collate_fn made is item {source[0]}, by its "
                    f"part {name!r}: the collate_fn {_MOVES}"
                )


def copied(item: Any) -> Any:
    """An item whose containers are its own: a collate function may take parts out of them."""
    if isinstance(item, tuple) and type(item) is tuple:
        return tuple(copied(part) for part in item)
    return copy.copy(item) if isinstance(item, dict | list) else item


def _parts(batch: Any) -> list[tuple[Any, Any]]:
    """Parts of a batch by their names, or positions."""
    if isinstance(batch, Mapping):
        return list(batch.items())
    return list(enumerate(batch)) if isinstance(batch, list | tuple) else []


def _own_parts(name: Any, items: Sequence[Any]) -> list[Any] | None:
    """What the items have where a batch has a part of this name, or position."""
    try:
        return [item[name] for item in items]
    except (TypeError, LookupError):
        return None


def _new_parts(batch: Any, item: Any) -> list[tuple[Any, Any]]:
    """Those that its items do not have."""
    if isinstance(batch, Mapping):
        names = item if isinstance(item, Mapping) else ()
        return [(name, part) for name, part in batch.items() if name not in names]
    return _parts(batch)[len(item) if isinstance(item, list | tuple) else 0 :]


def _is_reordered(part: Tensor, target: Tensor) -> bool:
    if torch.equal(part, target):
        return False
    rows, others = (each.reshape(len(each), -1).tolist() for each in (part, target))
    return sorted(rows) == sorted(others)


def _agreeing(own: Sequence[Any], target: Tensor) -> list[bool]:
    """Whether each row is the target of its item."""
    if _are_numbers(own):
        if target.numel() != len(own):
            return [False] * len(own)
        try:
            values = torch.as_tensor(np.array([float(value) for value in own]))
        except (TypeError, ValueError):
            return [False] * len(own)
        agrees: list[bool] = _equal(values.to(target.dtype), target.cpu().flatten()).tolist()
        return agrees
    return [_is_own(value, row) for value, row in zip(own, target.cpu(), strict=True)]


def _is_own(value: Any, row: Tensor) -> bool:
    """Whether a row is the target of its item, which may be padded, or cut off."""
    try:
        given = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return _same(given.to(row.dtype), row)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two rows are alike, but for padding at the end or the start of one of them."""
    one, other = one.cpu(), other.cpu()
    if one.shape == other.shape:
        return bool(_equal(one, other).all())
    if one.ndim != other.ndim or one.ndim == 0 or one.shape[1:] != other.shape[1:]:
        return False
    short, long = sorted((one, other), key=len)
    n = len(short)
    for part, rest in ((long[:n], long[n:]), (long[len(long) - n :], long[: len(long) - n])):
        if bool(_equal(short, part).all()) and bool((rest == rest[:1]).all()):
            return True
    return False


def _equal(one: Tensor, other: Tensor) -> Tensor:
    """Which elements are equal; labels that are ignored in one of two are as good as equal."""
    if other.is_floating_point():
        one = one.to(other.dtype)
        return torch.isclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
    equal = one == other
    return equal | (one == _IGNORED) | (other == _IGNORED) if other.dtype.is_signed else equal


def _are_known(alone: list[Tensor | None], rows: Tensor) -> bool:
    """Whether rows are what is known of their items; None where nothing is."""
    known = [row for row in alone if row is not None]
    if len(known) < len(rows) or any(row.shape != rows.shape[1:] for row in known):
        return False
    return bool(_equal(torch.stack(known), rows.cpu()).all())


def _are_numbers(own: Sequence[Any] | None) -> bool:
    return own is not None and all(
        isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0 for value in own
    )


def _label(value: Any) -> int | None:
    """A target that is one integer, of which there are few."""
    if isinstance(value, Tensor | np.generic) and value.ndim == 0:
        value = value.item()
    return int(value) if isinstance(value, int) else None


def _numbers_rows(target: Tensor) -> bool:
    """Whether the target says which input of the batch is meant, as in contrastive learning."""
    target = target.cpu()
    if target.ndim == 1:
        return torch.equal(target, torch.arange(len(target), dtype=target.dtype))
    n = len(target)
    return target.shape == (n, n) and torch.equal(target, torch.eye(n, dtype=target.dtype))


def _shown(row: Tensor, other: Tensor) -> str:
    """Some values of a row, from the first on that another has not."""
    values, start = row.cpu().flatten(), 0
    if row.shape == other.shape:
        start = int((values != other.cpu().flatten()).int().argmax())
    some = [round(value, 4) for value in values[start : start + _SHOWN].tolist()]
    before, after = "..., " * (start > 0), ", ..." * (start + _SHOWN < values.numel())
    return f"[{before}{str(some)[1:-1]}{after}]"


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Inside it random numbers may be drawn that nobody outside misses."""
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
