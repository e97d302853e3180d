"""ScoredRows: the losses of some rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.table.origins import selected_provenance
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.selection import select_rows
from flowdata.table.shard_index import ShardIndex
from flowdata.table.table_columns import TableColumns
from flowdata.table.token_runs import reorder_runs


@dataclass(frozen=True)
class ScoredRows:
    """Losses of some rows, in any order.

    Attributes:
        rows: row numbers in the data set, int64, shape (m,).
        losses: float32, shape (m,); NaN where a row has no valid loss.
        n_tokens: response tokens of each row, int32, shape (m,), where the loss counts tokens.
        token_losses: losses of all response tokens, row after row, float32, if asked for.
        truncated: whether each row was cut to the longest length allowed, shape (m,), where
            rows have lengths.
        lengths: tokens of each row as it is given to the model, int32, shape (m,), where rows
            have lengths; None in parts of earlier versions.
    """

    rows: NDArray[np.int64]
    losses: NDArray[np.float32]
    n_tokens: NDArray[np.int32] | None = None
    token_losses: NDArray[np.float32] | None = None
    truncated: NDArray[np.bool_] | None = None
    lengths: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return self.rows.size


def concatenate_parts(parts: Sequence[ScoredRows]) -> ScoredRows:
    """All rows of several parts of one pass, in the order of the parts.

    What one of them does not know is not known of all, as lengths where an earlier version has
    begun the pass.
    """

    def column(of: Callable[[ScoredRows], NDArray[Any] | None]) -> NDArray[Any] | None:
        known = [values for part in parts if (values := of(part)) is not None]
        return np.concatenate(known) if len(known) == len(parts) else None

    return ScoredRows(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.losses for part in parts]),
        column(lambda part: part.n_tokens),
        column(lambda part: part.token_losses),
        column(lambda part: part.truncated),
        column(lambda part: part.lengths),
    )


def sort_by_row(scores: ScoredRows) -> ScoredRows:
    """The same scores by row number; of a row that is there more than once, the first."""
    rows, order = np.unique(scores.rows, return_index=True)
    n_tokens, tokens = scores.n_tokens, scores.token_losses
    truncated, lengths = scores.truncated, scores.lengths
    return ScoredRows(
        rows,
        scores.losses[order],
        None if n_tokens is None else n_tokens[order],
        None if tokens is None else reorder_runs(tokens, _present(n_tokens), order),
        None if truncated is None else truncated[order],
        None if lengths is None else lengths[order],
    )


def table_of_rows(
    scores: ScoredRows, provenance: Provenance, index: ShardIndex | None, keys: RowKeys | None
) -> TableColumns:
    """The columns of a loss table, of scores of all its rows in their order."""
    return TableColumns(
        provenance,
        scores.losses,
        scores.n_tokens,
        scores.lengths,
        scores.token_losses,
        index,
        keys,
    )


def table_of_some(
    parts: Sequence[ScoredRows],
    provenance: Provenance,
    index: ShardIndex | None,
    keys: RowKeys | None,
) -> TableColumns:
    """The columns of a selection of rows of a table: of those that parts have, which may be none.

    Args:
        parts: scores of some rows.
        provenance, index, keys: of all rows.
    """
    if not parts:
        return TableColumns(
            selected_provenance(provenance, np.zeros(0, dtype=np.int64), rising=True),
            np.zeros(0, dtype=np.float32),
        )
    scores = sort_by_row(concatenate_parts(parts))
    cut = None if scores.truncated is None else int(scores.truncated.sum())
    nothing = np.broadcast_to(np.float32("nan"), provenance.rows)
    of_all = TableColumns(provenance, nothing, index=index, keys=keys)
    selected = select_rows(of_all, scores.rows)
    return replace(
        table_of_rows(scores, selected.provenance, selected.index, selected.keys),
        provenance=selected.provenance.with_truncated(cut or 0),
    )


def _present(array: NDArray[Any] | None) -> NDArray[Any]:
    assert array is not None
    return array
