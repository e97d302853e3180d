from dataclasses import replace

import numpy as np
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from flowdata.table.scored_rows import ScoredRows, concatenate_parts, sort_by_row


@examples(50)
@given(st.permutations(range(12)), st.lists(st.integers(0, 4), min_size=12, max_size=12), st.data())
def test_parts_in_any_order_join_to_the_same_table(order, counts, data):
    """Token t of row r has the loss r + t / 10."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 11))))
    parts = []
    for rows in np.split(np.array(order), cuts):
        n_tokens = np.array([counts[row] for row in rows], dtype=np.int32)
        tokens = [row + t / 10 for row in rows for t in range(counts[row])]
        losses = rows.astype(np.float32)
        cut = rows % 3 == 0
        tokens = np.array(tokens, dtype=np.float32)
        parts.append(ScoredRows(rows, losses, n_tokens, tokens, cut, n_tokens + 2))
    # What is there twice counts once.
    parts += parts[: data.draw(st.integers(0, len(parts)))]
    whole = sort_by_row(concatenate_parts(parts))
    assert whole.rows.tolist() == whole.losses.tolist() == list(range(12))
    assert whole.n_tokens.tolist() == counts
    expected = [row + t / 10 for row in range(12) for t in range(counts[row])]
    assert np.array_equal(whole.token_losses, np.array(expected, dtype=np.float32))
    assert np.flatnonzero(whole.truncated).tolist() == [0, 3, 6, 9]
    assert whole.lengths.tolist() == [count + 2 for count in counts]
    # One part of an earlier version.
    parts[-1] = replace(parts[-1], lengths=None)
    whole = sort_by_row(concatenate_parts(parts))
    assert whole.lengths is None
    assert whole.n_tokens.tolist() == counts


def test_the_first_of_several_scores_of_a_row_is_kept():
    first = ScoredRows(np.array([1, 0]), np.array([1.0, 0.0], dtype=np.float32))
    again = ScoredRows(np.array([1, 2]), np.array([9.0, 2.0], dtype=np.float32))
    assert sort_by_row(concatenate_parts([first, again])).losses.tolist() == [0.0, 1.0, 2.0]


def test_token_losses_of_many_rows_come_into_order_block_by_block(monkeypatch):
    monkeypatch.setattr("flowdata.table.token_runs.BLOCK_ROWS", 7)
    random = np.random.default_rng(0)
    rows, counts = random.permutation(100), random.integers(0, 5, size=100).astype(np.int32)
    tokens = np.repeat(rows, counts[rows]).astype(np.float32)
    scores = ScoredRows(rows, rows.astype(np.float32), counts[rows], tokens)
    assert np.array_equal(sort_by_row(scores).token_losses, np.repeat(np.arange(100), counts))
