"""A scoring pass that goes on where parts on disk end, and becomes a table."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import require_same
from flowdata.errors import MismatchError, TableFileError, warn
from flowdata.scoring.part_file import Part
from flowdata.scoring.parts import ADVICE, Parts, find_unscored_rows
from flowdata.scoring.ranks import Ranks
from flowdata.scoring.scored_rows import ScoredRows, concatenate_parts
from flowdata.table.fingerprint import RANDOM
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys


def score_resumably(
    parts: Parts,
    provenance: Provenance,
    ranks: Ranks,
    *,
    score_rows: Callable[[NDArray[np.int64]], Iterator[ScoredRows]],
    merge: Callable[[list[ScoredRows]], LossTable],
    refuse_invalid: Callable[[ScoredRows], None],
    save_every: float,
    keys: RowKeys | None = None,
    known: ScoredRows | None = None,
) -> LossTable:
    """Score the rows that no part holds, merge all parts into the table, and read it.

    Args:
        parts: the folder beside the output.
        provenance: of this pass.
        ranks: the processes that score together.
        score_rows: scores this rank's share of the rows that are left.
        merge: makes a table of all parts.
        refuse_invalid: raises where losses found earlier are not acceptable now.
        save_every: seconds after which scored rows are written.
        keys: those that the table shall have.
        known: rows that need not be scored.

    Raises:
        InvalidLossError, MismatchError, TableFileError: see `flowdata.score`.
    """
    known_rows = None if known is None else known.rows
    with ExitStack() as lock:
        left = ranks.run_on_first(
            lambda: _begin(
                parts, provenance, refuse_invalid, lock, known_rows, alone=ranks.size == 1
            )
        )
        if left.size:
            _save_regularly(
                ranks.watched(score_rows(left)), parts, provenance.identity(), save_every
            )
        # The parts of all ranks are on disk when all have come here.
        ranks.gather(None)
        ranks.run_on_first(lambda: _finish(parts, provenance, merge, known_rows))
    table = LossTable.load(parts.table, tokens=True)
    if keys is not None and (table.keys is None or not table.keys.same_as(keys)):
        which = "without" if table.keys is None else "with other"
        raise MismatchError(
            f"the table {parts.table} was scored {which} keys than those of {provenance.key!r}: "
            "table.with_keys(...).save(path) gives it these, or choose another output"
        )
    return table


def _begin(
    parts: Parts,
    provenance: Provenance,
    refuse_invalid: Callable[[ScoredRows], None],
    lock: ExitStack,
    known: NDArray[np.int64] | None,
    *,
    alone: bool,
) -> NDArray[np.int64]:
    """Take the lock of an unfinished table, and find the rows that are not scored yet."""
    if not parts.is_finished:
        lock.enter_context(parts.locked())
        # On several ranks the first may fail while others are about to write a part.
        if alone:
            lock.enter_context(parts.removed_if_empty())
    # Looked for again: who held the lock until now may have finished the table.
    if parts.is_finished:
        _require_same_table(parts.table, provenance, refuse_invalid)
        return np.zeros(0, dtype=np.int64)
    parts.claim(provenance.identity())
    if found := parts.load(provenance.identity()):
        _warn_if_unrecognised(provenance, f"the unfinished pass {parts.folder}")
        refuse_invalid(concatenate_parts([part.scores for part in found]))
    return find_unscored_rows(provenance.rows, found, known)


def _require_same_table(
    path: Path, provenance: Provenance, refuse_invalid: Callable[[ScoredRows], None]
) -> None:
    """Refuse the finished table of another pass, or one of losses that are not acceptable now."""
    table, what = LossTable.load(path), f"the table {path}"
    require_same(provenance.identity(), table.provenance.identity(), what=what, advice=ADVICE)
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
    scores: Iterator[ScoredRows], parts: Parts, identity: dict[str, Any], save_every: float
) -> None:
    unsaved: list[ScoredRows] = []
    saved = time.monotonic()
    try:
        for some in scores:
            unsaved.append(some)
            if time.monotonic() - saved >= save_every:
                parts.add(concatenate_parts(unsaved), identity)
                unsaved, saved = [], time.monotonic()
    # Also after an error or Ctrl-C: what was scored before it is kept.
    finally:
        if unsaved:
            parts.add(concatenate_parts(unsaved), identity)
