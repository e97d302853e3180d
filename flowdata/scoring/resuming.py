"""A scoring pass that goes on where parts on disk end, and becomes a table."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from flowdata.errors import TableFileError, warn
from flowdata.scoring.parts import Parts, refuse_other, undone
from flowdata.scoring.ranks import Ranks
from flowdata.scoring.scores import Scores, joined
from flowdata.table.fingerprint import RANDOM
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance


def resumable(
    parts: Parts,
    provenance: Provenance,
    ranks: Ranks,
    *,
    run: Callable[[NDArray[np.int64]], Iterator[Scores]],
    merged: Callable[[list[Scores]], LossTable],
    accept: Callable[[Scores], None],
    save_every: float,
) -> LossTable:
    """Score the rows that no part holds, merge all parts into the table, and read it.

    Args:
        parts: the folder beside the output.
        provenance: of this pass.
        ranks: the processes that score together.
        run: scores this rank's share of the rows that are left.
        merged: makes a table of all parts.
        accept: raises where losses found earlier are not acceptable now.
        save_every: seconds after which scored rows are written.

    Raises:
        InvalidLossError, MismatchError, TableFileError: see `flowdata.score`.
    """
    output = parts.table
    with ExitStack() as lock:

        def begin() -> NDArray[np.int64]:
            if not output.exists():
                lock.enter_context(parts.locked())
                if ranks.size == 1:  # Others could be about to write.
                    lock.enter_context(parts.removed_if_empty())
            # Asked again: who held the lock until now may have finished it.
            if output.exists():
                existing = LossTable.load(output)
                known, what = existing.provenance.identity(), f"the table {output}"
                refuse_other(provenance.identity(), known, what)
                _say_if_unknown(provenance, what)
                accept(Scores(np.arange(len(existing)), existing.losses, existing.n_tokens))
                return np.zeros(0, dtype=np.int64)
            parts.claim(provenance.identity())
            if found := parts.load():
                _say_if_unknown(provenance, f"the unfinished pass {parts.folder}")
                accept(joined(found))
            return undone(provenance.rows, found)

        def finish() -> None:
            if not output.exists():
                everything = parts.load()
                if left := undone(provenance.rows, everything).size:
                    raise TableFileError(
                        f"{left:,} rows are missing in {parts.folder}; call score again to go on"
                    )
                parts.finish(merged(everything))
            parts.remove()

        left = ranks.on_first(begin)
        if left.size:
            _save_regularly(run(left), parts, save_every)
        ranks.gathered(None)
        ranks.on_first(finish)
    return LossTable.load(output, tokens=True)


def _say_if_unknown(provenance: Provenance, what: str) -> None:
    if provenance.data_fingerprint is None or provenance.transform == RANDOM:
        warn(
            f"it cannot be told whether {what} was made of this data: its samples read "
            "differently each time, or have no content that can be hashed. If it was not, choose "
            "another output, or delete it"
        )


def _save_regularly(scores: Iterator[Scores], parts: Parts, save_every: float) -> None:
    unsaved: list[Scores] = []
    saved = time.monotonic()
    try:
        for some in scores:
            unsaved.append(some)
            if time.monotonic() - saved >= save_every:
                parts.add(joined(unsaved))
                unsaved, saved = [], time.monotonic()
    finally:
        if unsaved:
            parts.add(joined(unsaved))
