"""Rows that were not scored whole, or not at all: cut at max_length, or without a valid loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowdata.core.arrays import is_invalid
from flowdata.report.samples import name_of
from flowdata.table.loss_table import LossTable

_CAUSES = {
    "nothing": "no token, or label, was left to score",
    "nan": "the loss is NaN, or was dropped by on_invalid",
    "infinite": "the loss is infinite",
    "negative": "the loss is negative",
}


@dataclass(frozen=True)
class NamedRow:
    """A row that is named.

    Attributes:
        row: its number.
        name: its key, or place in tar shards, where it has one.
    """

    row: int
    name: str | None


@dataclass(frozen=True)
class Cause:
    """Rows without a valid loss, and why.

    Attributes:
        why: in a few words.
        rows: how many there are.
        first: the first of them.
    """

    why: str
    rows: int
    first: tuple[NamedRow, ...]


@dataclass(frozen=True)
class LeftOut:
    """What was cut, and what was dropped.

    Attributes:
        cut: rows that were longer than the most tokens allowed; None where that is not known.
        max_length: the most tokens allowed; None where there was no limit, or it is not known.
        as_long: rows of just so many tokens, those that were cut and others; None where lengths
            are not known.
        first_as_long: the first of them.
        dropped: rows without a valid loss, which are never drawn.
        causes: of these.
    """

    cut: int | None
    max_length: int | None
    as_long: int | None
    first_as_long: tuple[NamedRow, ...]
    dropped: int
    causes: tuple[Cause, ...]


def left_out(losses: LossTable, number: int) -> LeftOut:
    """What was cut or dropped of a table, and the first rows of each kind."""
    known = losses.provenance
    given = known.given_options.get("max_length")
    most = given if type(given) is int else None
    long: Any = np.empty(0, dtype=np.int64)
    of_known_length = most is not None and losses.lengths is not None
    # A table knows how many rows were cut, and not which: those are among the rows of full length.
    if of_known_length and known.truncated != 0:
        long = np.flatnonzero(losses.lengths == most)
        # Lengths may have been counted otherwise than the rows were cut.
        of_known_length = long.size >= (known.truncated or 0)
        long = long if of_known_length else long[:0]
    invalid = np.flatnonzero(is_invalid(losses.losses))
    values = losses.losses[invalid]
    nothing = np.zeros(invalid.size, dtype=bool)
    if losses.n_tokens is not None:
        nothing = losses.n_tokens[invalid] == 0
    kinds = {
        "nothing": nothing,
        "nan": np.isnan(values) & ~nothing,
        "infinite": np.isinf(values) & ~nothing,
        "negative": np.isfinite(values) & ~nothing,
    }
    return LeftOut(
        cut=known.truncated,
        max_length=most,
        as_long=int(long.size) if of_known_length else None,
        first_as_long=_named(losses, long[:number]),
        dropped=int(invalid.size),
        causes=tuple(
            Cause(_CAUSES[kind], int(rows.sum()), _named(losses, invalid[rows][:number]))
            for kind, rows in kinds.items()
            if rows.any()
        ),
    )


def _named(losses: LossTable, rows: Any) -> tuple[NamedRow, ...]:
    return tuple(NamedRow(row, name_of(losses, row)) for row in rows.tolist())
