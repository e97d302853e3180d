"""Losses and weights in whatever form users have them: columns, masks, objects, views."""

import collections
import decimal
import fractions
import warnings

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from flowdata import (
    EpochPlan,
    FlowDataset,
    FlowSampler,
    FlowWeights,
    InvalidLossError,
    LossTable,
    Strata,
)
from flowdata.core.weights import as_weights

BUILDERS = {"losses": FlowWeights.from_losses, "weights": FlowWeights.from_weights}
VALUES = [0.5, 0.25, 3.0, 1.0]


def memmap(tmp_path):
    array = np.memmap(tmp_path / "values", np.float64, "w+", shape=(4,))
    array[:] = VALUES
    return array, lambda: array.__setitem__(slice(None), 1.0)


def series(_):
    made = pd.Series(VALUES)
    return made, lambda: made.iloc.__setitem__(slice(None), 1.0)


def series_values(_):
    made = pd.Series(VALUES)
    return made.to_numpy(), lambda: made.iloc.__setitem__(slice(None), 1.0)


def read_only_view(_):
    array = np.array(VALUES)
    view = array[:]
    view.flags.writeable = False
    return view, lambda: array.fill(1.0)


def tensor(_):
    made = torch.tensor(VALUES, dtype=torch.float64)
    return made, lambda: made.fill_(1.0)


def arrow(_):
    array = np.array(VALUES)
    column = pa.Array.from_buffers(pa.float64(), 4, [None, pa.py_buffer(array)])
    return column, lambda: array.fill(1.0)


def buffer(_):
    array = np.array(VALUES)
    return memoryview(array).toreadonly(), lambda: array.fill(1.0)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
@pytest.mark.parametrize(
    "make", [memmap, series, series_values, read_only_view, tensor, arrow, buffer]
)
def test_weights_stay_as_they_are_when_the_memory_they_came_from_changes(tmp_path, build, make):
    values, change = make(tmp_path)
    weights = build(values)
    expected = build(list(VALUES))
    change()
    assert weights.values.tolist() == expected.values.tolist()
    assert weights.power(0.5).values.tolist() == expected.power(0.5).values.tolist()
    assert weights.fingerprint == expected.fingerprint


def test_weights_of_a_table_stay_as_they_are_when_the_losses_it_was_made_from_change():
    losses = np.array(VALUES, np.float32)
    provenance = LossTable.from_losses(losses).provenance
    tables = [LossTable.from_losses(losses), LossTable(losses[:], provenance)]
    weights = [table.weights() for table in tables]
    losses[:] = 1.0
    for made in weights:
        assert (
            made.power(0.5).values.tolist()
            == FlowWeights.from_losses(np.array(VALUES, np.float32)).power(0.5).values.tolist()
        )


def test_strata_stay_as_they_are_when_the_memory_of_their_groups_changes():
    groups = np.array([0, 1, 0, 1])
    made = {
        "array": groups,
        "series": pd.Series([0, 1, 0, 1]),
        "tensor": torch.tensor([0, 1, 0, 1]),
        "column": datasets.Dataset.from_dict({"label": [0, 1, 0, 1]})["label"],
    }
    strata = {name: Strata(values, batch_size=2) for name, values in made.items()}
    groups[:] = 0
    made["tensor"][:] = 0
    made["series"].iloc[:] = 0
    expected = Strata([0, 1, 0, 1], batch_size=2)
    for found in strata.values():
        assert found.fingerprint == expected.fingerprint
        weights = FlowWeights.from_weights(VALUES)
        assert found.codes(weights).tolist() == expected.codes(weights).tolist()


