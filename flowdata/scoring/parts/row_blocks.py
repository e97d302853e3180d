"""Who scores what: jobs of an array, and the ranks of each, share the batches of a data set.

The last bits of a loss depend on the batch that it was computed in. So a batch is made of the same
rows whoever scores it: rows are read in blocks, which depend on the data set alone, and what makes
batches of a block makes them of all its rows, also of those that others score or have scored.
Blocks lie on a line, of which each worker has a stretch as long as any other's. Where a stretch
ends inside a block, its two neighbours share the batches of that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Batches: TypeAlias = list[NDArray[np.int64]]
ChooseBatches: TypeAlias = Callable[[Batches], Batches]
"""Of all batches of a block, each the places of its rows in it, those to score, with the rows to
score of each."""


class Worker(NamedTuple):
    """One of several that share a pass."""

    number: int
    of: int


@dataclass(frozen=True)
class Block:
    """Rows that are read together.

    Attributes:
        rows: row numbers in the data set, int64.
        left: which of them are not scored yet, shape (rows,).
        shares: the stretch of the batches that each worker has, of this block from 0 to 1; one
            for the job, and one, of what is left of that, for the rank.
    """

    rows: NDArray[np.int64]
    left: NDArray[np.bool_]
    shares: tuple[tuple[float, float], ...] = ()

    @property
    def rows_left(self) -> NDArray[np.int64]:
        """Those to score, where the block is one batch."""
        return self.rows[self.left]

    @property
    def expected(self) -> float:
        """How many rows its workers will score, about."""
        return float(self.left.sum() * np.prod([end - start for start, end in self.shares]))

    def choose(self, batches: Batches) -> Batches:
        """See `ChooseBatches`."""
        job, *rank = self.shares
        chosen = (batch[self.left[batch]] for batch in _stretch(batches, *job))
        found = [batch for batch in chosen if batch.size]
        for share in rank:
            found = _stretch(found, *share)
        return found


def _stretch(batches: Batches, start: float, end: float) -> Batches:
    # By their middles: neighbours have the same bound, so that each batch is of one of them.
    places = (np.arange(len(batches)) + 0.5) / max(len(batches), 1)
    return [
        batch for batch, place in zip(batches, places, strict=True) if start <= float(place) < end
    ]


def blocks_of_worker(
    rows: NDArray[np.int64],
    left: NDArray[np.bool_],
    size: int,
    *,
    job: Worker,
    rank: Worker,
    in_order: bool,
    whole: bool,
) -> list[Block]:
    """The blocks that one rank of a job reads.

    Args:
        rows: all rows of the pass, in the order of the data set.
        left: which of them are not scored yet, shape (rows,).
        size: rows of a block.
        job: of an array.
        rank: of those that score together in this job.
        in_order: whether a worker reads blocks that follow each other, as of tar shards; else
            those of a worker are spread over the data set, which may not be the same throughout.
        whole: whether a block is one batch, and so of one worker alone.
    """
    blocks = [
        Block(rows[start : start + size], left[start : start + size])
        for start in range(0, rows.size, size)
    ]
    of_job = _share(blocks, [block.rows.size for block in blocks], job, in_order=in_order)
    if whole:
        of_job = _whole(of_job)
    open_ = [block for block in of_job if block.left.any()]
    found = _share(open_, [block.expected for block in open_], rank, in_order=in_order)
    return _whole(found) if whole else found


def _whole(blocks: Sequence[Block]) -> list[Block]:
    """Of blocks of which workers have shares those that are of this one, as a whole."""
    own = (block for block in blocks if _has_middle(*block.shares[-1]))
    return [replace(block, shares=(*block.shares[:-1], (0.0, 1.0))) for block in own]


def _has_middle(start: float, end: float) -> bool:
    return start <= 0.5 < end


def _share(
    blocks: Sequence[Block], weights: Sequence[float], worker: Worker, *, in_order: bool
) -> list[Block]:
    """The blocks that lie in a worker's stretch of the line, in their order, with what of each."""
    line = np.arange(len(blocks))
    if not in_order:
        line = np.concatenate([line[first :: worker.of] for first in range(worker.of)])
    lengths = np.asarray(weights, dtype=np.float64)[line]
    ends = np.cumsum(lengths)
    whole = float(ends[-1]) if ends.size else 0.0
    bounds = [whole * number / worker.of for number in (worker.number, worker.number + 1)]
    found = []
    for place, length, end in zip(line.tolist(), lengths.tolist(), ends.tolist(), strict=True):
        start, stop = (min(max((bound - end + length) / length, 0.0), 1.0) for bound in bounds)
        if start < stop:
            block = blocks[place]
            found.append((place, replace(block, shares=(*block.shares, (start, stop)))))
    return [block for _, block in sorted(found, key=lambda some: some[0])]
