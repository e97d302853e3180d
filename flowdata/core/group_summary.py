"""GroupSummary: what each group of rows gets of an epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import PIECE, Source
from flowdata.core.groups import Groups, Name
from flowdata.core.made_weights import Made

_LEAST_OF_ROWS = 0.5
_SHOWN = 50
_EXPECTED = ("of draws (expected)", "of tokens (expected)")
_MOST_OF_NAME = 80


class Weighted(Protocol):
    """What is asked of FlowWeights."""

    made: Made

    def __len__(self) -> int: ...

    def part(self, start: int, stop: int) -> NDArray[np.float64]:
        """The relative weights of rows [start, stop)."""
        ...

    @property
    def total(self) -> float:
        """Sum of the relative weights."""
        ...

    @property
    def mean(self) -> float:
        """Mean weight."""
        ...

    @property
    def max(self) -> float:
        """Largest weight."""
        ...

    @property
    def ess(self) -> float:
        """Effective sample size."""
        ...


@dataclass(frozen=True)
class GroupSummary:
    """What one group of rows gets.

    Attributes:
        name: the group.
        rows: its rows.
        median_loss: of its valid losses; None where losses are not known.
        share_of_rows: of all rows.
        share_of_draws: of all draws, in expectation.
        share_of_tokens: of the tokens of all draws, in expectation; None where lengths are not
            known.
        ess: effective sample size of its rows; 0 if none can be drawn.
    """

    name: Name
    rows: int
    median_loss: float | None
    share_of_rows: float
    share_of_draws: float
    share_of_tokens: float | None
    ess: float


def of_groups(weights: Weighted, groups: Groups) -> tuple[GroupSummary, ...]:
    """The figures of each group, in the order of their numbers."""
    sizes = groups.sizes()
    lengths = weights.made.lengths
    draws, squares, tokens = _sums(weights, groups, lengths)
    medians = _medians(weights.made.losses, groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        ess = np.where(squares > 0.0, draws**2 / squares, 0.0)
        shares = tokens / tokens.sum()
    return tuple(
        GroupSummary(
            name=name,
            rows=int(sizes[number]),
            median_loss=medians[number],
            share_of_rows=float(sizes[number] / groups.codes.size),
            share_of_draws=float(draws[number] / draws.sum()),
            share_of_tokens=float(shares[number]) if lengths is not None else None,
            ess=float(ess[number]),
        )
        for number, name in enumerate(groups.names)
    )


def _sums(weights: Weighted, groups: Groups, lengths: Source | None) -> NDArray[np.float64]:
    """Weights, their squares, and the tokens they draw, added up for each group: (3, groups)."""
    sums = np.zeros((3, len(groups)))
    for start in range(0, groups.codes.size, PIECE):
        relative = weights.part(start, start + PIECE)
        terms = [relative, np.square(relative)]
        if lengths is not None:
            terms.append(relative * lengths[start : start + PIECE])
        codes = groups.codes[start : start + PIECE]
        for row, term in zip(sums, terms, strict=False):
            row += np.bincount(codes, weights=term, minlength=len(groups))
    return sums


def _medians(losses: Source | None, groups: Groups) -> list[float | None]:
    if losses is None:
        return [None] * len(groups)
    held = losses[:]
    medians: list[float | None] = []
    for rows in groups.rows():
        some = held[rows]
        some = some[np.isfinite(some) & (some >= 0)]
        medians.append(float(np.median(some)) if some.size else None)
    return medians


def is_starved(group: GroupSummary) -> bool:
    """Whether a group gets less than half of its share of the rows."""
    return group.share_of_draws < _LEAST_OF_ROWS * group.share_of_rows


def shown_groups(groups: Sequence[GroupSummary], most: int = _SHOWN) -> list[GroupSummary]:
    """All groups, or, of many, those with the most rows, in their order."""
    largest = sorted(range(len(groups)), key=lambda number: -groups[number].rows)
    return [groups[number] for number in sorted(largest[:most])]


def _shown_name(group: GroupSummary) -> str:
    name = str(group.name)
    return name if len(name) <= _MOST_OF_NAME else f"{name[: _MOST_OF_NAME - 1]}…"


def notes_on_groups(groups: Sequence[GroupSummary]) -> list[str]:
    """A sentence about the groups that get less than half of their share of the rows, if any."""
    starved = [group for group in groups if is_starved(group)]
    if not starved:
        return []
    shown = ", ".join(
        f"{_shown_name(group)} ({group.share_of_rows:.1%} of the rows, "
        f"{group.share_of_draws:.1%} of the draws)"
        for group in starved[:5]
    )
    more = f" and {len(starved) - 5:,} more groups" if len(starved) > 5 else ""
    return [
        f"{shown}{more}: drawn less than half as often as rows are on average. If that is not "
        'meant, give each group a temperature and a share: weights(groups=..., shares="rows")'
    ]


def groups_table(groups: Sequence[GroupSummary]) -> list[list[str]]:
    """The figures of groups in lines of as many texts, after those of their head.

    Of many groups there are those with the most rows. What is known of none has no column.
    """
    head = ["group", "rows", "median loss", "of rows", *_EXPECTED, "ESS"]
    rows = [
        [
            _shown_name(group),
            f"{group.rows:,}",
            "" if group.median_loss is None else f"{group.median_loss:.4g}",
            f"{group.share_of_rows:.1%}",
            f"{group.share_of_draws:.1%}",
            "" if group.share_of_tokens is None else f"{group.share_of_tokens:.1%}",
            f"{group.ess:,.1f}",
        ]
        for group in shown_groups(groups)
    ]
    lines = without_empty_columns(head, rows)
    if len(groups) > _SHOWN:
        more = f"{len(groups) - _SHOWN:,} more groups"
        lines.append([more, *[""] * (len(lines[0]) - 1)])
    return lines


def without_empty_columns(head: list[str], rows: list[list[str]]) -> list[list[str]]:
    """The lines of a table, its head first, without columns that are empty in all rows."""
    columns = [column for column in zip(head, *rows, strict=True) if any(column[1:])]
    return [list(line) for line in zip(*columns, strict=True)]


def groups_text(groups: Sequence[GroupSummary]) -> list[str]:
    """The figures of groups as lines of a table, if there are any."""
    if not groups:
        return []
    lines = groups_table(groups)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [""] + [
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in lines
    ]
