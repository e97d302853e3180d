"""score(key=): the table knows its rows by a column of the data."""

import datasets
import numpy as np
import pytest
import torch
from language_models import llama
from scoring_lines import Line, Stop

from flowdata import CausalLM, LossTable, MismatchError, score

IDS = [f"row {number}" for number in (5, 3, 9, 1, 7, 2, 8)]
ROWS = [{"id": name, "x": float(number)} for number, name in enumerate(IDS)]


def first_value(model, batch):
    """Stops the pass at the row ``first_value.most``."""
    if batch["x"].max() >= first_value.most:
        raise Stop
    return model(batch["x"]).abs().float()


def scored(data=None, most=np.inf, **options):
    first_value.most = most
    options = {"key": "id", "batch_size": 2, "save_every": 0.0, "progress": False} | options
    return score(Line(), ROWS if data is None else data, first_value, **options)


SETS = {
    "dicts": ROWS,
    "a datasets.Dataset": datasets.Dataset.from_list(ROWS),
    "rows taken of one": datasets.Dataset.from_list([*ROWS, {"id": "", "x": 0.0}]).select(range(7)),
    "one with a transform": datasets.Dataset.from_list(ROWS).with_transform(
        lambda rows: {"x": [torch.tensor(value) for value in rows["x"]]}
    ),
    "tensors": [row | {"id": torch.tensor(number + 3)} for number, row in enumerate(ROWS)],
}


@pytest.mark.parametrize("data", SETS.values(), ids=SETS)
@pytest.mark.parametrize("kept", [False, True])
def test_the_table_knows_its_rows_by_their_keys(tmp_path, data, kept):
    output = tmp_path / "losses.parquet" if kept else None
    table = scored(data, output=output)
    keys = IDS if isinstance(table.keys[0], str) else list(range(3, 10))
    assert table.keys.tolist() == keys
    assert table.losses[table.rows_of(keys[::-1])].tolist() == [6.0, 5, 4, 3, 2, 1, 0]
    assert table.provenance.key == "id"
    if kept:
        assert LossTable.load(output).keys.tolist() == keys
        assert LossTable.load(output).provenance.key == "id"
        assert scored(data, output=output).keys.tolist() == keys


def test_rows_of_language_keep_their_keys():
    rows = [{"id": n, "input_ids": [5, 6, 7 + n], "labels": [-100, 6, 7 + n]} for n in (4, 2, 3)]
    table = score(llama(), rows, CausalLM(), key="id", progress=False)
    assert table.rows_of([3, 2, 4]).tolist() == [2, 1, 0]


def test_keys_are_checked_before_anything_is_scored():
    with pytest.raises(MismatchError, match=r"more than once: 'row 5' \(rows 0 and 7\)"):
        scored([*ROWS, ROWS[0]], most=0)
    with pytest.raises(ValueError, match=r"row 0: there is no column 'name', there is .*'id', 'x'"):
        scored(key="name", most=0)
    with pytest.raises(ValueError, match=r"there is no column 'name', there is .*'id', 'x'"):
        scored(datasets.Dataset.from_list(ROWS), key="name")
    with pytest.raises(TypeError, match=r"row 1 has the key 1\.5"):
        scored([{"id": 1.5 if n == 1 else n, "x": 1.0} for n in range(3)])


def test_a_pass_begun_without_keys_goes_on_with_them(tmp_path):
    output = tmp_path / "losses.parquet"
    with pytest.raises(Stop):
        scored(most=4, output=output, key=None)
    table = scored(output=output)
    assert table.keys.tolist() == IDS
    np.testing.assert_array_equal(table.losses, np.arange(7))


def test_a_finished_table_of_other_keys_is_refused(tmp_path):
    output = tmp_path / "losses.parquet"
    scored(output=output, key=None)
    with pytest.raises(MismatchError, match=r"was scored without keys .* 'id': table\.with_keys"):
        scored(output=output)
    table = LossTable.load(output).with_keys(IDS)
    table.save(output)
    assert scored(output=output).keys.tolist() == IDS
    table.with_keys(IDS[::-1]).save(output)
    with pytest.raises(MismatchError, match="was scored with other keys"):
        scored(output=output)
