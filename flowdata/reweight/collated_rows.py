"""Whether row i of a batch is item i, whose weight it gets: not mixed, moved, left out or repeated.

A target that is what its item says, perhaps padded, is that of its row. One that a collate function
makes, one-hot rows say, must be what it makes of that item alone: of two copies of it, as some
take no batch of one. Mixed with itself a row stays what it is; mixed with others, or moved, it is
not what it would be alone.
"""

import copy
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowdata.reweight.kept_state import kept_state
from flowdata.reweight.refusals import UnweightedLossError

_IGNORED = -100
_FIRST_ROWS, _ROWS = 8, 2
"""Rows of the first batch, and of those after it, that are collated alone."""
_FIRST_BATCHES, _EVERY = 4, 64
"""Batches of which that is done, and the inputs are looked at: the first, one in so many."""
_MOST_TRIED = 64
"""Rows that are collated alone because they are not as those before."""
_TRIALS = 64
"""Of a row that is not as it should be: what is made at random differs between them."""
_MOST_KNOWN = 1 << 20
"""Elements of the rows of labels that are kept."""
_ELEMENTS = 1 << 12
"""Of a larger row so many are compared, evenly spread."""
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

    It is called again for single items seldom, whatever it costs: for some of the first batches,
    of every 64th, and where a row is not as those before it, up to a number.

    Args:
        collate_fn: makes a batch of a list of items.
        find_targets: gives the targets of a batch.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any], find_targets: FindTargets) -> None:
        self._collate, self._find_targets = collate_fn, find_targets
        self._batches = 0
        self._left = _MOST_TRIED
        self._known: dict[tuple[int, int], Tensor] = {}
        """By target and label: the row that an item of this label has become."""
        self._room = _MOST_KNOWN
        self._agreed: set[int] = set()
        """Targets of which rows were what their items say."""

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
        due = self._batches <= _FIRST_BATCHES or self._batches % _EVERY == 0
        for number, target in enumerate(targets):
            if target.layout != torch.strided:
                target = target.to_dense()
            given = own if number == 0 else None
            agrees = [False] * len(items) if given is None else _agreeing(given, target)
            if any(agrees):
                self._agreed.add(number)
            others = [row for row, known in enumerate(agrees) if not known]
            if others:
                self._check_rows(items, given, others, target, number, due)
        self._refuse_moved_targets(batch, items, targets[0])
        if due:
            self._refuse_moved_rows(batch, items, targets[0])

    def _check_rows(
        self,
        items: Sequence[Any],
        own: Sequence[Any] | None,
        rows: list[int],
        target: Tensor,
        number: int,
        due: bool,
    ) -> None:
        """Compare some rows, which are not what their items say, with what is made alone."""
        few = _FIRST_ROWS if self._batches == 1 else _ROWS
        unlike = self._unlike(own, rows, target, number)[: min(few, self._left)]
        self._left -= len(unlike)
        start = self._batches * few
        turn = [rows[(start + k) % len(rows)] for k in range(min(few, len(rows)))] if due else []
        for row in dict.fromkeys([*unlike, *turn]):
            if not self._is_own_row(items, target, row, number):
                return

    def _unlike(
        self, own: Sequence[Any] | None, rows: list[int], target: Tensor, number: int
    ) -> list[int]:
        """Rows that are not as those before them: of the same label, or what their item says."""
        if own is None:
            return []
        labels = [_label(own[row]) for row in rows]
        known = [None if label is None else self._known.get((number, label)) for label in labels]
        if _are_known(known, target[rows]):
            return []
        unlike = []
        for row, label in zip(rows, labels, strict=True):
            if label is None:
                unlike += [row] if number in self._agreed else []
                continue
            before = self._known.get((number, label))
            if before is not None and not _same(before, target[row]):
                unlike.append(row)
            elif before is None and self._room > 0:
                self._room -= target[row].numel()
                self._known[number, label] = target[row].to("cpu", copy=True)
        return unlike

    def _is_own_row(self, items: Sequence[Any], target: Tensor, row: int, number: int) -> bool:
        """Whether a row is what its item becomes alone; False also where nobody can tell.

        Raises:
            UnweightedLossError: if it is not.
        """
        found, first = target[row].cpu().clone(), None
        with kept_state(self._collate) as repeatable:
            if not repeatable:
                return False
            # A row that says where it stands is as it is alone only among as many.
            for copies in [2] * _TRIALS + [len(items)]:
                batch = self._collated_alone(items[row], copies, len(items))
                if batch is None:
                    return False
                alone = self._find_targets(batch)[number]
                alone = (alone if alone.layout == torch.strided else alone.to_dense()).cpu()
                if any(_same(each, found) for each in alone):
                    return True
                first = alone[0].clone() if first is None else first
                drawn = copies == 2 and not _same(alone[0], first)
                if drawn or _is_of_pairs(alone, target) or _is_resized(alone[0], found):
                    return False
        assert first is not None
        raise UnweightedLossError(
            f"row {row} of the batch that your collate_fn made has the target "
            f"{_shown(found, first)}, but its item alone becomes {_shown(first, found)}: "
            "the collate_fn mixes rows (mixup, cutmix, a mean of the batch), or "
            f"{_MOVES}, and mix inputs and targets in the loop"
        )

    def _collated_alone(self, item: Any, copies: int, rows: int) -> Any:
        """The batch of so many copies, or of as many as there were rows; None where none can be."""
        for count in dict.fromkeys((copies, rows)):
            try:
                batch = self._collate([copied(item) for _ in range(count)])
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
            if not alike or part.dtype != target.dtype or self._left <= 0:
                continue
            if not _is_reordered(part, target):
                continue
            elsewhere = (part != target).reshape(len(target), -1).any(1)
            self._left -= 1
            with kept_state(self._collate) as repeatable:
                item = items[int(elsewhere.nonzero()[0, 0])]
                alone = self._collated_alone(item, 2, len(items)) if repeatable else None
                if alone is None:
                    continue
                other, own = dict(_new_parts(alone, items[0]))[name], self._find_targets(alone)[0]
                # A part that only happens to have the same values is another one alone, too.
                alike = _same(other[0], own[0])
            if alike:
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
            if len(source) != 1:
                continue
            with kept_state(self._collate) as repeatable:
                alone = self._collated_alone(items[row], 2, len(items)) if repeatable else None
                passed = alone is not None and _is_own(own[row], dict(_parts(alone))[name][0])
            if passed:
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
    # The sum, which is quick, tells most.
    if torch.equal(part, target) or not _equal(part.sum(), target.sum()):
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


