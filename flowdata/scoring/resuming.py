"""A scoring pass that goes on where parts on disk end, and becomes a table."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import require_same
from flowdata.errors import TableFileError, warn
from flowdata.scoring.parts import ADVICE, Parts, find_unscored_rows
from flowdata.scoring.ranks import Ranks
from flowdata.scoring.scored_rows import ScoredRows, concatenate_parts
from flowdata.table.fingerprint import RANDOM
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance


def score_resumably(
    parts: Parts,
    provenance: Provenance,
    ranks: Ranks,
    *,
    score_rows: Callable[[NDArray[np.int64]], Iterator[ScoredRows]],
    merge: Callable[[list[ScoredRows]], LossTable],
    refuse_invalid: Callable[[ScoredRows], None],
    save_every: float,
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

    Raises:
        InvalidLossError, MismatchError, TableFileError: see `flowdata.score`.
    """
    output = parts.table
    with ExitStack() as lock:

        def begin() -> NDArray[np.int64]:
            if not output.exists():
                lock.enter_context(parts.locked())
                # On several ranks the first may fail while others are about to write a part.
                if ranks.size == 1:
                    lock.enter_context(parts.removed_if_empty())
            # Looked for again: who held the lock until now may have finished the table.
            if output.exists():
                existing = LossTable.load(output)
                known, what = existing.provenance.identity(), f"the table {output}"
                require_same(provenance.identity(), known, what=what, advice=ADVICE)
                _warn_if_unrecognised(provenance, what)
                refuse_invalid(
                    ScoredRows(np.arange(len(existing)), existing.losses, existing.n_tokens)
                )
                return np.zeros(0, dtype=np.int64)
            parts.claim(provenance.identity())
            if found := parts.load():
                _warn_if_unrecognised(provenance, f"the unfinished pass {parts.folder}")
                refuse_invalid(concatenate_parts(found))
            return find_unscored_rows(provenance.rows, found)

        def finish() -> None:
            if not output.exists():
                everything = parts.load()
                if left := find_unscored_rows(provenance.rows, everything).size:
                    raise TableFileError(
                        f"{left:,} rows are missing in {parts.folder}; call score again to go on"
                    )
                parts.finish(merge(everything))
            parts.remove()

        left = ranks.run_on_first(begin)
        if left.size:
            _save_regularly(score_rows(left), parts, save_every)
        # The parts of all ranks are on disk when all have come here.
        ranks.gather(None)
        ranks.run_on_first(finish)
    return LossTable.load(output, tokens=True)


def _warn_if_unrecognised(provenance: Provenance, what: str) -> None:
    if provenance.data_fingerprint is None or provenance.transform == RANDOM:
        warn(
            f"it cannot be told whether {what} was made of this data: its samples read "
            "differently each time, or have no content that can be hashed. If it was not, choose "
            "another output, or delete it"
        )


def _save_regularly(scores: Iterator[ScoredRows], parts: Parts, save_every: float) -> None:
    unsaved: list[ScoredRows] = []
    saved = time.monotonic()
    try:
        for some in scores:
            unsaved.append(some)
            if time.monotonic() - saved >= save_every:
                parts.add(concatenate_parts(unsaved))
                unsaved, saved = [], time.monotonic()
    # Also after an error or Ctrl-C: what was scored before it is kept.
    finally:
        if unsaved:
            parts.add(concatenate_parts(unsaved))
