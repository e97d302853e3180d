"""A scoring pass that goes on where parts on disk end, and becomes a table."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import MismatchError, TableFileError, warn
from flowdata.files import Place
from flowdata.scoring.parts.folder import ADVICE, Parts, find_unscored_rows
from flowdata.scoring.parts.row_blocks import Worker
from flowdata.scoring.passes.ranks import Ranks
from flowdata.table.checks import require_same_pass
from flowdata.table.fingerprint import RANDOM
from flowdata.table.loss_table import LossTable
from flowdata.table.merging import notes
from flowdata.table.part_file import Part
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.scored_rows import ScoredRows, concatenate_parts, table_of_some
from flowdata.table.shard_index import ShardIndex


@dataclass(frozen=True)
class Pass:
    """A pass that is kept on disk.

    Attributes:
        parts: the folder beside the output.
        provenance: of the table.
        ranks: the processes that score together.
        index, keys: places and keys of all rows, which the table shall have.
        job: of an array, whose share of the pass this is; None where it is all of it.
    """

    parts: Parts
    provenance: Provenance
    ranks: Ranks
    index: ShardIndex | None = None
    keys: RowKeys | None = None
    job: Worker | None = None


def score_resumably(
    how: Pass,
    *,
    score_rows: Callable[[NDArray[np.int64]], Iterator[ScoredRows]],
    merge: Callable[[list[ScoredRows]], LossTable],
    refuse_invalid: Callable[[ScoredRows], None],
    save_every: float,
    known: NDArray[np.int64] | None = None,
) -> LossTable:
    """Score the rows that no part holds, merge all parts into the table, and read it.

    Of a job of an array the table has the rows that it has scored, and parts are left as they are.

    Args:
        how: what is scored, and where it is kept.
        score_rows: scores this rank's share of the rows that are left.
        merge: makes a table of all parts.
        refuse_invalid: raises where losses found earlier are not acceptable now.
        save_every: seconds after which scored rows are written.
        known: rows that need not be scored.

    Raises:
        InvalidLossError, MismatchError, TableFileError: see `flowdata.score`.
    """
    parts, ranks = how.parts, how.ranks
    with ExitStack() as lock:
        begun = ranks.run_on_first(lambda: _begin(how, refuse_invalid, lock, known))
        if begun.left.size:
            _save_regularly(ranks.watched(score_rows(begun.left)), how, begun.notes, save_every)
        # The parts of all ranks are on disk when all have come here.
        ranks.gather(None)
        if how.job is not None and not begun.finished:
            job = how.job
            ranks.run_on_first(lambda: parts.mark_done(job, how.provenance.identity()))
            return _table_of_job(how)
        ranks.run_on_first(lambda: _finish(parts, how.provenance, merge, known))
    table = LossTable.load(parts.table, tokens=True)
    if how.keys is not None and (table.keys is None or not table.keys.same_as(how.keys)):
        which = "without" if table.keys is None else "with other"
        raise MismatchError(
            f"the table {parts.table} was scored {which} keys than those of "
            f"{how.provenance.key!r}: table.with_keys(...).save(path) gives it these, or choose "
            "another output"
        )
    return table


class _Begun(NamedTuple):
    """What there is of a pass.

    Attributes:
        left: rows that are not scored yet.
        notes: what its parts say of themselves.
        finished: whether the table is there.
    """

    left: NDArray[np.int64]
    notes: dict[str, Any]
    finished: bool = False


def _begin(
    how: Pass,
    refuse_invalid: Callable[[ScoredRows], None],
    lock: ExitStack,
    known: NDArray[np.int64] | None,
) -> _Begun:
    """Take the lock of an unfinished table, and find the rows that are not scored yet."""
    parts, provenance = how.parts, how.provenance
    if not parts.is_finished:
        lock.enter_context(parts.locked(how.job))
        # On several ranks, or of several jobs, the first may fail while others are about to write.
        if how.ranks.size == 1 and how.job is None:
            lock.enter_context(parts.removed_if_empty())
    # Looked for again: who held the lock until now may have finished the table.
    if parts.is_finished:
        _require_same_table(parts.table, provenance, refuse_invalid)
        return _Begun(np.zeros(0, dtype=np.int64), {}, finished=True)
    parts.claim(provenance.identity())
    rows_file = parts.keep_rows(provenance, how.index, how.keys)
    if found := parts.load(provenance.identity()):
        _warn_if_unrecognised(provenance, f"the unfinished pass {parts.folder}")
        refuse_invalid(concatenate_parts([part.scores for part in found]))
    left = find_unscored_rows(provenance.rows, found, known)
    return _Begun(left, notes(provenance, rows_file, how.job))


def _table_of_job(how: Pass) -> LossTable:
    """The table of the rows that this job has scored, now or before it was stopped."""
    found = how.parts.load(how.provenance.identity(), how.job)
    scores = [part.scores for part in found]
    return LossTable(**vars(table_of_some(scores, how.provenance, how.index, how.keys)))


def _require_same_table(
    path: Place, provenance: Provenance, refuse_invalid: Callable[[ScoredRows], None]
) -> None:
    """Refuse the finished table of another pass, or one of losses that are not acceptable now."""
    table, what = LossTable.load(path), f"the table {path}"
    found = table.provenance.identity()
    require_same_pass(provenance.identity(), found, what=what, advice=ADVICE)
    _warn_if_unrecognised(provenance, what)
    refuse_invalid(ScoredRows(np.arange(len(table)), table.losses, table.n_tokens))


def _finish(
    parts: Parts,
    provenance: Provenance,
    merge: Callable[[list[ScoredRows]], LossTable],
    known: NDArray[np.int64] | None,
) -> None:
    """Make the table of all parts, unless it is there, and remove them."""
    found: list[Part] = []
    if not parts.is_finished:
        found = parts.load(provenance.identity())
        if left := find_unscored_rows(provenance.rows, found, known).size:
            raise TableFileError(
                f"{left:,} rows are missing in {parts.folder}; call score again to go on"
            )
        parts.finish(merge([part.scores for part in found]))
    parts.remove(provenance.identity(), found)


def _warn_if_unrecognised(provenance: Provenance, what: str) -> None:
    if provenance.data_fingerprint is None or provenance.transform == RANDOM:
        warn(
            f"it cannot be told whether {what} was made of this data: its samples read "
            "differently each time, or have no content that can be hashed. If it was not, choose "
            "another output, or delete it"
        )


def _save_regularly(
    scores: Iterator[ScoredRows], how: Pass, said: Mapping[str, Any], save_every: float
) -> None:
    unsaved: list[ScoredRows] = []
    saved = time.monotonic()
    identity = how.provenance.identity()
    try:
        for some in scores:
            unsaved.append(some)
            if time.monotonic() - saved >= save_every:
                how.parts.add(concatenate_parts(unsaved), identity, said)
                unsaved, saved = [], time.monotonic()
    # Also after an error or Ctrl-C: what was scored before it is kept.
    finally:
        if unsaved:
            how.parts.add(concatenate_parts(unsaved), identity, said)
