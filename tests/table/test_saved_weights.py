"""Weights that were saved are those that they were: they draw the same rows, under one identity."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import flowdata
from flowdata.errors import TableFileError

ROWS = 300
LOSSES = np.random.default_rng(0).gamma(2.0, size=ROWS)
TABLE = flowdata.LossTable.from_losses(LOSSES, lengths=range(1, ROWS + 1))
LABELS = ["maths" if row % 3 else "chat" for row in range(ROWS)]
INVALID = flowdata.LossTable.from_losses(np.where(np.arange(ROWS) == 7, np.nan, LOSSES))

WEIGHTS = {
    "FLOW": TABLE.weights,
    "another temperature, of mean 1": lambda: TABLE.weights(0.3, normalize="mean"),
    "a power of FLOW": lambda: TABLE.weights().power(0.5),
    "invalid losses": lambda: INVALID.weights(on_invalid="drop"),
    "a threshold": lambda: TABLE.weights(function=lambda losses, tau: losses <= tau),
    "a function": lambda: TABLE.weights(function=lambda losses, tau: 1 / (1 + losses / tau)),
    "given numbers": lambda: flowdata.FlowWeights.from_weights(1e3 * LOSSES),
    "given float32": lambda: flowdata.FlowWeights.from_weights(np.float32(LOSSES)),
    "a product": lambda: TABLE.weights().times(LOSSES > 1),
    "a power of a product": lambda: TABLE.weights(0.2).times(TABLE.weights()).power(0.25),
    "groups": lambda: TABLE.weights(groups=LABELS),
    "shares of tokens": lambda: TABLE.weights(groups=LABELS, shares="equal", by="tokens"),
    "a mix": lambda: flowdata.mix({"a": TABLE, "b": TABLE.weights(0.2)}, shares={"a": 3, "b": 1}),
    "one group": lambda: TABLE.weights(groups=np.full(ROWS, 5)),
    "some rows": lambda: TABLE.weights(groups=LABELS).select(slice(10, 200)),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_what_is_loaded_is_what_was_saved(tmp_path, case):
    weights = WEIGHTS[case]()
    flowdata.save_weights(weights, tmp_path / "weights.parquet")
    found = flowdata.load_weights(tmp_path / "weights.parquet")
    np.testing.assert_array_equal(found.values, weights.values)
    np.testing.assert_array_equal(found.relative, weights.relative)
    assert found.group_names == weights.group_names
    assert (found.groups is None) == (weights.groups is None)
    if weights.groups is not None:
        np.testing.assert_array_equal(found.groups, weights.groups)
    assert found.temperature == weights.temperature
    assert found.log_max == weights.log_max
    assert found.made.how == weights.made.how
    assert found.made.shared == weights.made.shared
    for options in ({}, {"alpha": 0.5}):
        plan = flowdata.EpochPlan(weights, seed=3, **options)
        again = flowdata.EpochPlan(found, seed=3, **options)
        assert again.identity() == plan.identity()
        assert again[:].tolist() == plan[:].tolist()


def test_those_of_a_table_that_stays_in_its_file_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("flowdata.table.stored_table.MOST_ROWS_HELD", 10)
    TABLE.save(tmp_path / "table.parquet")
    weights = flowdata.LossTable.load(tmp_path / "table.parquet").weights()
    assert not isinstance(weights.made.source, np.ndarray)
    flowdata.save_weights(weights, tmp_path / "weights.parquet")
    found = flowdata.load_weights(tmp_path / "weights.parquet")
    assert found.fingerprint == weights.fingerprint == TABLE.weights().fingerprint
    np.testing.assert_array_equal(found.relative, TABLE.weights().relative)


def rewritten(path, change):
    table = pq.read_table(path)
    content = json.loads(table.schema.metadata[b"flowdata.weights"])
    table = change(table, content) or table
    pq.write_table(table.replace_schema_metadata({b"flowdata.weights": json.dumps(content)}), path)


def _other_weight(table, content):
    values = table["source"].to_numpy().copy()
    values[3] += 1e-9
    return table.set_column(0, "source", [values])


DAMAGE = {
    "another weight": _other_weight,
    "a column that is missing": lambda table, _: table.drop_columns(["group"]),
    "a group that there is not": lambda _, content: content["names"].pop(),
    "an unknown kind": lambda _, content: content.update(kind="ranks"),
    "no temperature": lambda _, content: content.pop("temperature") and None,
    "fewer rows": lambda table, _: table.slice(0, 100),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_was_changed_is_refused(tmp_path, case):
    path = tmp_path / "weights.parquet"
    flowdata.save_weights(TABLE.weights(groups=LABELS), path)

    def change(table, content):
        found = DAMAGE[case](table, content)
        return found if hasattr(found, "schema") else None

    rewritten(path, change)
    with pytest.raises(TableFileError, match="save the weights again"):
        flowdata.load_weights(path)


def test_what_is_no_file_of_weights_is_called_so(tmp_path):
    path = tmp_path / "table.parquet"
    TABLE.save(path)
    with pytest.raises(TableFileError, match=r"is no file of weights: flowdata\.save_weights"):
        flowdata.load_weights(path)
    with pytest.raises(TableFileError, match="there is no file of weights at"):
        flowdata.load_weights(tmp_path / "nothing.parquet")
    path = tmp_path / "weights.parquet"
    flowdata.save_weights(TABLE.weights(), path)
    rewritten(path, lambda _, content: content.update(version=9))
    with pytest.raises(TableFileError, match="has version 9, and this flowdata reads 1"):
        flowdata.load_weights(path)


def test_what_cannot_be_saved_exactly_is_not_saved(tmp_path):
    path = tmp_path / "weights.parquet"
    with pytest.raises(TypeError, match="FlowWeights are saved, got list"):
        flowdata.save_weights([1.0, 2.0], path)
    with pytest.raises(ValueError, match="a power of given weights is not saved"):
        flowdata.save_weights(flowdata.FlowWeights.from_weights(LOSSES).power(0.5), path)
    with pytest.raises(TableFileError, match="cannot write the weights"):
        flowdata.save_weights(TABLE.weights(), tmp_path / "nowhere" / "weights.parquet")
    assert not path.exists()
    TABLE.save(path)
    with pytest.raises(FileExistsError, match=r"is a loss table, and weights would be written ov"):
        flowdata.save_weights(TABLE.weights(), path)
    assert len(flowdata.LossTable.load(path)) == ROWS
    flowdata.save_weights(TABLE.weights(), tmp_path / "others.parquet")
    flowdata.save_weights(TABLE.weights(0.5), tmp_path / "others.parquet")
    assert flowdata.load_weights(tmp_path / "others.parquet").temperature == 0.5


def test_weights_of_another_table_are_refused(tmp_path):
    path = tmp_path / "weights.parquet"
    other = flowdata.LossTable.from_losses(LOSSES[::-1])
    for weights in (TABLE.weights(function=lambda losses, tau: 1 / (1 + losses)), TABLE.weights()):
        flowdata.save_weights(weights, path)
        flowdata.load_weights(path, TABLE)
        with pytest.raises(flowdata.MismatchError, match="has weights of another loss table"):
            flowdata.load_weights(path, other)
    flowdata.save_weights(flowdata.FlowWeights.from_weights(LOSSES), path)
    flowdata.load_weights(path, other)
