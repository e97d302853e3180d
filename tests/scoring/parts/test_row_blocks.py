"""Jobs and ranks share the batches of a data set, whatever is left of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowdata.scoring.parts.row_blocks import Worker, blocks_of_worker

SIZES = st.integers(1, 9)


def batches_of(block, width):
    """All batches of a block, of rows in another order than that of the data set."""
    order = np.argsort(-block.rows * 7 % 11, kind="stable")
    return [order[start : start + width] for start in range(0, block.rows.size, width)]


def scored_by(rows, left, size, job, rank, *, in_order=False, whole=False, width=3):
    """The batches that one rank of a job scores, as tuples of row numbers."""
    found = []
    blocks = blocks_of_worker(rows, left, size, job=job, rank=rank, in_order=in_order, whole=whole)
    for block in blocks:
        if whole:
            assert block.shares == ((0.0, 1.0), (0.0, 1.0))
            found.append(tuple(block.rows_left.tolist()))
        else:
            chosen = block.choose(batches_of(block, width))
            found += [tuple(block.rows[batch].tolist()) for batch in chosen]
    return found


def workers(jobs, ranks):
    for job, rank in itertools.product(range(jobs), range(ranks)):
        yield Worker(job, jobs), Worker(rank, ranks)


@given(
    n=st.integers(1, 120),
    size=st.integers(1, 40),
    jobs=SIZES,
    ranks=st.integers(1, 4),
    in_order=st.booleans(),
    whole=st.booleans(),
)
def test_each_batch_of_a_pass_is_scored_by_one_rank_of_one_job(
    n, size, jobs, ranks, in_order, whole
):
    rows, left = np.arange(n) * 2, np.ones(n, dtype=bool)
    options = {"in_order": in_order, "whole": whole}
    at_once = scored_by(rows, left, size, Worker(0, 1), Worker(0, 1), **options)
    assert sorted(itertools.chain(*at_once)) == rows.tolist()
    shared = [
        batch
        for job, rank in workers(jobs, ranks)
        for batch in scored_by(rows, left, size, job, rank, **options)
    ]
    assert sorted(shared) == sorted(at_once)


@given(
    n=st.integers(1, 120),
    jobs=SIZES,
    ranks=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_what_is_left_of_a_pass_is_scored_in_the_batches_that_it_would_have_had(
    n, jobs, ranks, seed
):
    """Whole batches are done, by anyone: as of jobs that were killed."""
    rows, left = np.arange(n), np.ones(n, dtype=bool)
    at_once = scored_by(rows, left, 16, Worker(0, 1), Worker(0, 1))
    random = np.random.default_rng(seed)
    done = [batch for batch in at_once if random.random() < 0.4]
    left[[row for batch in done for row in batch]] = False
    shared = [
        batch
        for job, rank in workers(jobs, ranks)
        for batch in scored_by(rows, left, 16, job, rank)
    ]
    assert sorted(shared + done) == sorted(at_once)


def test_of_a_batch_that_was_scored_in_part_the_rest_is_scored():
    rows, left = np.arange(10), np.ones(10, dtype=bool)
    left[[2, 3, 7]] = False
    for whole in (False, True):
        found = scored_by(rows, left, 5, Worker(0, 1), Worker(0, 1), whole=whole)
        assert sorted(itertools.chain(*found)) == np.flatnonzero(left).tolist()


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(("jobs", "ranks"), [(7, 1), (1, 7), (3, 4)])
def test_shares_are_alike_in_size_however_few_the_blocks(in_order, jobs, ranks):
    for n in (1_000, 20_000):
        rows, left = np.arange(n), np.ones(n, dtype=bool)
        sizes = [
            sum(map(len, scored_by(rows, left, 1024, job, rank, in_order=in_order, width=4)))
            for job, rank in workers(jobs, ranks)
        ]
        assert sum(sizes) == n
        # A stretch has two ends, each of which may fall beside the middle of a batch.
        assert max(sizes) - n / len(sizes) <= 16


def test_those_of_a_worker_are_spread_over_rows_and_follow_each_other_in_shards():
    rows, left = np.arange(64), np.ones(64, dtype=bool)
    for in_order, expected in ((False, [1, 3, 5, 7]), (True, [4, 5, 6, 7])):
        blocks = blocks_of_worker(
            *(rows, left, 8),
            job=Worker(1, 2),
            rank=Worker(0, 1),
            in_order=in_order,
            whole=True,
        )
        assert [block.rows[0] // 8 for block in blocks] == expected


def test_blocks_of_which_nothing_is_left_are_not_read():
    rows, left = np.arange(64), np.zeros(64, dtype=bool)
    left[20:30] = True
    blocks = blocks_of_worker(
        *(rows, left, 8), job=Worker(0, 1), rank=Worker(0, 1), in_order=False, whole=False
    )
    assert [block.rows[0] for block in blocks] == [16, 24]
    assert [round(block.expected) for block in blocks] == [4, 6]
