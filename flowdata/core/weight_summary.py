"""WeightSummary: the figures to look at before training with weights."""

from dataclasses import dataclass

import numpy as np

from flowdata.core.column import PIECE
from flowdata.core.group_summary import (
    GroupSummary,
    Weighted,
    groups_text,
    notes_on_groups,
    of_groups,
)
from flowdata.core.groups import Groups


@dataclass(frozen=True)
class WeightSummary:
    """What the weights of a data set mean for sampling it; ``print`` shows it as a text.

    Attributes:
        rows: number of rows.
        dropped: rows of weight exactly 0.
        temperature: tau, in the unit of the loss; None for weights that are not exp(-loss / tau).
        mean: mean weight; a standard run at ``lr * mean`` is the fair comparison for the
            unnormalised weighted loss.
        max: largest weight.
        mean_over_max: share of the rows that an epoch of ``epoch_size="distinct"`` draws.
        ess: effective sample size, ``(sum w)^2 / sum w^2``.
        largest_expected_count: most often any row is expected in an epoch of ``rows`` draws.
        rarely_drawn: share of rows expected less than once in 100 such epochs.
        notes: what a user should know about these weights, one sentence each.
        how: how they were made, in a few words.
        groups: the figures of each group, where there are some.
    """

    rows: int
    dropped: int
    temperature: float | None
    mean: float
    max: float
    mean_over_max: float
    ess: float
    largest_expected_count: float
    rarely_drawn: float
    notes: tuple[str, ...]
    how: str = "given weights"
    groups: tuple[GroupSummary, ...] = ()

    @property
    def ess_fraction(self) -> float:
        """Effective sample size over rows, in (0, 1]."""
        return self.ess / self.rows

    def __str__(self) -> str:
        temperature = self.how if self.temperature is None else f"{self.temperature:.6g}"
        lines = [
            f"rows                     {self.rows:,} ({self.dropped:,} of weight 0)",
            f"temperature              {temperature}",
            f"mean weight              {self.mean:.4g}",
            f"mean / max weight        {self.mean_over_max:.4g}",
            f"effective sample size    {self.ess:,.1f} ({self.ess_fraction:.1%} of the rows)",
            f"largest expected count   {self.largest_expected_count:.3g} in an epoch",
            f"rarely drawn             {self.rarely_drawn:.1%} of the rows (< 1 in 100 epochs)",
            *groups_text(self.groups),
        ]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def summary_of(weights: Weighted, groups: Groups | None) -> WeightSummary:
    """The summary of weights, by these groups or those that they were made by."""
    rare = dropped = 0
    for start in range(0, len(weights), PIECE):
        relative = weights.part(start, start + PIECE)
        rare += int(np.count_nonzero(relative * (len(weights) / weights.total) < 0.01))
        dropped += int(np.count_nonzero(relative == 0.0))
    made = weights.made
    own = groups is None or (made.groups is not None and groups.same_as(made.groups))
    groups = made.groups if groups is None else groups
    known = () if groups is None else of_groups(weights, groups)
    notes = notes_on(weights.ess, len(weights))
    if not (own and made.shared):
        notes += notes_on_groups(known)
    if weights.max == 0.0:
        notes.append(
            "the largest weight is too small for a number, so all are 0 where they are taken as "
            'they are: give normalize="mean"; draws are what they would be'
        )
    return WeightSummary(
        rows=len(weights),
        dropped=dropped,
        temperature=made.temperature,
        mean=weights.mean,
        max=weights.max,
        mean_over_max=weights.total / len(weights),
        ess=weights.ess,
        largest_expected_count=len(weights) / weights.total,
        rarely_drawn=rare / len(weights),
        notes=tuple(notes),
        how=made.how,
        groups=known,
    )


def notes_on(ess: float, rows: int) -> list[str]:
    """What a user should know about weights of this effective sample size, a sentence each."""
    fraction = ess / rows
    if fraction < 0.01:
        return [
            f"the effective sample size is {ess:.1f} of {rows:,} rows: a few rows "
            "make up nearly all draws; raise the temperature or check the losses"
        ]
    if fraction > 0.9:
        return [
            f"the effective sample size is {fraction:.1%} of the rows: the weights are nearly "
            "equal, and FLOW is then little more than a smaller learning rate"
        ]
    return []