def _same(own: Tensor, found: Tensor) -> bool:
    """Whether a row is what is its own, but for padding, or a cut, at the end or the start."""
    own, found = own.cpu(), found.cpu()
    if own.shape == found.shape:
        own, found = _some(own), _some(found)
        return torch.equal(own, found) or bool(_equal(own, found).all())
    if own.ndim != found.ndim:
        return False
    sizes = [min(pair) for pair in zip(own.shape, found.shape, strict=True)]
    for part in (tuple(slice(n) for n in sizes), tuple(slice(-n, None) for n in sizes if n)):
        rest = found[sizes[0] :] if part[0].start is None else found[: len(found) - sizes[0]]
        if bool(_equal(own[part], found[part]).all()) and bool((rest == rest[:1]).all()):
            return True
    return 0 in sizes


def _some(row: Tensor) -> Tensor:
    """Its elements, or one in so many of an image."""
    return row.reshape(-1)[:: row.numel() // _ELEMENTS | 1]


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
    stacked, rows = torch.stack(known), rows.cpu()
    return torch.equal(stacked, rows) or bool(_equal(stacked, rows).all())


def _are_numbers(own: Sequence[Any] | None) -> bool:
    return own is not None and all(
        isinstance(value, numbers.Real) or getattr(value, "ndim", None) == 0 for value in own
    )


def _label(value: Any) -> int | None:
    """A target that is one integer, of which there are few."""
    if isinstance(value, Tensor | np.generic) and value.ndim == 0:
        value = value.item()
    return int(value) if isinstance(value, int) else None


def _is_of_pairs(alone: Tensor, target: Tensor) -> bool:
    """Whether a row is of relations to all rows of the batch, as in contrastive learning."""
    return alone.shape[1:2] == (len(alone),) and target.shape[1:2] == (len(target),) != (
        len(alone),
    )


def _is_resized(alone: Tensor, found: Tensor) -> bool:
    """Whether an image has another size alone than in its batch, so that they do not compare."""
    return alone.ndim > 1 and alone.shape != found.shape


def _shown(row: Tensor, other: Tensor) -> str:
    """Some values of a row, from the first on that another has not."""
    values, start = row.cpu().flatten(), 0
    if row.shape == other.shape:
        start = int((values != other.cpu().flatten()).int().argmax())
    some = [round(value, 4) for value in values[start : start + _SHOWN].tolist()]
    before, after = "..., " * (start > 0), ", ..." * (start + _SHOWN < values.numel())
    return f"[{before}{str(some)[1:-1]}{after}]"
