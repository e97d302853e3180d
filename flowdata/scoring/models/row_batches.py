"""Batches as torch's default_collate makes them, one for each shape that rows have."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import default_collate

from flowdata.scoring.models.inference import UnreadableBatch


@dataclass(frozen=True)
class BatchesByShape:
    """Rows of several shapes, as images of several sizes: (places, batch) of those of one shape."""

    parts: list[tuple[list[int], Any]]


def collate_rows(rows: list[Any]) -> Any:
    """torch's default_collate, whose errors do not say what to do.

    Raises:
        TypeError: for rows of which no batch can be made.
    """
    try:
        _require_same_columns(rows)
        return default_collate(rows)
    except (RuntimeError, TypeError, KeyError) as error:
        raise TypeError(
            f"torch's default_collate makes no batch of these rows ({error}): pass collate_fn= "
            "that does, or rows of tensors of one shape"
        ) from error


def collate_by_shape(rows: list[Any]) -> Any:
    """One batch, or, of rows that differ in shape or in their columns, `BatchesByShape`.

    `UnreadableBatch` where a row is none of its own.

    Raises:
        TypeError: for rows of which no batches can be made, though of each alone.
    """
    try:
        return _by_shape(rows)
    except TypeError:
        for place, row in enumerate(rows):
            try:
                collate_rows([row])
            except TypeError as error:
                return UnreadableBatch(place, TypeError, str(error))
        raise


def _by_shape(rows: list[Any]) -> Any:
    try:
        return collate_rows(rows)
    except TypeError:
        alike: dict[Any, list[int]] = {}
        for place, row in enumerate(rows):
            alike.setdefault(_shape_of(row), []).append(place)
        if len(alike) == 1:
            raise
        return BatchesByShape(
            [(places, collate_rows([rows[p] for p in places])) for places in alike.values()]
        )


@dataclass(frozen=True)
class CollateEach:
    """Makes a batch of each row alone."""

    collate: Callable[[list[Any]], Any]

    def __call__(self, rows: list[Any]) -> list[Any]:
        """One batch a row."""
        return [self.collate([row]) for row in rows]


def split_batch(rows: int, read: Any) -> Iterator[tuple[list[int], Any]]:
    """(places, batch) of each batch that was made of so many rows."""
    yield from read.parts if isinstance(read, BatchesByShape) else [(list(range(rows)), read)]


def _require_same_columns(rows: list[Any]) -> None:
    # torch 2.13, default_collate: it leaves out what the first row does not have.
    if isinstance(rows[0], Mapping):
        for row in rows:
            if isinstance(row, Mapping) and row.keys() != rows[0].keys():
                raise KeyError(f"one has {[*rows[0]]}, another {[*row]}")


def _shape_of(value: Any) -> Any:
    """What is alike of rows that can be one batch."""
    if (shape := getattr(value, "shape", None)) is not None:
        return tuple(shape)
    if isinstance(value, Mapping):
        return tuple((name, _shape_of(value[name])) for name in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return tuple(map(_shape_of, value))
    return None
