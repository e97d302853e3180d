"""A pass over the rows of a data set: shared among ranks, in batches, kept on disk as it goes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from flowdata.core.arrays import is_invalid
from flowdata.core.weights import OnInvalid
from flowdata.errors import InvalidLossError
from flowdata.scoring.models.inference import read_these
from flowdata.scoring.parts.folder import Parts, find_unscored_rows
from flowdata.scoring.parts.row_blocks import Block, ChooseBatches, Worker, blocks_of_worker
from flowdata.scoring.passes.known_rows import KnownRows, require_same_on_ranks
from flowdata.scoring.passes.ranks import Ranks
from flowdata.scoring.passes.resuming import Pass, score_resumably
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.table.scored_rows import ScoredRows, concatenate_parts, sort_by_row, table_of_rows
from flowdata.table.shard_index import ShardIndex
from flowdata.tar.rows import ShardRows


class ScoringPass(Protocol):
    """What a kind of loss brings along: how rows are read, some at a time, and scored."""

    @property
    def rows_per_read(self) -> int:
        """Rows that are read at a time."""
        ...

    @property
    def collate(self) -> Callable[[list[Any]], Any] | None:
        """Makes of rows what `score_rows` takes, in a loader worker if there are any."""
        ...

    def score_rows(self, rows: NDArray[np.int64], read: Any) -> Iterator[ScoredRows]:
        """Losses of rows that were read together, in any order, in as many pieces as it likes.

        A piece is made of the same rows where other pieces are left out.

        Args:
            rows: row numbers in the data set.
            read: what `collate` made of these rows.
        """
        ...


@runtime_checkable
class BatchingPass(ScoringPass, Protocol):
    """One that makes several batches of rows that are read together."""

    def score_chosen(
        self, rows: NDArray[np.int64], read: Any, choose: ChooseBatches
    ) -> Iterator[ScoredRows]:
        """Losses of some of the batches that are made of all these rows."""
        ...


ScoreNumbers: TypeAlias = Callable[[NDArray[np.int64]], Iterator[ScoredRows]]
"""Has rows scored by their numbers elsewhere, where they are read too."""


def run_pass(
    scoring_pass: ScoringPass | ScoreNumbers,
    dataset: Any,
    provenance: Provenance,
    ranks: Ranks,
    *,
    parts: Parts | None,
    num_workers: int,
    on_invalid: OnInvalid,
    save_every: float,
    progress: bool,
    title: str = "scoring",
    keys: RowKeys | None = None,
    known: KnownRows | None = None,
    job: Worker | None = None,
) -> LossTable:
    """The table of a pass, of which this rank goes through its share of the rows.

    Args:
        scoring_pass: scores rows, or has them scored.
        dataset: map-style data set.
        provenance: of the pass; its identity says which parts on disk are of it.
        ranks: the processes that go through the rows together.
        parts: where the table and what there is of it are kept; None keeps nothing.
        num_workers, on_invalid, save_every, progress: see `flowdata.score`.
        title: of the progress bar.
        keys: those of the rows, which the table shall have.
        known: rows that need not be scored.
        job: of an array, whose share alone is scored, and what the table has.
    """
    require_same_on_ranks(known, ranks)
    found = None if known is None else known.scores
    if found is not None:
        refuse_invalid(found, on_invalid=on_invalid)
        found.losses[is_invalid(found.losses)] = np.nan
    with tqdm(desc=title, unit="samples", disable=not progress or ranks.rank > 0) as bar:
        known_rows = None if found is None else found.rows
        share = _ShareOfRank(
            *(scoring_pass, dataset, ranks, job or Worker(0, 1), known_rows),
            *(num_workers, on_invalid, bar),
        )
        merge = partial(_merge, provenance=provenance, dataset=dataset, keys=keys, known=known)
        if parts is None:
            left = find_unscored_rows(provenance.rows, (), known_rows)
            of_each_rank = ranks.gather(list(ranks.watched(share.score(left))))
            return merge(list(chain.from_iterable(of_each_rank)))
        index = dataset.index if isinstance(dataset, ShardRows) else None
        return score_resumably(
            Pass(parts, provenance, ranks, index, keys, job),
            score_rows=share.score,
            merge=merge,
            refuse_invalid=partial(refuse_invalid, on_invalid=on_invalid),
            save_every=save_every,
            known=known_rows,
        )


@dataclass(frozen=True)
class _ShareOfRank:
    """Scores the share of this rank, with a progress bar."""

    scoring_pass: ScoringPass | ScoreNumbers
    dataset: Any
    ranks: Ranks
    job: Worker
    known: NDArray[np.int64] | None
    num_workers: int
    on_invalid: OnInvalid
    bar: "tqdm[Any]"

    def score(self, left: NDArray[np.int64]) -> Iterator[ScoredRows]:
        """Score this rank's share of the rows that are left."""
        if callable(self.scoring_pass):
            scored, expected = self.scoring_pass(left), left.size
        else:
            blocks = self._blocks(self.scoring_pass, left)
            scored = score_blocks(self.scoring_pass, self.dataset, blocks, self.num_workers)
            expected = round(sum(block.expected for block in blocks))
        done = (len(self.dataset) - left.size) // (self.ranks.size * self.job.of)
        # tqdm takes the rate from what is done since `initial`: what a pass before has done
        # must not look fast.
        self.bar.reset(total=done + expected)
        self.bar.initial = self.bar.n = done
        self.bar.refresh()
        return refuse_or_drop_invalid(self._shown(scored), self.on_invalid)

    def _blocks(self, scoring_pass: ScoringPass, left: NDArray[np.int64]) -> list[Block]:
        """What this rank reads of the rows that are left."""
        rows = find_unscored_rows(len(self.dataset), (), self.known)
        is_left = np.zeros(len(self.dataset), dtype=np.bool_)
        is_left[left] = True
        return blocks_of_worker(
            rows,
            is_left[rows],
            scoring_pass.rows_per_read,
            job=self.job,
            rank=Worker(self.ranks.rank, self.ranks.size),
            # So few shards are opened by more than one.
            in_order=isinstance(self.dataset, ShardRows),
            whole=not isinstance(scoring_pass, BatchingPass),
        )

    def _shown(self, scored: Iterator[ScoredRows]) -> Iterator[ScoredRows]:
        tokens = size = 0
        started = time.monotonic()
        index = self.dataset.index if isinstance(self.dataset, ShardRows) else None
        for scores in scored:
            size += 0 if index is None else _bytes_of(scores.rows, index)
            counted = scores.lengths if scores.n_tokens is None else scores.n_tokens
            tokens += 0 if counted is None else int(counted.sum())
            what = "tokens" if scores.n_tokens is None else "response tokens"
            self._show_rates(tokens, what, size, time.monotonic() - started)
            self.bar.update(len(scores))
            yield scores
        # How many are of this rank is not known before batches are made.
        self.bar.total = self.bar.n
        self.bar.refresh()

    def _show_rates(self, tokens: int, what: str, size: int, seconds: float) -> None:
        """Show tokens, and bytes of samples of shards, a second."""
        rates = [f"{tokens / seconds:,.0f} {what}/s"] * (tokens > 0)
        rates += [f"{size / seconds / 1e6:,.1f} MB/s"] * (size > 0)
        self.bar.set_postfix_str(", ".join(rates), refresh=False)


