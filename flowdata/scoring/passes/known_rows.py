"""Rows whose losses another table has, so that they are not scored again: data that grew."""

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowdata.core.states import require_same
from flowdata.errors import MismatchError, warn
from flowdata.scoring.language.named_losses import LANGUAGE_LOSSES
from flowdata.scoring.passes.ranks import Ranks
from flowdata.table.checks import check_dataset
from flowdata.table.data_columns import RowsOf
from flowdata.table.fingerprint import rows_read, transform_fingerprint
from flowdata.table.loss_table import LossTable
from flowdata.table.origins import SCORED_BY
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.scored_rows import ScoredRows
from flowdata.table.shard_index import ShardIndex, plain_keys
from flowdata.table.token_runs import reorder_runs
from flowdata.tar.rows import ShardRows

_WHAT = "the table of known rows"
_ADVICE = "Score with what scored it, or without known="


@dataclass(frozen=True)
class KnownRows:
    """Rows of the data set that need not be scored.

    Attributes:
        scores: what is known of them.
        truncated: how many of them were cut; None where that is not known.
    """

    scores: ScoredRows
    truncated: int | None

    def digest(self) -> str:
        """A hash of rows and losses."""
        content = (self.scores.rows, self.scores.losses)
        return xxhash.xxh3_128(b"".join(array.tobytes() for array in content)).hexdigest()


def known_rows(
    known: LossTable | str | PathLike[str],
    dataset: Any,
    provenance: Provenance,
    keys: RowKeys | None,
) -> KnownRows:
    """Find the rows of a data set in a table: by key where both have them, else the first ones.

    Args:
        known: the table, or its file.
        dataset: the data set that is scored.
        provenance: of the pass that scores it.
        keys: of its rows.

    Raises:
        MismatchError: for a table of another model or loss, and where its rows are not found.
        ValueError: for a table that lacks what the pass makes.
    """
    table = known if isinstance(known, LossTable) else LossTable.load(known, tokens=True)
    tokens = _require_same_losses(table, provenance)
    if keys is not None and table.keys is not None:
        found = table.keys.find(keys)
        rows = np.flatnonzero(found >= 0)
        found = found[rows]
        row_of = np.full(len(table), -1, dtype=np.int64)
        row_of[found] = rows
        _check_content(table, dataset, row_of)
    else:
        _require_first_rows(table, dataset)
        rows = found = np.arange(len(table))
    whole = rows.size == len(table)
    return KnownRows(
        _scores_of(table, rows, found, tokens=tokens),
        table.provenance.truncated if whole or not table.provenance.truncated else None,
    )


def require_same_on_ranks(known: KnownRows | None, ranks: Ranks) -> None:
    """Refuse ranks that know different rows: together they would leave some out.

    Raises:
        MismatchError: on all of them.
    """
    if len(set(ranks.gather(None if known is None else known.digest()))) > 1:
        raise MismatchError("ranks were given different tables of known rows: give all the same")


def _require_same_losses(table: LossTable, provenance: Provenance) -> bool:
    """Refuse a table of other losses; whether losses of tokens are wanted of it."""
    here, there = (
        {name: some.identity()[name] for name in SCORED_BY}
        for some in (provenance, table.provenance)
    )
    wanted = bool(here["options"].get("token_losses"))
    # Losses of rows are the same without those of tokens.
    for some in (here, there):
        some["options"] = {k: v for k, v in some["options"].items() if k != "token_losses"}
    require_same(here, there, what=_WHAT, advice=_ADVICE)
    if table.provenance.parts is None and provenance.transform is None:
        _refuse_transform(None, table.provenance.transform)
    if wanted and table.token_losses is None:
        raise ValueError(
            f"{_WHAT} has no token losses, and the loss shall keep them: give its path, or load it "
            "with tokens=True; or score without known="
        )
    if provenance.loss in LANGUAGE_LOSSES and table.n_tokens is None:
        raise ValueError(f"{_WHAT} does not know the tokens of its rows. {_ADVICE}")
    return wanted


def _require_first_rows(table: LossTable, dataset: Any) -> None:
    """Refuse a table whose rows are not the first ones of the data set, as far as that is known."""
    if len(table) > len(dataset):
        raise MismatchError(
            f"{_WHAT} has {len(table):,} rows, the data set {len(dataset):,}: rows were taken out. "
            "Give both keys, by key=, to find rows by these"
        )
    if isinstance(dataset, ShardRows) and table.index is not None:
        _require_first_shards(table.index, dataset.index)
    first = RowsOf(dataset, range(len(table)))
    try:
        check_dataset(table.provenance, first)
    except MismatchError as error:
        raise MismatchError(
            f"{_WHAT} is not of the first {len(table):,} rows of this data set: {error}, or give "
            "both keys, by key=, to find rows wherever they are"
        ) from error
    _require_same_transform(table, first)
    if table.provenance.data_fingerprint is None and table.provenance.parts is None:
        warn(
            f"it cannot be told whether {_WHAT} is of the first {len(table):,} rows of this data "
            "set: it does not know its data. If it is not, score without known="
        )


def _require_first_shards(known: ShardIndex, index: ShardIndex) -> None:
    """Names are not compared: they depend on the folder that all shards share."""
    shards = len(known.shards)
    same = np.array_equal(index.bounds()[: shards + 1], known.bounds())
    if not same or any(
        plain_keys(known.keys_of(shard)) != plain_keys(index.keys_of(shard))
        for shard in range(shards)
    ):
        raise MismatchError(
            f"{_WHAT} is not of the first {shards:,} of these shards: their samples differ. Give "
            "the shards that were scored first, in their order, or score without known="
        )


def _check_content(table: LossTable, dataset: Any, row_of: NDArray[np.int64]) -> None:
    """Compare rows of equal keys, where all that the table knows its data by are there.

    Args:
        table: the table.
        dataset: the data set.
        row_of: the row of the data set for each row of the table, or -1.
    """
    known = table.provenance
    # The parts of a table are each known by rows of their own.
    needed = row_of if known.parts is not None else row_of[rows_read(len(table))]
    if (needed >= 0).all() and (known.data_fingerprint or known.parts):
        moved = RowsOf(dataset, row_of)
        check_dataset(table.provenance, moved)
        _require_same_transform(table, moved)
    else:
        warn(
            "only the keys of known rows were compared: the table does not know its data, or by "
            "rows that are not in this data set. Were rows changed under their keys, score without "
            "known="
        )


def _require_same_transform(table: LossTable, rows: RowsOf) -> None:
    if table.provenance.parts is not None:
        return
    _refuse_transform(transform_fingerprint(rows), table.provenance.transform)


def _refuse_transform(here: str | None, there: str | None) -> None:
    if here != there:
        raise MismatchError(
            f"{_WHAT} was made with another transform of the data ({there}, here {here}). {_ADVICE}"
        )


def _scores_of(
    table: LossTable, rows: NDArray[np.int64], found: NDArray[np.int64], *, tokens: bool
) -> ScoredRows:
    n_tokens, token_losses = table.n_tokens, None
    if tokens and table.token_losses is not None and n_tokens is not None:
        token_losses = reorder_runs(table.token_losses, n_tokens, found)
    return ScoredRows(
        rows,
        table.losses[found],
        None if n_tokens is None else n_tokens[found],
        token_losses,
        None,
        None if table.lengths is None else table.lengths[found],
    )
