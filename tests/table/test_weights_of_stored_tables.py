"""Functions, products, groups and mixes of tables that stay in their file."""

import pickle

import numpy as np
import pytest
from stored_tables import held

from flowdata import EpochPlan, LossTable, mix

RANDOM = np.random.default_rng(6)
ROWS = 3000
LOSSES = RANDOM.exponential(size=ROWS).astype(np.float32)
LABELS = np.array(["a", "b"])[RANDOM.integers(0, 2, ROWS)]
LENGTHS = RANDOM.integers(1, 99, ROWS)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A table in memory, and the same one in its file."""
    table = LossTable.from_losses(LOSSES, lengths=LENGTHS)
    table.save(tmp_path / "table.parquet")
    held(monkeypatch, 100)
    stored = LossTable.load(tmp_path / "table.parquet")
    assert not isinstance(stored.weights().made.source, np.ndarray)
    return table, stored


MADE = {
    "a function": lambda table: table.weights(function=lambda losses, tau: 1 / (losses + tau)),
    "a mask": lambda table: table.weights(0.01).times(LOSSES > 1),
    "groups": lambda table: table.weights(groups=LABELS, shares="equal", by="tokens"),
    "a mix": lambda table: mix({"one": table, "two": table}, shares="equal", by="tokens"),
    "one group": lambda table: table.weights(groups=[0] * ROWS),
}


@pytest.mark.filterwarnings("ignore:the effective sample size")
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_weights_have_the_bits_of_those_of_a_table_in_memory(tables, made):
    in_memory, in_file = map(made, tables)
    assert in_file.relative.tobytes() == in_memory.relative.tobytes()
    assert in_file.fingerprint == in_memory.fingerprint
    assert str(in_file.summary()) == str(in_memory.summary())
    assert str(in_file.power(0.5)) == str(in_memory.power(0.5))
    again = pickle.loads(pickle.dumps(in_file))
    assert EpochPlan(again, seed=3)[:].tolist() == EpochPlan(in_memory, seed=3)[:].tolist()


def test_the_figures_of_groups_of_a_table_in_its_file_have_medians_and_tokens(tables):
    in_memory, in_file = (table.weights().summary(groups=LABELS) for table in tables)
    assert in_file == in_memory
    assert in_file.groups[0].median_loss == pytest.approx(np.median(LOSSES[LABELS == "a"]))
    drawn = tables[0].weights().relative * LENGTHS
    share = drawn[LABELS == "a"].sum() / drawn.sum()
    assert in_file.groups[0].share_of_tokens == pytest.approx(share)


def test_response_tokens_are_shared_where_lengths_are_not_known():
    table = LossTable.from_losses(LOSSES)
    counted = LossTable(LOSSES.copy(), table.provenance, n_tokens=LENGTHS.astype(np.int32))
    weights = counted.weights(groups=LABELS, shares="equal", by="tokens")
    drawn = weights.relative * LENGTHS
    assert drawn[LABELS == "a"].sum() / drawn.sum() == pytest.approx(0.5)
    both = counted.with_lengths(np.where(LABELS == "a", 3, 1))
    weights = both.weights(groups=LABELS, shares="equal", by="tokens")
    drawn = weights.relative * np.where(LABELS == "a", 3, 1)
    assert drawn[LABELS == "a"].sum() / drawn.sum() == pytest.approx(0.5)