def score_blocks(
    scoring_pass: ScoringPass, dataset: Any, blocks: Sequence[Block], num_workers: int
) -> Iterator[ScoredRows]:
    """Losses of what is to be scored of some blocks of a data set."""
    batching = isinstance(scoring_pass, BatchingPass)
    read_blocks = read_these(
        dataset,
        [block.rows if batching else block.rows_left for block in blocks],
        collate_fn=scoring_pass.collate,
        num_workers=num_workers,
    )
    for block, read in zip(blocks, read_blocks, strict=True):
        if isinstance(scoring_pass, BatchingPass):
            yield from scoring_pass.score_chosen(block.rows, read, block.choose)
        else:
            yield from scoring_pass.score_rows(block.rows_left, read)


def _bytes_of(rows: NDArray[np.int64], index: ShardIndex) -> int:
    """Bytes of samples, by the rows of their shards: a large index stays in its file."""
    shards = np.searchsorted(index.bounds(), rows, side="right") - 1
    size = 0
    for shard in np.unique(shards).tolist():
        samples = index.of_shard(shard)
        size += int(samples.sizes[rows[shards == shard] - samples.first].sum())
    return size


def refuse_or_drop_invalid(
    scores: Iterator[ScoredRows], on_invalid: OnInvalid
) -> Iterator[ScoredRows]:
    """Pass valid losses on; stop at invalid ones, or replace them with NaN."""
    for some in scores:
        refuse_invalid(some, on_invalid=on_invalid)
        if on_invalid == "drop":
            some.losses[is_invalid(some.losses)] = np.nan
        yield some


def refuse_invalid(scores: ScoredRows, *, on_invalid: OnInvalid) -> None:
    """Refuse invalid losses, of this pass or of one before, unless they are to be dropped."""
    invalid = is_invalid(scores.losses)
    if invalid.any() and on_invalid == "raise":
        raise InvalidLossError(_describe_invalid(scores, invalid))


def _describe_invalid(scores: ScoredRows, invalid: NDArray[np.bool_]) -> str:
    order = np.argsort(scores.rows[invalid])
    rows, losses = scores.rows[invalid][order], scores.losses[invalid][order]
    more = " and more" if rows.size > 5 else ""
    advice = 'look at these samples, or pass on_invalid="drop" to give them weight 0'
    if scores.n_tokens is not None and not scores.n_tokens[invalid].any():
        cut = 0 if scores.truncated is None else int(scores.truncated[invalid].sum())
        why = f" ({cut:,} of them were cut by max_length: it may be too short)" if cut else ""
        return f"no response token to score in rows {rows[:5].tolist()}{more}{why}; {advice}"
    ignored = " (NaN where a target is NaN, or all labels of a row are ignored)"
    return (
        f"NaN, infinite or negative losses {losses[:5].tolist()} at rows {rows[:5].tolist()}"
        f"{more}{ignored if np.isnan(losses).all() else ''}; {advice}"
    )


def _merge(
    parts: Sequence[ScoredRows],
    provenance: Provenance,
    dataset: Any,
    keys: RowKeys | None,
    known: KnownRows | None,
) -> LossTable:
    """The table of all parts, whichever rank scored them, and of rows that were known."""
    scored = [sort_by_row(concatenate_parts(parts))] if parts else []
    cut = sum(int(some.truncated.sum()) for some in scored if some.truncated is not None)
    of_all: int | None = cut
    if known is None:
        [scores] = scored
    else:
        new = (replace(some, truncated=None) for some in scored)
        scores = sort_by_row(concatenate_parts([*new, known.scores]))
        of_all = None if known.truncated is None else cut + known.truncated
    index = dataset.index if isinstance(dataset, ShardRows) else None
    return LossTable(**vars(table_of_rows(scores, provenance.with_truncated(of_all), index, keys)))