MASK = [True, False, True, True]
MASKS = {
    "numpy": np.array(MASK),
    "list": MASK,
    "tuple of numpy.bool": tuple(np.array(MASK)),
    "torch": torch.tensor(MASK),
    "list of tensors": list(torch.tensor(MASK)),
    "objects": np.array(MASK, dtype=object),
    "objects of numpy": pd.Series(list(np.array(MASK)), dtype=object),
    "pandas": pd.Series(MASK),
    "pandas nullable": pd.Series(MASK, dtype="boolean"),
    "pandas from arrow": pd.Series(MASK, dtype="bool[pyarrow]"),
    "arrow": pa.array(MASK),
    "arrow in chunks": pa.chunked_array([MASK[:1], MASK[1:]]),
    "column": datasets.Dataset.from_dict({"mask": MASK})["mask"],
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_is_weights_of_one_and_zero(mask):
    assert as_weights(mask).values.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert sorted(FlowSampler(mask, epoch_size=3)) == [0, 2, 3]
    assert sorted(EpochPlan(mask, epoch_size=3)) == [0, 2, 3]
    assert len(FlowDataset("abcd", mask)) == 4


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_a_mask_given_as_losses_is_refused(mask):
    with pytest.raises(ValueError, match=r"got dtype bool: .*from_weights\(mask\)"):
        FlowWeights.from_losses(mask)


NUMBERS = {
    "objects": np.array(VALUES, dtype=object),
    "decimals": [decimal.Decimal(value) for value in VALUES],
    "fractions": [fractions.Fraction(value) for value in VALUES],
    "numpy scalars": [np.float32(value) for value in VALUES],
    "tensors with a gradient": [torch.tensor(v, requires_grad=True) for v in VALUES],
    "tensors in bfloat16": tuple(torch.tensor(VALUES, dtype=torch.bfloat16)),
    "objects that are tensors": pd.Series([torch.tensor(value) for value in VALUES]),
    "masked, none": np.ma.masked_array(VALUES, mask=[False] * 4),
    "pandas nullable": pd.Series(VALUES, dtype="Float64"),
    "pandas from arrow": pd.Series(VALUES, dtype="float[pyarrow]"),
    "pandas with an index": pd.Series(VALUES, index=list("dcba")),
    "arrow in chunks": pa.chunked_array([VALUES[:1], VALUES[1:]]),
    "user list": collections.UserList(VALUES),
    "deque": collections.deque(VALUES),
    "array of the library": memoryview(np.array(VALUES)),
}


@pytest.mark.parametrize("build", [*BUILDERS.values(), LossTable.from_losses])
@pytest.mark.parametrize("values", NUMBERS.values(), ids=NUMBERS)
def test_numbers_in_any_container_are_taken(build, values):
    made = build(values)
    found = made.losses if isinstance(made, LossTable) else made.values
    expected = build(VALUES)
    expected = expected.losses if isinstance(expected, LossTable) else expected.values
    assert found.tolist() == expected.tolist()


NO_NUMBERS = {
    "None": ([0.5, None, 1.0], "row 1: None"),
    "pandas.NA": (pd.Series([1.0, 2.0, None], dtype="Int64").astype(object), "row 2: <NA>"),
    "texts": (np.array(["1.0", "2.0"], dtype=object), "row 0: 1.0"),
    "a text among numbers": (pd.Series([1.0, "2"], dtype=object), "row 1: 2"),
    "a mask with a None": ([True, None], "row 1: None"),
    "column": (datasets.Dataset.from_dict({"loss": [1, None]})["loss"], "row 1: None"),
    "masked": (np.ma.masked_array(VALUES, mask=[0, 1, 0, 0]), "1 of 4 rows are masked"),
    "dates": (np.array([None, np.datetime64("2020-01-01")]), "row 0: None"),
}


@pytest.mark.parametrize("build", [*BUILDERS.values(), LossTable.from_losses])
@pytest.mark.parametrize(("values", "named"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_rows_that_are_no_numbers_are_named(build, values, named):
    with pytest.raises(InvalidLossError) as error:
        build(values)
    assert named in str(error.value)


@pytest.mark.parametrize("build", [*BUILDERS.values(), LossTable.from_losses])
def test_rows_of_unequal_length_are_refused(build):
    with pytest.raises(ValueError, match="a number for each row is needed"):
        build([[1.0, 2.0], [3.0]])


FORMATS = [None, "numpy", "torch", "pandas", "arrow"]


def rows_of(values, name="weight"):
    # In two chunks, in another order by an indices mapping, some left out.
    halves = [datasets.Dataset.from_dict({name: part}) for part in (values[:2], values[2:])]
    return datasets.concatenate_datasets(halves).select([3, 0, 2])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_of_a_data_set_in_any_format_is_taken_in_the_order_of_its_rows(kind):
    rows = rows_of(VALUES).with_format(kind)
    assert as_weights(rows["weight"]).values == pytest.approx([1.0, 0.5, 3.0])
    mask = rows_of(MASK).with_format(kind)["weight"]
    assert as_weights(mask).values.tolist() == [1.0, 1.0, 1.0]
    nested = rows_of([{"weight": value} for value in VALUES], "meta").with_format(kind)
    if kind in (None, "numpy", "torch"):
        assert as_weights(nested["meta"]["weight"]).values == pytest.approx([1.0, 0.5, 3.0])


def test_a_column_with_a_transform_is_taken():
    rows = rows_of(VALUES)
    rows.set_transform(lambda batch: {"weight": [2 * value for value in batch["weight"]]})
    assert as_weights(rows["weight"]).values == pytest.approx([2.0, 1.0, 6.0])


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_is_read_at_once(monkeypatch, kind):
    rows = datasets.Dataset.from_dict({"weight": np.arange(1.0, 100_001)}).with_format(kind)
    monkeypatch.setattr(type(rows), "__iter__", None)
    reads, read = [], type(rows).__getitem__
    monkeypatch.setattr(
        type(rows), "__getitem__", lambda self, key: reads.append(key) or read(self, key)
    )
    assert as_weights(rows["weight"]).values.sum() == pytest.approx(5_000_050_000)
    assert len(reads) <= 4


def test_no_numerical_warning_comes_of_any_of_them():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for values in [*NUMBERS.values(), *MASKS.values()]:
            as_weights(values)
