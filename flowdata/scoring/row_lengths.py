"""lengths: tokens of each row as a language model is given them, without a model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError, TableFileError
from flowdata.scoring.language.causal_lm import ROWS_PER_READ, CausalLM
from flowdata.scoring.language.named_losses import LanguageLoss
from flowdata.scoring.layouts.columns import TOKEN_COLUMNS
from flowdata.scoring.layouts.pairs import PairReader
from flowdata.scoring.layouts.token_rows import IGNORED, Tokens, without_other_inputs
from flowdata.scoring.layouts.tokens import OneLayout, UnreadableRow
from flowdata.scoring.models.inference import count_rows
from flowdata.scoring.parts.folder import Parts
from flowdata.scoring.passes.ranks import RANK_TIMEOUT, Ranks
from flowdata.scoring.passes.scoring_pass import run_pass
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import LENGTHS, Provenance
from flowdata.table.scored_rows import ScoredRows


def lengths(
    dataset: Any,
    loss: LanguageLoss | None = None,
    *,
    output: str | PathLike[str] | None = None,
    num_workers: int = 0,
    save_every: float = 30.0,
    rank_timeout: float = RANK_TIMEOUT,
    progress: bool = True,
) -> NDArray[np.int32]:
    """The number of tokens of each row, as it is fed to a model: after ``max_length``.

    Rows are read by what reads them for `score`: the same rows and options have the lengths that
    a table scored by `CausalLM` has. No model is needed, and rows with ``input_ids`` need neither
    tokenizer nor labels. They must be the rows that are packed or grouped later: a trainer that
    tokenizes by itself may cut them elsewhere, or end them with another token.

    >>> lengths([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}], progress=False)
    array([3, 1], dtype=int32)

    Args:
        dataset: map-style data set of n rows, as for `score`.
        loss: which columns are read, by which tokenizer, cut where; default ``CausalLM()``, which
            reads ``input_ids``.
        output: a small Parquet file, a `LossTable` with lengths and without losses. What was
            counted is kept beside it, and the same call goes on after a kill.
        num_workers, save_every, rank_timeout, progress: as for `score`.

    Returns:
        int32, shape (n,); 0 for a row with None in a column. See `LossTable.with_lengths`.

    Raises:
        FlowDataError: when another rank stopped, naming it and its error.
        MismatchError: when ``output`` holds, finished or not, something else.
        TableFileError: when ``output`` cannot be written, or someone else is writing it.
        TypeError, ValueError: for what is no data set, or naming a row that cannot be read.
    """
    table = count_lengths(
        dataset,
        loss,
        output=output,
        num_workers=num_workers,
        save_every=save_every,
        rank_timeout=rank_timeout,
        progress=progress,
    )
    if table.lengths is None:
        raise TableFileError(f"{output} should have lengths, and has none: delete it")
    return table.lengths


def count_lengths(
    dataset: Any,
    loss: LanguageLoss | None = None,
    *,
    output: str | PathLike[str] | None = None,
    num_workers: int = 0,
    save_every: float = 30.0,
    rank_timeout: float = RANK_TIMEOUT,
    progress: bool = True,
) -> LossTable:
    """The table of lengths alone that `lengths` makes, which also knows how many rows were cut."""
    options = CausalLM() if loss is None else loss
    if not isinstance(options, LanguageLoss):
        raise TypeError(
            "a CausalLM, Seq2Seq or TokenLabels is needed, which says how rows are read, got "
            f"{type(options).__name__}: as CausalLM(tokenizer=tokenizer, text=column)"
        )
    parts = None if output is None else Parts(output)
    with Ranks(rank_timeout) as ranks:
        provenance = Provenance.now(
            count_rows(dataset),
            dataset=dataset,
            loss=LENGTHS,
            options=_identity(options),
            once=ranks.run_on_first,
        )
        if parts is not None and parts.is_finished and LossTable.load(parts.table).has_losses:
            raise MismatchError(
                f"{parts.table} is a table of losses, and output= is for a new file: choose "
                "another one, and give the table its lengths by with_lengths"
            )
        return run_pass(
            _LengthPass(options),
            dataset,
            provenance,
            ranks,
            parts=parts,
            num_workers=num_workers,
            on_invalid="drop",
            save_every=save_every,
            progress=progress,
            title="tokenizing",
        )


class _Measured(NamedTuple):
    length: int
    truncated: bool
    layout: str


class _LengthPass:
    """Counts the tokens of rows: a pass that makes lengths, and no losses."""

    rows_per_read = ROWS_PER_READ

    def __init__(self, options: LanguageLoss) -> None:
        self._reader = options.reader()
        self._layout = OneLayout()

    def collate(self, rows: list[Any]) -> list[_Measured | UnreadableRow]:
        """What is to be known of rows: of their tokens nothing leaves a loader worker."""
        if not isinstance(self._reader, PairReader):
            named = self._reader.columns.names
            rows = [_of_any_model(row, named) for row in rows]
        read = self._reader.read_each(rows)
        return [
            _Measured(sample.length, sample.truncated, sample.layout)
            if isinstance(sample, Tokens)
            else sample
            for sample in read
        ]

    def score_rows(
        self, rows: NDArray[np.int64], read: Sequence[_Measured | UnreadableRow]
    ) -> Iterator[ScoredRows]:
        """Lengths of rows that were read together."""
        samples = self._layout.check(rows, read)
        yield ScoredRows(
            rows,
            np.full(rows.size, np.nan, dtype=np.float32),
            truncated=np.array([sample.truncated for sample in samples]),
            lengths=np.array([sample.length for sample in samples], dtype=np.int32),
        )


def _of_any_model(row: Any, named: Sequence[str]) -> Any:
    if not isinstance(row, Mapping):
        return row
    row = without_other_inputs(row, named)
    if named == TOKEN_COLUMNS and "labels" not in row and "input_ids" in row:
        # What is scored of a row makes no difference to its length.
        row["labels"] = np.full(np.shape(row["input_ids"]), IGNORED)
    return row


def _identity(options: LanguageLoss) -> str:
    known = options.identity()
    del known["token_losses"]
    return json.dumps(known, sort_keys=True)


def give_lengths(
    table: str | PathLike[str], dataset: Any, loss: LanguageLoss | None = None, **options: Any
) -> LossTable:
    """Count tokens of rows, and give them to the table in a file, which is written anew.

    Killed at any moment, the same call goes on: what was counted is kept beside the table.

    Args:
        table: file of a loss table of this data set.
        dataset, loss, options: see `lengths`.

    Returns:
        The lengths, as `count_lengths`.

    Raises:
        MismatchError: for a table of other data.
        TableFileError: for a file that is no loss table, or cannot be written.
        TypeError, ValueError: see `lengths`.
    """
    place = Parts(table).table
    if not LossTable.load(place, dataset=dataset).has_losses:
        raise MismatchError(f"{place} has no losses, and lengths already: choose another output=")
    beside = place.with_name(f"{place.name}.lengths")
    found = count_lengths(dataset, loss, output=beside, **options)
    # With all that it has: what is not read is not written again.
    LossTable.load(place, dataset=dataset, tokens=True).with_lengths(found).save(place)
    beside.unlink()
    return found
