"""A stream of rows is scored in one pass, which goes on where it was stopped, by key."""

import datasets
import numpy as np
import pytest
import torch
from language_models import llama
from scoring_lines import Line, Stop
from torch import nn
from torch.utils.data import IterableDataset

from flowdata import CausalLM, LossTable, MismatchError, score
from flowdata.scoring.language.causal_lm import LanguagePass

ROWS = [
    {"id": f"row {number}", "x": float(number)}
    for number in np.random.default_rng(0).permutation(40)
]
LOSSES = {row["id"]: row["x"] for row in ROWS}


class OfTorch(IterableDataset):
    """One that has no states."""

    def __iter__(self):
        return iter([dict(row) for row in ROWS])


def of_datasets():
    return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)


STREAMS = {
    "datasets": of_datasets,
    "shuffled": lambda: of_datasets().shuffle(seed=1, buffer_size=16),
    "mapped": lambda: of_datasets().map(lambda row: row | {"x": row["x"] * 1.0}),
    "filtered arrow": lambda: of_datasets().with_format("torch").filter(lambda row: row["x"] >= 0),
    "torch": OfTorch,
    "generator": lambda: (dict(row) for row in ROWS),
}


def first_value(model, batch):
    """Stops the pass at the ``first_value.most``-th batch."""
    first_value.most -= 1
    if first_value.most < 0:
        raise Stop
    first_value.rows += len(batch["x"])
    return model(torch.as_tensor(batch["x"])).abs().float()


def scored(stream, most=1000, **options):
    first_value.most, first_value.rows = most, 0
    options = {"key": "id", "batch_size": 3, "save_every": 0.0, "progress": False} | options
    return score(Line(), stream, first_value, **options)


def losses_by_key(table):
    return dict(zip(table.keys, table.losses.tolist(), strict=True))


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_each_key_has_the_loss_of_its_row(make):
    table = scored(make())
    assert losses_by_key(table) == LOSSES
    assert (table.provenance.key, len(table)) == ("id", 40)


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("stops", [(1,), (4, 3, 2)])
def test_a_pass_that_was_stopped_goes_on_with_the_next_row(tmp_path, make, stops):
    output = tmp_path / "losses.parquet"
    for most in stops:
        with pytest.raises(Stop):
            scored(make(), most, output=output)
    table = scored(make(), output=output)
    assert first_value.rows == 40 - 3 * sum(stops)
    assert losses_by_key(table) == losses_by_key(LossTable.load(output)) == LOSSES
    assert [path.name for path in tmp_path.iterdir()] == ["losses.parquet"]
    assert losses_by_key(scored(make(), 0, output=output)) == LOSSES


def test_no_state_stays_in_the_stream(tmp_path):
    stream = of_datasets()
    with pytest.raises(Stop):
        scored(stream, 2, output=tmp_path / "t")
    scored(stream, output=tmp_path / "t")
    assert [row["id"] for row in stream] == [row["id"] for row in ROWS]


def test_rows_of_a_language_model_are_scored_as_they_are_by_number():
    rows = [{"id": n, "input_ids": [5, 6, 7 + n], "labels": [-100, 6, 7 + n]} for n in (4, 2, 3)]
    by_number = score(llama(), rows, CausalLM(token_losses=True), key="id", progress=False)
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    streamed = score(llama(), stream, CausalLM(token_losses=True), key="id", progress=False)
    assert streamed.keys.tolist() == [4, 2, 3]
    for name in ("losses", "n_tokens", "lengths", "token_losses"):
        np.testing.assert_array_equal(getattr(streamed, name), getattr(by_number, name))


def test_tokens_survive_a_stop(tmp_path, monkeypatch):
    rows = [
        {"id": n, "input_ids": [5, 6 + n % 5, 7], "labels": [-100, 6 + n % 5, 7]} for n in range(20)
    ]
    options = {"key": "id", "progress": False, "save_every": 0.0, "output": tmp_path / "t"}
    monkeypatch.setattr(LanguagePass, "rows_per_read", 4)

    def stopping(number):
        for row in rows:
            if row["id"] == number:
                raise Stop
            yield row

    broken, mended = (
        datasets.IterableDataset.from_generator(stopping, gen_kwargs={"number": number})
        for number in (10, None)
    )
    with pytest.raises(Stop):
        score(llama(), broken, CausalLM(token_losses=True), **options)
    with pytest.raises(MismatchError, match=r"ExamplesIterable'.*begin anew"):
        score(llama(), mended.map(dict), CausalLM(token_losses=True), **options)
    table = score(llama(), mended, CausalLM(token_losses=True), **options)
    whole = score(llama(), rows, CausalLM(token_losses=True), key="id", progress=False)
    np.testing.assert_allclose(table.token_losses, whole.token_losses, rtol=1e-5)
    assert table.keys.tolist() == whole.keys.tolist()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 3)

    def forward(self, x):
        return self.layer(x.float()[:, None])


