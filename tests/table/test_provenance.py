"""A table knows which data set and which model it belongs to."""

from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from torch import nn

import flowdata
from flowdata import (
    FlowDataWarning,
    LossTable,
    MismatchError,
    Provenance,
)
from flowdata.table.fingerprint import model_fingerprint

LOSSES = np.random.default_rng(8).exponential(size=30).astype(np.float32)

ROWS = [(torch.full((3,), float(row)), row % 4) for row in range(30)]


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(3, 4)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "losses.parquet"


def test_provenance_says_when_and_by_which_version_the_losses_were_made():
    before = datetime.now(UTC).replace(microsecond=0)
    provenance = LossTable.from_losses(LOSSES, dtype="bfloat16").provenance
    assert before <= datetime.fromisoformat(provenance.created) <= datetime.now(UTC)
    assert (provenance.flowdata, provenance.schema) == (flowdata.__version__, 1)
    assert (provenance.rows, provenance.dtype) == (30, "bfloat16")
    assert (provenance.model_hash, provenance.data_fingerprint) == (None, None)


def test_two_passes_are_the_same_one_if_loss_model_and_data_are_whenever_they_ran():
    first = Provenance.now(30, dataset=ROWS, model=model(), loss="mse")
    later = Provenance(**{**vars(first), "created": "2030-01-01", "truncated": 3})
    other = Provenance.now(30, dataset=ROWS, model=model(1), loss="mse")
    assert first.identity() == later.identity() != other.identity()


@pytest.mark.parametrize("options", [None, "", "null", "[1]", '"max_length"', "{", "3"])
def test_options_that_are_no_names_and_values_are_none_that_were_given(options):
    assert Provenance(30, options=options).given_options == {}
    assert Provenance(30, options='{"max_length": 5}').given_options == {"max_length": 5}


def test_a_table_recognises_its_data_set():
    table = LossTable.from_losses(LOSSES, dataset=ROWS, model=model())
    table.check(dataset=list(ROWS), model=model().train())
    table.check()


@pytest.mark.parametrize("known", [ROWS, None])
def test_another_length_of_the_data_set_is_a_mismatch(known):
    table = LossTable.from_losses(LOSSES, dataset=known)
    with pytest.raises(MismatchError, match="30 losses, but the data set has 29 rows") as error:
        table.check(dataset=ROWS[:29])
    assert "pass the one that was scored" in str(error.value)
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("other", [ROWS[::-1], [*ROWS[:-1], (torch.ones(3), 0)]])
def test_reordered_or_changed_rows_are_a_mismatch(path, other):
    table = LossTable.from_losses(LOSSES, dataset=ROWS)
    table.save(path)
    with pytest.raises(MismatchError, match="rows were changed or reordered") as error:
        LossTable.load(path, dataset=other)
    assert table.provenance.data_fingerprint in str(error.value)
    assert "Score this data set" in str(error.value)


def test_another_model_is_a_mismatch_with_both_hashes_and_the_scored_name(path):
    table = LossTable.from_losses(LOSSES, model=model(), model_name="linear v1")
    table.save(path)
    other = model_fingerprint(model(1))
    with pytest.raises(MismatchError, match="linear v1") as error:
        LossTable.load(path, model=model(1))
    for part in (table.provenance.model_hash, other, "pre-trained weights that scored it"):
        assert part in str(error.value)


def test_what_a_table_does_not_know_is_not_checked():
    table = LossTable.from_losses(LOSSES)
    table.check(dataset=ROWS[::-1], model=model(5))


def test_a_data_set_that_cannot_be_recognised_is_named_in_a_warning():
    class Noisy(list):
        def __getitem__(self, row):
            return torch.rand(3)

    table = LossTable.from_losses(LOSSES, dataset=ROWS)
    with pytest.warns(FlowDataWarning, match="only the length of the data set was checked") as all_:
        table.check(dataset=Noisy(ROWS))
    assert [warning.filename for warning in all_] == [__file__]
