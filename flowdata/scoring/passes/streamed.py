"""A scoring pass over a stream of rows, each known by its key: there are no row numbers to go by.

What there is of an unfinished pass lies in the folder beside its table, in numbered parts: each
says the keys of its rows too, and where the stream was after them.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from flowdata.core.states import require_same
from flowdata.core.weights import OnInvalid
from flowdata.errors import MismatchError, TableFileError, warn
from flowdata.files import Place, reason_of
from flowdata.rows.sources import Source
from flowdata.scoring.models.fitted_rows import warn_if_fitted_on
from flowdata.scoring.models.inference import require_read
from flowdata.scoring.parts.folder import ADVICE, Parts
from flowdata.scoring.passes.first_rows import hashes_of, key_of, require_first_rows
from flowdata.scoring.passes.ranks import Ranks
from flowdata.scoring.passes.scoring_pass import ScoringPass, refuse_invalid, refuse_or_drop_invalid
from flowdata.table.given_keys import as_keys
from flowdata.table.loss_table import LossTable
from flowdata.table.merging import part_names
from flowdata.table.parquet import DamagedFileError
from flowdata.table.part_file import Part, read_part, write_part
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys, joined_keys
from flowdata.table.scored_rows import ScoredRows, concatenate_parts, sort_by_row, table_of_rows

_PREFIX = "stream-"
# Keys are looked through for those that come twice when there are so many, and twice as many, ....
_FIRST_LOOK = 1 << 14


def is_stream(dataset: Any) -> bool:
    """Whether data has rows, but not by number."""
    if isinstance(dataset, DataLoader | Mapping) or hasattr(dataset, "iloc"):
        return False
    by_number = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return isinstance(dataset, IterableDataset) or (hasattr(dataset, "__iter__") and not by_number)


@dataclass(frozen=True)
class StreamPass:
    """How a stream is scored.

    Attributes:
        scoring_pass: scores rows that were read together.
        model: that is scored.
        first_rows: the first rows of the stream, as soon as they are read.
        leaves_key: whether `scoring_pass` is given the column of keys too.
        provenance: of the table, but for the number of rows.
        on_invalid, save_every, progress: see `flowdata.score`.
    """

    scoring_pass: ScoringPass
    model: nn.Module
    first_rows: list[Any]
    leaves_key: bool
    provenance: Provenance
    on_invalid: OnInvalid
    save_every: float
    progress: bool

    @property
    def key(self) -> str:
        """The column that has the keys."""
        assert self.provenance.key is not None
        return self.provenance.key

    def begin(self, rows: list[Any]) -> None:
        """Take note of the first rows, before any is scored."""
        if not self.first_rows:
            self.first_rows.extend(rows)
            warn_if_fitted_on(self.model, self.first_rows)

    def read_rows(self, rows: list[Any]) -> list[Any]:
        """Rows as `scoring_pass` is given them."""
        if self.leaves_key:
            return rows
        return [{name: row[name] for name in row if name != self.key} for row in rows]

    def identity(self) -> dict[str, Any]:
        """What makes two passes the same one, as far as a stream tells."""
        known = self.provenance.identity() | {"key": self.key}
        return {name: known[name] for name in known if name not in _OF_ALL_ROWS}


class _Scored(NamedTuple):
    """All rows of one rank."""

    scores: ScoredRows
    keys: RowKeys
    first_rows: str | None


_OF_ALL_ROWS = ("rows", "data_fingerprint", "transform")


def score_stream(stream: Any, how: StreamPass, ranks: Ranks, parts: Parts | None) -> LossTable:
    """The table of a stream, in the order in which it was read, rank after rank.

    Each rank reads what its own stream has: that of `split_dataset_by_node`.

    Raises:
        InvalidLossError, MismatchError, TableFileError, ValueError: see `flowdata.score`.
    """
    with ExitStack() as lock:
        if parts is not None:
            ranks.run_on_first(lambda: lock.enter_context(parts.locked()))
            if ranks.size == 1:
                lock.enter_context(parts.removed_if_empty())
            if ranks.run_on_first(lambda: parts.is_finished):
                table = _finished(parts, how)
                ranks.run_on_first(lambda: _require_stream(Source(stream), table, parts))
                return table
            ranks.run_on_first(lambda: _require_own_parts(parts, ranks.size))
        own = _Share(how, ranks, parts)
        with tqdm(
            desc="scoring", unit="samples", disable=not how.progress or ranks.rank > 0
        ) as bar:
            own.score(stream, bar)
        of_ranks = [some for some in ranks.gather(own.scored()) if some is not None]
        if not of_ranks:
            raise ValueError("the stream has no rows: there is nothing to score")
        table = _merged(of_ranks, how)
        if parts is not None:
            ranks.run_on_first(lambda: parts.finish(table))
            ranks.run_on_first(lambda: _remove_parts(parts))
            table = LossTable.load(parts.table, tokens=True)
    return table


def _finished(parts: Parts, how: StreamPass) -> LossTable:
    table = LossTable.load(parts.table, tokens=True)
    found = table.provenance.identity() | {"key": table.provenance.key}
    identity = how.identity()
    require_same(
        identity,
        {name: found[name] for name in identity},
        what=f"the table {parts.table}",
        advice=ADVICE,
    )
    return table


def _require_stream(source: Source, table: LossTable, parts: Parts) -> None:
    known = table.provenance
    assert table.keys is not None
    what = f"the table {parts.table}, which is finished,"
    require_first_rows(source, str(known.key), table.keys, known.first_rows, what=what)


def _merged(of_ranks: list[_Scored], how: StreamPass) -> LossTable:
    before = np.cumsum([0, *(len(some.scores) for some in of_ranks)])
    scores = concatenate_parts(
        [
            replace(some.scores, rows=some.scores.rows + first)
            for some, first in zip(of_ranks, before[:-1].tolist(), strict=True)
        ]
    )
    try:
        keys = joined_keys([some.keys for some in of_ranks])
    except MismatchError as error:
        if len(of_ranks) == 1:
            raise
        raise MismatchError(
            f"{error}. Each rank reads its own stream: give it its part, "
            "datasets.distributed.split_dataset_by_node(stream, rank, ranks)"
        ) from error
    truncated = None if scores.truncated is None else int(scores.truncated.sum())
    known = replace(how.provenance, rows=len(scores), first_rows=of_ranks[0].first_rows)
    provenance = known.with_truncated(truncated or 0)
    return LossTable(**vars(table_of_rows(scores, provenance, None, keys)))


class _Share:
    """What one rank has scored: rows by the number in which it read them, and their keys."""

    def __init__(self, how: StreamPass, ranks: Ranks, parts: Parts | None) -> None:
        self._how, self._ranks, self._parts = how, ranks, parts
        self._scores: list[ScoredRows] = []
        self._keys: list[RowKeys] = []
        self._first_rows: str | None = None
        self._state: Any = None
        self._rows = self._saved_rows = self._saved_parts = 0
        self._look = _FIRST_LOOK

    def scored(self) -> _Scored | None:
        """All of it, if there is anything."""
        if not self._scores:
            return None
        scores = sort_by_row(concatenate_parts(self._scores))
        return _Scored(scores, joined_keys(self._keys), self._first_rows)

    def score(self, stream: Any, bar: "tqdm[Any]") -> None:
        """Score what is left of the stream of this rank."""
        how, source = self._how, Source(stream)
        if self._parts is not None:
            self._load(self._parts, {**how.identity(), "epoch": source.epoch})
            if self._rows:
                self._keys = [joined_keys(self._keys)]
                what = f"what is scored already, in {self._parts.folder},"
                require_first_rows(
                    *(source, how.key, self._keys[0], self._first_rows), what=what, most=self._rows
                )
        size = how.scoring_pass.rows_per_read
        first = source.first(size) if self._rows else []
        bar.initial = bar.n = self._rows
        saved = time.monotonic()
        try:
            for _ in self._ranks.watched(self._score(source, first, size)):
                bar.update(self._rows - bar.n)
                if time.monotonic() - saved >= how.save_every:
                    self._save(source)
                    saved = time.monotonic()
        # Also after an error or Ctrl-C: what was scored before it is kept.
        finally:
            self._save(source)

    def _score(self, source: Source, first: list[Any], size: int) -> Iterator[None]:
        how = self._how
        rows = source.rows(self._state, self._rows)
        while block := list(islice(rows, size)):
            keys = [key_of(row, how.key, self._rows + place) for place, row in enumerate(block)]
            if not self._rows:
                self._first_rows = hashes_of(block)
            block = how.read_rows(block)
            how.begin(how.read_rows(first) or block)
            numbers = np.arange(self._rows, self._rows + len(block))
            collate = how.scoring_pass.collate
            read = require_read(collate(block), numbers) if collate else block
            scored = how.scoring_pass.score_rows(numbers, read)
            scores = concatenate_parts([*refuse_or_drop_invalid(scored, how.on_invalid)])
            self._add(scores, RowKeys(as_keys(keys)))
            self._state = source.state()
            yield

    def _add(self, scores: ScoredRows, keys: RowKeys) -> None:
        self._scores.append(scores)
        self._keys.append(keys)
        self._rows += len(keys)
        if self._rows >= self._look:
            # Finds those that come twice.
            self._keys = [joined_keys(self._keys)]
            self._look = 2 * self._rows

    def _save(self, source: Source) -> None:
        """Write the rows that were scored since the last part."""
        parts, first = self._parts, self._saved_rows
        if parts is None or self._rows == first:
            return
        self._scores = [sort_by_row(concatenate_parts(self._scores))]
        self._keys = [joined_keys(self._keys)]
        said = {
            "identity": {**self._how.identity(), "epoch": source.epoch},
            "first_rows": self._first_rows,
            "keys": self._keys[0][first:],
            "state": self._state,
        }
        try:
            write_part(
                self._path(parts, self._saved_parts), _rows_from(self._scores[0], first), said
            )
        except OSError as error:
            raise TableFileError(
                f"cannot write the scores of {self._rows - first:,} rows to {parts.folder}: "
                f"{reason_of(error)}; what was saved before is kept, and the same call goes on "
                "from there"
            ) from error
        self._saved_parts, self._saved_rows = self._saved_parts + 1, self._rows

    def _load(self, parts: Parts, identity: dict[str, Any]) -> None:
        """Take over what was scored before."""
        while (path := self._path(parts, self._saved_parts)).is_file():
            try:
                part = read_part(path)
            except DamagedFileError as error:
                warn(f"the part {path} cannot be read ({error}); its rows are scored again")
                break
            said = part.identity or {}
            found = said.get("identity", {})
            require_same(identity, found, what=f"the part {path}", advice=ADVICE)
            refuse_invalid(part.scores, on_invalid=self._how.on_invalid)
            self._add(part.scores, RowKeys(as_keys(said["keys"])))
            self._state = said["state"]
            # Earlier versions did not keep them.
            self._first_rows = said.get("first_rows")
            self._saved_parts, self._saved_rows = self._saved_parts + 1, self._rows

    def _path(self, parts: Parts, number: int) -> Place:
        rank = f"{self._ranks.rank:03d}-of-{self._ranks.size:03d}"
        return parts.folder / f"{_PREFIX}{rank}-{number:06d}.parquet"


def _require_own_parts(parts: Parts, ranks: int) -> None:
    """Refuse parts of rows by number, and those of another number of ranks."""
    for name in part_names(parts.folder):
        if f"-of-{ranks:03d}-" not in name or not name.startswith(_PREFIX):
            raise MismatchError(
                f"{parts.folder / name} is no part of this pass, over a stream, on {ranks} "
                "ranks: go on as it was begun, or choose another output, or delete the folder"
            )


def _remove_parts(parts: Parts) -> None:
    nothing = ScoredRows(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))
    names = [name for name in part_names(parts.folder) if name.startswith(_PREFIX)]
    own = [Part(parts.folder / name, nothing, None) for name in names]
    parts.remove({}, own)


def _rows_from(scores: ScoredRows, first: int) -> ScoredRows:
    """Those from a number on, of rows in their order that begin with 0."""
    tokens = scores.token_losses
    if tokens is not None and scores.n_tokens is not None:
        tokens = tokens[int(scores.n_tokens[:first].sum(dtype=np.int64)) :]
    rest = {
        name: values[first:]
        for name, values in vars(scores).items()
        if values is not None and name != "token_losses"
    }
    return ScoredRows(**rest, token_losses=tokens)
