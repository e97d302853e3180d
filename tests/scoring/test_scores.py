import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flowdata.scoring.scores import Scores, in_order, joined


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.permutations(range(12)), st.lists(st.integers(0, 4), min_size=12, max_size=12), st.data())
def test_parts_in_any_order_join_to_the_same_table(order, counts, data):
    """Token t of row r has the loss r + t / 10."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 11))))
    parts = []
    for rows in np.split(np.array(order), cuts):
        n_tokens = np.array([counts[row] for row in rows], dtype=np.int32)
        tokens = [row + t / 10 for row in rows for t in range(counts[row])]
        losses = rows.astype(np.float32)
        parts.append(Scores(rows, losses, n_tokens, np.array(tokens, dtype=np.float32), 1))
    whole = in_order(joined(parts))
    assert whole.rows.tolist() == whole.losses.tolist() == list(range(12))
    assert whole.n_tokens.tolist() == counts
    expected = [row + t / 10 for row in range(12) for t in range(counts[row])]
    assert np.array_equal(whole.token_losses, np.array(expected, dtype=np.float32))
    assert whole.truncated == len(parts)


def test_a_part_comes_back_from_disk_as_it_was(tmp_path):
    part = Scores(
        np.array([5, 2]),
        np.array([1.5, np.nan], dtype=np.float32),
        np.array([2, 0], dtype=np.int32),
        np.array([1.0, 2.0], dtype=np.float32),
        3,
    )
    part.save(tmp_path / "part.parquet")
    found = Scores.load(tmp_path / "part.parquet")
    for name in ("rows", "losses", "n_tokens", "token_losses"):
        assert np.array_equal(getattr(found, name), getattr(part, name), equal_nan=True)
    assert found.truncated == 3
    plain = Scores(part.rows, part.losses)
    plain.save(tmp_path / "plain.parquet")
    found = Scores.load(tmp_path / "plain.parquet")
    assert found.n_tokens is None
    assert found.token_losses is None
