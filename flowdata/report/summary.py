"""What a loss table means for training: epoch sizes, repeats, easiest and hardest rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import PIECE
from flowdata.core.groups import NO_GROUP, Groups
from flowdata.core.plan import EpochSize, resolve_epoch_size
from flowdata.core.temperature import Temperature
from flowdata.core.weight_summary import WeightSummary, summary_of
from flowdata.core.weights import FlowWeights
from flowdata.errors import warn
from flowdata.report.texts import visible
from flowdata.table.data_columns import column_of
from flowdata.table.loss_table import LossTable

_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class EpochSummary:
    """What an epoch of one size shows.

    Attributes:
        name: the ``epoch_size``.
        draws: samples that are drawn.
        distinct: rows expected among them.
        most_repeats: how often the largest weight is expected.
    """

    name: str
    draws: int
    distinct: float
    most_repeats: float

    def cells(self) -> list[str]:
        """The line of a table: its attributes in their order."""
        return [self.name, f"{self.draws:,}", f"{self.distinct:,.0f}", f"{self.most_repeats:.2f}"]


def epoch_summaries(weights: FlowWeights) -> list[EpochSummary]:
    """The named epoch sizes side by side."""
    sizes: tuple[EpochSize, ...] = ("full", "ess", "distinct")
    summaries = []
    for size in sizes:
        draws = resolve_epoch_size(weights, size)
        # The largest relative weight is 1.
        most = draws / weights.total
        # A row of systematic draws is in the epoch with probability min(1, expected count).
        distinct = sum(
            float(np.minimum(weights.part(start, start + PIECE) * most, 1.0).sum())
            for start in range(0, len(weights), PIECE)
        )
        summaries.append(EpochSummary(str(size), draws, distinct, most))
    return summaries


@dataclass(frozen=True)
class Comparison:
    """Two tables of the same rows.

    Attributes:
        rows: rows valid in both.
        correlation: rank correlation (Spearman) of the losses, equal losses at their mean rank;
            NaN where all losses of a table are equal.
        shared_draws: share of draws that both would make, sum min(p, q), in [0, 1].
        hardest_shared: share of the hardest tenth of one that is in that of the other.
    """

    rows: int
    correlation: float
    shared_draws: float
    hardest_shared: float


def compare(first: LossTable, second: LossTable, temperature: Temperature = "median") -> Comparison:
    """How alike two tables of one data set would sample it; warns where it is not one.

    Raises:
        ValueError: for tables of different lengths, or without a row that is valid in both.
    """
    if len(first) != len(second):
        raise ValueError(
            f"the tables have {len(first):,} and {len(second):,} rows: only tables of one data "
            "set can be compared"
        )
    known = [table.provenance.data_fingerprint for table in (first, second)]
    if None not in known and known[0] != known[1]:
        warn(
            f"the tables were made for different data sets (fingerprints {known[0]} and "
            f"{known[1]}): their rows may not belong together"
        )
    valid = np.isfinite(first.losses) & np.isfinite(second.losses)
    if not valid.any():
        raise ValueError("no row has a valid loss in both tables")
    one, two = first.losses[valid], second.losses[valid]
    shares = [weights_of(part, temperature) for part in (first, second)]
    draws = [weights.relative / weights.total for weights in shares]
    tenth = max(one.size // 10, 1)
    hardest = [set(np.argsort(losses)[-tenth:].tolist()) for losses in (one, two)]
    return Comparison(
        int(valid.sum()),
        _correlation(_ranks(one), _ranks(two)),
        float(np.minimum(*draws).sum()),
        len(hardest[0] & hardest[1]) / tenth,
    )


def _ranks(losses: NDArray[np.float32]) -> NDArray[np.float64]:
    """Ranks around 0; equal losses share the mean of theirs."""
    _, places, counts = np.unique(losses, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts + 1) / 2)[places]
    return ranks - (losses.size - 1) / 2


def _correlation(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    scale = float(np.sqrt((one @ one) * (two @ two)))
    return float(one @ two) / scale if scale else float("nan")


def weights_of(losses: LossTable, temperature: Temperature = "median") -> FlowWeights:
    """The weights, rows without a valid loss at weight 0."""
    return losses.weights(temperature, on_invalid="drop")


@dataclass(frozen=True)
class Figures:
    """The numbers of a table and its weights.

    Attributes:
        summary: of the weights, and of groups.
        quantiles: of the losses.
        epochs: what epochs of each size show.
    """

    summary: WeightSummary
    quantiles: dict[float, float]
    epochs: list[EpochSummary]


def figures_of(losses: LossTable, weights: FlowWeights, groups: Groups | None = None) -> Figures:
    """The numbers of a table and its weights.

    ``groups``: of the rows, whose figures are shown; default: those of the weights.
    """
    return Figures(summary_of(weights, groups), quantiles_of(losses), epoch_summaries(weights))


def summary_text(losses: LossTable, figures: Figures) -> str:
    """The table and its weights as a text for the terminal."""
    known = losses.provenance
    lengths = losses.lengths
    source = [
        ("model", known.model),
        ("loss", known.loss),
        ("scored", known.created),
        ("tokens of a sample", None if lengths is None else _describe_lengths(lengths)),
        ("cut to max_length", f"{known.truncated:,} samples" if known.truncated else None),
    ]
    quantiles = figures.quantiles
    parts = [
        "\n".join(f"{name:<25}{value}" for name, value in source if value is not None),
        str(figures.summary),
        text_table(
            ["quantile of the loss", *(f"{quantile:.0%}" for quantile in quantiles)],
            [["", *(f"{value:.4g}" for value in quantiles.values())]],
        ),
        text_table(
            [
                "epoch_size",
                "draws",
                "distinct rows (expected)",
                "draws of the likeliest row (expected)",
            ],
            [epoch.cells() for epoch in figures.epochs],
        ),
    ]
    # Names of models and groups may hold what a terminal obeys.
    return visible("\n\n".join(part for part in parts if part))


def quantiles_of(losses: LossTable) -> dict[float, float]:
    """Quantiles of the finite losses of a table."""
    valid = losses.losses[np.isfinite(losses.losses)]
    return dict(zip(_QUANTILES, np.quantile(valid, _QUANTILES).tolist(), strict=True))


def groups_of(dataset: Any, column: str) -> Groups:
    """The rows of a data set by a column of it; rows without a value are a group of their own.

    Raises:
        ValueError: for a column that is not there, or has no names or whole numbers.
    """
    names = dataset.column_names
    if column not in names:
        raise ValueError(f"the data has no column {column!r}; it has {', '.join(names)}")
    try:
        return _groups_of(column_of(dataset, column), len(dataset))
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from error


def _groups_of(values: Any, rows: int) -> Groups:
    """Groups of an Arrow array, in which each name is looked at once, or of a list."""
    encode = getattr(values, "dictionary_encode", None)
    if encode is not None and _holds_names(values.type):
        encoded = encode().unify_dictionaries().combine_chunks()
        found = [*encoded.dictionary.to_pylist(), *([None] if encoded.null_count else [])]
        numbers = encoded.indices.fill_null(len(encoded.dictionary)).to_numpy()
        return Groups.of_codes(numbers, _labels(found))
    return Groups.of(_labels(values.to_pylist() if encode else list(values)), rows)


def _holds_names(kind: Any) -> bool:
    import pyarrow as pa

    return any(
        holds(kind)
        for holds in (
            *(pa.types.is_string, pa.types.is_large_string, pa.types.is_integer),
            pa.types.is_boolean,
        )
    )


def _labels(values: list[Any]) -> Any:
    # As objects: numbers with gaps stay whole numbers.
    labels = np.empty(len(values), dtype=object)
    labels[:] = [NO_GROUP if value is None else value for value in values]
    return labels


def lengths_text(table: LossTable) -> str:
    """What is known of a table of lengths alone, as a text for the terminal.

    Raises:
        ValueError: for a table without lengths.
    """
    lengths, cut = table.lengths, table.provenance.truncated
    if lengths is None:
        raise ValueError("the table has no lengths")
    empty = int(np.count_nonzero(lengths == 0))
    lines = [
        ("samples", f"{lengths.size:,}"),
        ("tokens", f"{lengths.sum(dtype=np.int64):,}"),
        ("tokens of a sample", _describe_lengths(lengths)),
        ("above max_length, cut", f"{cut:,} samples" if cut else None),
        ("without a token", f"{empty:,} samples" if empty else None),
    ]
    return "\n".join(f"{name:<25}{value}" for name, value in lines if value is not None)


def _describe_lengths(lengths: NDArray[np.int32]) -> str:
    # Lengths that there are, not numbers between them.
    median, most, longest = np.quantile(lengths, (0.5, 0.95, 1.0), method="inverted_cdf")
    return f"median {median:,}, 95% up to {most:,}, longest {longest:,}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for the terminal: the first column aligned left, the others right.

    >>> print(text_table(["method", "kept"], [["FLOW", "9.5"], ["standard", "10.25"]]))
    method      kept
    --------  ------
    FLOW         9.5
    standard   10.25
    """
    from tabulate import tabulate

    # The cells are formatted already: tabulate would read "1,000" and "9.50" as numbers again.
    return tabulate(
        rows,
        head,
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", *["right"] * (len(head) - 1)),
    )


def comparison_text(comparison: Comparison) -> str:
    """A comparison as a text for the terminal."""
    return "\n".join(
        [
            f"{'rows valid in both':<25}{comparison.rows:,}",
            f"{'rank correlation':<25}{comparison.correlation:.3f}",
            f"{'draws in common':<25}{comparison.shared_draws:.1%}",
            f"{'hardest tenth in common':<25}{comparison.hardest_shared:.1%}",
        ]
    )
