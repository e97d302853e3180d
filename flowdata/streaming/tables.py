"""The tables that streams take: a loss table, an index of shards, or a file of either."""

import os
from typing import TypeAlias

from numpy.typing import ArrayLike

from flowdata.core.lengths import HasLengths
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.errors import MismatchError
from flowdata.table.loss_table import LossTable
from flowdata.table.shard_index import ShardIndex

Table: TypeAlias = LossTable | ShardIndex | str | os.PathLike[str]


def index_and_weights(
    table: Table, weights: FlowWeights | HasWeights | ArrayLike | None
) -> tuple[ShardIndex, FlowWeights]:
    """The index of a table, its file or an index, and weights for its rows.

    Raises:
        InvalidLossError: for weights that cannot be sampled.
        MismatchError: for weights of another length.
        TypeError: for a table without an index, or an index without weights.
    """
    if isinstance(table, str | os.PathLike):
        table = LossTable.load(table) if weights is None else ShardIndex.load(table)
    index = table.index if isinstance(table, LossTable) else table
    if not isinstance(index, ShardIndex):
        raise TypeError(
            "the loss table has no index of shards: score with flowdata.ShardRows(urls), or give "
            "losses that you have to LossTable.from_losses(losses, index=index_shards(urls))"
        )
    if weights is None:
        if not isinstance(table, LossTable):
            raise TypeError("an index knows no losses: give weights, or a loss table")
        return index, table.weights()
    found = as_weights(weights)
    if len(found) != len(index):
        raise MismatchError(f"there are {len(found):,} weights for {len(index):,} samples")
    return index, found


def lengths_of(table: Table | None) -> HasLengths:
    """The table, or that of a file, if it knows the lengths of its rows.

    Raises:
        TypeError: for an index, which does not.
    """
    if isinstance(table, str | os.PathLike):
        table = LossTable.load(table)
    if not isinstance(table, LossTable):
        raise TypeError(
            "an index of shards knows no lengths: give lengths=, the tokens of each of its rows"
        )
    return table
