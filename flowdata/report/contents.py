"""All that a report says, as numbers and rows: the page and the JSON are made of it."""

from dataclasses import dataclass

from flowdata.core.groups import Groups
from flowdata.core.weight_summary import WeightSummary
from flowdata.core.weights import FlowWeights
from flowdata.report.left_out import LeftOut, left_out
from flowdata.report.row_lengths import RowLengths, row_lengths
from flowdata.report.samples import Samples, Section, sections_of
from flowdata.report.summary import Comparison, EpochSummary, Figures, figures_of
from flowdata.table.loss_table import LossTable
from flowdata.table.origins import parts_of, size_of
from flowdata.table.provenance import Provenance

_IN_PLACE = " in place of "


@dataclass(frozen=True)
class Part:
    """A part of a table that is made of others.

    Attributes:
        rows: that are of it.
        of: rows that it had.
        model: that scored it.
        loss: that was scored.
    """

    rows: int
    of: int
    model: str | None
    loss: str | None


@dataclass(frozen=True)
class Contents:
    """What a report says of a table.

    Attributes:
        losses: the table.
        weights: its weights.
        groups: of the rows, where they were asked for.
        summary: of the weights, and of groups.
        quantiles: of the losses.
        epochs: what epochs of each size show.
        lengths: of the rows, where they are known.
        left_out: what was cut or dropped.
        sections: rows that are shown.
        samples: the data, where it is at hand.
        parts: of a table that is made of others; none of another.
        other: a second table and how it compares.
    """

    losses: LossTable
    weights: FlowWeights
    groups: Groups | None
    summary: WeightSummary
    quantiles: dict[float, float]
    epochs: list[EpochSummary]
    lengths: RowLengths | None
    left_out: LeftOut
    sections: list[Section]
    samples: Samples | None
    parts: tuple[Part, ...]
    other: tuple[LossTable, Comparison] | None

    @property
    def proxy(self) -> tuple[str, str] | None:
        """The small model that scored, and the one in whose place, if that is so."""
        return proxy_of(self.losses.provenance)


def contents_of(
    losses: LossTable,
    weights: FlowWeights,
    *,
    samples: Samples | None = None,
    groups: Groups | None = None,
    figures: Figures | None = None,
    other: tuple[LossTable, Comparison] | None = None,
    number: int = 10,
) -> Contents:
    """What there is to say of a table.

    Args:
        losses: the table.
        weights: its weights.
        samples: its data.
        groups: of the rows, whose figures are shown; default: those of the weights.
        figures: of the table, its weights and groups, where they are known already.
        other: a second table and how it compares.
        number: rows that are shown of each kind.
    """
    known = losses.provenance
    parts = [] if known.parts is None else parts_of(known)
    figures = figures_of(losses, weights, groups) if figures is None else figures
    return Contents(
        losses,
        weights,
        groups,
        figures.summary,
        figures.quantiles,
        figures.epochs,
        row_lengths(losses, weights),
        left_out(losses, number),
        sections_of(losses, weights, samples, number),
        samples,
        tuple(
            Part(size_of(part), part["rows"], part.get("model"), part.get("loss")) for part in parts
        ),
        other,
    )


def proxy_of(provenance: Provenance) -> tuple[str, str] | None:
    """As `flowdata.score_proxy` names the two models, if it made the table."""
    small, between, large = (provenance.model or "").partition(_IN_PLACE)
    return (small, large) if between else None


def options_of(provenance: Provenance) -> dict[str, object]:
    """The options of the loss that were given."""
    given = provenance.given_options
    return {name: value for name, value in given.items() if value not in (None, False)}
