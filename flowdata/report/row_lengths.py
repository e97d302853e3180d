"""How long rows are, and which lengths the tokens that are drawn come from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import PIECE
from flowdata.core.weights import FlowWeights
from flowdata.table.loss_table import LossTable

_BARS = 24
_SPREAD = 10
"""Bars get longer to the right where the longest row is so many times the median."""


@dataclass(frozen=True)
class LengthBar:
    """Rows of similar length.

    Attributes:
        shortest, longest: tokens of a row, both included.
        rows: how many there are.
        share_of_rows: of all rows.
        expected_share_of_draws: of all draws, in expectation.
        expected_share_of_tokens: of the tokens of all draws, in expectation.
    """

    shortest: int
    longest: int
    rows: int
    share_of_rows: float
    expected_share_of_draws: float
    expected_share_of_tokens: float


@dataclass(frozen=True)
class RowLengths:
    """Lengths of all rows.

    Attributes:
        of: what is counted.
        tokens: of all rows.
        mean: of all rows.
        median: of all rows, a length that there is.
        most: 95 % of the rows have so many tokens, or fewer.
        longest: the most tokens of a row.
        longest_row: the first row that has them.
        empty: rows without a token.
        expected_mean_of_draws: tokens of a draw, in expectation.
        expected_tokens: of an epoch of as many draws as rows, in expectation.
        bars: rows by length.
    """

    of: str
    tokens: int
    mean: float
    median: int
    most: int
    longest: int
    longest_row: int
    empty: int
    expected_mean_of_draws: float
    expected_tokens: float
    bars: tuple[LengthBar, ...]


def row_lengths(losses: LossTable, weights: FlowWeights) -> RowLengths | None:
    """The lengths of rows, or else their scored tokens; None where neither is known."""
    lengths, of = losses.lengths, "tokens of a row, as the model reads it"
    if lengths is None:
        lengths, of = losses.n_tokens, "scored tokens of a row"
    if lengths is None:
        return None
    # Lengths that there are, not numbers between them: as np.quantile's "inverted_cdf".
    places = [-(-lengths.size * percent // 100) - 1 for percent in (50, 95)]
    median, most = np.partition(lengths, places)[places].tolist()
    longest = int(lengths.max())
    edges = _edges(int(lengths.min()), median, longest)
    rows, draws, tokens = _sums(lengths, weights, edges)
    mean_of_draws = float(tokens.sum() / draws.sum())
    of_tokens = tokens / (tokens.sum() or 1.0)
    return RowLengths(
        of=of,
        tokens=int(lengths.sum(dtype=np.int64)),
        mean=float(lengths.mean(dtype=np.float64)),
        median=median,
        most=most,
        longest=longest,
        longest_row=int(lengths.argmax()),
        empty=int(np.count_nonzero(lengths == 0)),
        expected_mean_of_draws=mean_of_draws,
        expected_tokens=mean_of_draws * lengths.size,
        bars=tuple(
            LengthBar(
                shortest=int(edges[bar]),
                longest=int(edges[bar + 1]) - 1,
                rows=int(rows[bar]),
                share_of_rows=float(rows[bar] / lengths.size),
                expected_share_of_draws=float(draws[bar] / draws.sum()),
                expected_share_of_tokens=float(of_tokens[bar]),
            )
            for bar in range(rows.size)
        ),
    )


def _edges(shortest: int, median: int, longest: int) -> NDArray[np.int64]:
    """Where bars begin, and the end of the last; of whole numbers, each of them in one."""
    if longest > _SPREAD * max(median, 1):
        edges = np.geomspace(max(shortest, 1), longest + 1, _BARS + 1)
        edges[0] = shortest
    else:
        edges = np.linspace(shortest, longest + 1, _BARS + 1)
    return np.unique(np.ceil(edges - 1e-6).astype(np.int64))


def _sums(
    lengths: NDArray[np.int32], weights: FlowWeights, edges: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """For each bar its rows, their weights, and the tokens these draw."""
    sums = np.zeros((3, edges.size - 1))
    for start in range(0, lengths.size, PIECE):
        some = lengths[start : start + PIECE]
        relative = weights.part(start, start + some.size)
        bars = np.searchsorted(edges, some, side="right") - 1
        for total, term in zip(sums, (None, relative, relative * some), strict=True):
            total += np.bincount(bars, term, minlength=edges.size - 1)
    return sums[0], sums[1], sums[2]