def test_the_column_of_keys_is_no_input_of_the_model():
    torch.manual_seed(0)
    model, rows = Net(), [row | {"labels": int(row["x"]) % 3} for row in ROWS]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    table = score(model, stream, key="id", progress=False)
    plain = [{"x": row["x"], "labels": row["labels"]} for row in rows]
    assert table.losses.tolist() == score(model, plain, progress=False).losses.tolist()


def test_what_cannot_be_scored_is_named(tmp_path):
    with pytest.raises(TypeError, match="with key="):
        scored(of_datasets(), key=None)
    with pytest.raises(
        ValueError, match=r"row 0 of the stream has no column 'uid', there is \['id"
    ):
        scored(of_datasets(), key="uid")
    with pytest.raises(MismatchError, match="keys are there more than once: 'row "):
        scored(iter(ROWS + ROWS[:2]))
    with pytest.raises(ValueError, match="no rows"):
        scored(iter([]))
    with pytest.raises(ValueError, match="num_workers= and shard= are for rows by"):
        scored(of_datasets(), num_workers=2)
    with pytest.raises(Stop):
        scored(of_datasets(), 2, output=tmp_path / "t")
    with pytest.raises(MismatchError, match="key"):
        scored(of_datasets().rename_column("id", "name"), key="name", output=tmp_path / "t")
    with pytest.raises(MismatchError, match="does not belong here"):
        scored(ROWS, output=tmp_path / "t")


CHANGES = {
    "other losses": lambda rows: [row | {"x": row["x"] + 1.0} for row in rows],
    "one row": lambda rows: [rows[0], rows[1] | {"x": 77.0}, *rows[2:]],
    "other keys": lambda rows: [row | {"id": f"new {row['id']}"} for row in rows],
}


@pytest.mark.parametrize("most", [3, 1000], ids=["begun", "finished"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_table_of_other_rows_is_not_gone_on_with_nor_given_back(tmp_path, change, most):
    output = tmp_path / "t"
    if most < 40:
        with pytest.raises(Stop):
            scored(of_datasets(), most, output=output)
    else:
        scored(of_datasets(), output=output)
    other = datasets.Dataset.from_list(change(ROWS)).to_iterable_dataset(num_shards=3)
    with pytest.raises(MismatchError, match=r"does not belong to this stream: its row [01],"):
        scored(other, output=output)
    table = scored(of_datasets(), output=output)
    assert losses_by_key(table) == LOSSES


def test_rows_before_and_after_those_of_a_finished_table_are_found(tmp_path):
    scored(of_datasets().skip(3).take(10), output=tmp_path / "t")
    for other in (of_datasets(), of_datasets().skip(3)):
        with pytest.raises(MismatchError, match="is none of the rows that were scored"):
            scored(other, output=tmp_path / "t")


def test_rows_of_a_finished_table_in_another_order_or_made_at_random_are_its_own(tmp_path):
    random = np.random.default_rng(0)

    def noisy():
        return of_datasets().map(lambda row: row | {"noise": random.random()})

    for number, make in enumerate((of_datasets, noisy)):
        table = scored(make(), output=tmp_path / f"{number}")
        shuffled = make().shuffle(seed=2, buffer_size=16)
        again = scored(shuffled, 0, output=tmp_path / f"{number}")
        assert again.keys.tolist() == table.keys.tolist()


def test_parts_of_earlier_versions_without_hashes_are_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr("flowdata.scoring.passes.streamed.hashes_of", lambda rows: None)
    with pytest.raises(Stop):
        scored(of_datasets(), 3, output=tmp_path / "t")
    monkeypatch.undo()
    assert losses_by_key(scored(of_datasets(), output=tmp_path / "t")) == LOSSES


def test_a_finished_table_knows_keys_that_are_tensors_and_says_where_a_row_has_none(tmp_path):
    rows = [{"id": number, "x": float(number)} for number in range(20)]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    table = scored(stream.with_format("torch"), output=tmp_path / "t")
    again = scored(stream.with_format("torch"), 0, output=tmp_path / "t")
    assert again.keys.tolist() == table.keys.tolist() == [row["id"] for row in rows]
    with pytest.raises(ValueError, match=r"row 0 of the stream has no column 'id', there is \['x"):
        scored(stream.remove_columns("id"), output=tmp_path / "t")
