"""Some rows of a table, and tables in a row: all that was known of a row goes along, and whence."""

import json
import pickle
import sys
from itertools import chain

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_tables import ROWS, held, index_of, write
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset

from flowdata import FlowDataWarning, LossTable, MismatchError, Provenance, TableFileError

COUNTS = np.arange(9, dtype=np.int32) % 4
LISTS = [[row + token / 4 for token in range(count)] for row, count in enumerate(COUNTS)]


def table_of(rows=9, *, keys=True, **known):
    """Of a language model, each number of which tells its row."""
    return LossTable(
        np.arange(rows, dtype=np.float32),
        Provenance(rows=rows, loss="causal_lm", truncated=0, **known),
        n_tokens=COUNTS[:rows],
        lengths=COUNTS[:rows] + 7,
        token_losses=np.array([*chain(*LISTS[:rows])], dtype=np.float32),
    ).with_keys([f"row {row}" for row in range(rows)] if keys else np.arange(rows) * 3)


def rows_known(table):
    """All that a table knows of each row."""
    ends = table.token_offsets.tolist()
    tokens = table.token_losses.tolist()
    return [
        (table.keys[row], loss, length, tokens[begin:end])
        for row, (loss, length, begin, end) in enumerate(
            zip(table.losses, table.lengths, ends[:-1], ends[1:], strict=True)
        )
    ]


def saved(table, path):
    table.save(path)
    return LossTable.load(path, tokens=True)


SELECTIONS = {
    "numbers": ([4, 0, 8], [4, 0, 8]),
    "one number": (3, [3]),
    "an array": (np.array([7, 2], dtype=np.uint8), [7, 2]),
    "a tensor": (torch.tensor([1, 2]), [1, 2]),
    "a series": (pd.Series([5, 6]), [5, 6]),
    "a slice": (slice(2, 8, 3), [2, 5]),
    "a slice from the end": (slice(None, -8, -1), [8, 7, 6, 5, 4, 3, 2]),
    "a mask": (np.arange(9) % 2 == 1, [1, 3, 5, 7]),
    "a list of truths": ([True] + [False] * 8, [0]),
    "a run": (range(3, 6), [3, 4, 5]),
}


@pytest.mark.parametrize(("rows", "numbers"), SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("keys", [True, False])
def test_a_selection_has_all_that_is_known_of_its_rows(tmp_path, rows, numbers, keys):
    table = table_of(keys=keys)
    whole = rows_known(table)
    for found in (
        table.select(rows),
        saved(table, tmp_path / "t").select(rows),
        saved(table.select(rows), tmp_path / "u"),
        pickle.loads(pickle.dumps(table.select(rows))),
    ):
        assert rows_known(found) == [whole[row] for row in numbers]
        assert found.rows_of([whole[numbers[-1]][0]]).tolist() == [len(numbers) - 1]
        (part,) = json.loads(found.provenance.parts)
        assert (part["rows"], part["taken"]) == (9, len(numbers))
        assert (found.provenance.rows, found.provenance.loss) == (len(numbers), "causal_lm")


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([-1], IndexError, "there is no row -1: there are 9"),
        ([0, 9], IndexError, "there is no row 9"),
        ([], ValueError, "no row is selected"),
        (np.zeros(9, dtype=bool), ValueError, "no row is selected"),
        ([True] * 8, ValueError, "a mask of 8 rows cannot select of 9"),
        ([0.5], TypeError, "got float64"),
        (["row 1"], TypeError, "by numbers, a slice, or a mask"),
        ([[1, 2]], TypeError, r"of shape \(1, 2\)"),
        ([1, 1], MismatchError, r"more than once: 'row 1' \(rows 0 and 1\)"),
    ],
)
def test_what_selects_no_rows_is_refused(rows, error, text):
    with pytest.raises(error, match=text):
        table_of().select(rows)


def test_a_selection_of_all_rows_in_their_order_is_the_table():
    table = table_of(data_fingerprint="x")
    assert table.select(slice(None)).provenance == table.provenance
    assert table.select(slice(None, None, -1)).provenance.data_fingerprint is None
    # Without keys a row may be there twice.
    again = LossTable.from_losses([1.0, 2.0]).select([1, 1, 0])
    assert again.losses.tolist() == [2.0, 2.0, 1.0]


def test_rows_of_a_table_in_its_file_are_those_of_one_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    write(path, "shards", monkeypatch)
    in_memory = LossTable.load(path)
    held(monkeypatch, 100)
    rows = np.flatnonzero(np.random.default_rng(0).random(ROWS) < 0.3)
    for some in (rows, slice(120, 700)):
        mine, theirs = LossTable.load(path).select(some), in_memory.select(some)
        np.testing.assert_array_equal(mine.losses, theirs.losses)
        assert mine.index.keys.to_pylist() == theirs.index.keys.to_pylist()
        assert mine.index.bounds().tolist() == theirs.index.bounds().tolist()
        assert mine.index.shards == in_memory.index.shards
        mine.save(tmp_path / "some.parquet")
        again = LossTable.load(tmp_path / "some.parquet")
        assert again.index.offsets.tolist() == theirs.index.offsets.tolist()
        first = int(np.arange(ROWS)[some][0])
        assert again.index.key(0) == in_memory.index.key(first)
    assert in_memory.select(rows[::-1]).index is None


def test_tables_in_a_row_are_one_table(tmp_path):
    first, second = table_of(5), table_of(9).select([8, 6, 7])
    table = LossTable.concat([first, second])
    for found in (table, saved(table, tmp_path / "t")):
        assert rows_known(found) == rows_known(first) + rows_known(second)
        assert found.provenance.truncated == 0
        assert [part["rows"] for part in json.loads(found.provenance.parts)] == [5, 9]
    assert LossTable.concat(iter([first])).provenance == first.provenance
    # In three steps, a selection of it, and all again: parts stay parts of tables that were scored.
    nested = LossTable.concat([table.select([0, 1, 6]), table_of(9).select([4, 8])])
    parts = json.loads(nested.provenance.parts)
    assert [(part["rows"], part["taken"]) for part in parts] == [(5, 2), (9, 1), (9, 2)]
    assert saved(nested, tmp_path / "n").provenance == nested.provenance


def test_shards_of_tables_in_a_row_are_those_of_all(tmp_path):
    index = index_of([3, 0, 2])
    other = index_of([1, 4])
    other.shards = ("x.tar", "y.tar")
    other.versions = ()
    tables = [LossTable.from_losses(np.ones(5), index=some) for some in (index, other)]
    found = saved(LossTable.concat(tables), tmp_path / "t").index
    assert found.shards == (*index.shards, "x.tar", "y.tar")
    assert found.bounds().tolist() == [0, 3, 3, 5, 6, 10]
    assert found.offsets.tolist() == [*index.offsets, *other.offsets]
    assert [found.key(row) for row in range(10)] == [
        *(index.key(row) for row in range(5)),
        *(other.key(row) for row in range(5)),
    ]
    assert found.versions == (*index.versions, "", "")
    with pytest.raises(MismatchError, match=r"two of the tables have a shard 000\.tar"):
        LossTable.concat([tables[0], tables[0]])


def test_losses_of_several_models_or_kinds_are_put_together_only_if_asked():
    tables = [table_of(3, model_hash=name) for name in ("a", "b")]
    with pytest.raises(MismatchError, match="table 1 has model_hash='b', table 0 has 'a'"):
        LossTable.concat(tables)
    tables[1] = tables[1].with_keys(["p", "q", "r"])
    table = LossTable.concat(tables, mixed=True)
    assert table.provenance.model_hash is None
    assert [part["model_hash"] for part in json.loads(table.provenance.parts)] == ["a", "b"]
    plain = LossTable.from_losses([1.0, 2.0], loss="causal_lm")
    with pytest.raises(MismatchError, match="table 0 has n_tokens, table 1 has none"):
        LossTable.concat([table_of(), plain])
    mixed = LossTable.concat([table_of(), plain], mixed=True)
    assert mixed.losses.size == 11
    assert (mixed.n_tokens, mixed.lengths, mixed.token_losses, mixed.keys) == (None,) * 4
    with pytest.raises(MismatchError, match=r"'row 0' \(rows 0 and 9\)"):
        LossTable.concat([table_of(), table_of()])
    with pytest.raises(MismatchError, match="some of the tables have texts for keys"):
        LossTable.concat([table_of(), table_of(keys=False)])
    with pytest.raises(TypeError, match=r"tables are needed, .* got str"):
        LossTable.concat({"maths": table_of()})
    with pytest.raises(ValueError, match="no tables"):
        LossTable.concat([])


def data_of(*names):
    return datasets.Dataset.from_dict({"text": list(names)})


DATA = {
    "lists": ([[1, 2, 3], [4, 5]], lambda a, b: a + b),
    "tensors": (
        [TensorDataset(torch.arange(3)), TensorDataset(torch.arange(3, 5))],
        lambda a, b: ConcatDataset([a, b]),
    ),
    "datasets": (
        [data_of("a", "b", "c"), data_of("d", "e")],
        lambda a, b: datasets.concatenate_datasets([a, b]),
    ),
    "formatted datasets in a row": (
        [data_of("a", "b", "c").with_format("numpy"), data_of("d", "e").with_format("torch")],
        lambda a, b: ConcatDataset([a, b]),
    ),
}


@pytest.mark.parametrize(("parts", "together"), DATA.values(), ids=DATA)
def test_each_part_is_recognised_by_its_data(tmp_path, parts, together):
    tables = [LossTable.from_losses(np.ones(len(part)), dataset=part) for part in parts]
    LossTable.concat(tables).save(tmp_path / "t")
    LossTable.load(tmp_path / "t", dataset=together(*parts))
    with pytest.raises(MismatchError, match=r"rows 0 to 2 of the table \(part 0 of 2\)"):
        LossTable.load(tmp_path / "t", dataset=together(*parts[::-1]))
    with pytest.raises(MismatchError, match="there are 5 losses, but the data set has 3 rows"):
        LossTable.load(tmp_path / "t", dataset=parts[0])
    # Whole parts of a selection too.
    some = LossTable.concat(tables).select(slice(1, None))
    kept = data_of("b", "c") if isinstance(parts[0], datasets.Dataset) else [1, 2]
    rows = ConcatDataset([kept, parts[1]])
    with pytest.warns(FlowDataWarning, match="2 of 4 rows were not checked against the data set"):
        some.check(dataset=rows)
    with pytest.raises(MismatchError, match="rows 2 to 3"):
        some.check(dataset=ConcatDataset([kept, kept]))


def test_a_selection_is_checked_by_the_number_of_its_rows_alone(recwarn):
    table = LossTable.from_losses([1.0, 2.0, 3.0], dataset=[1, 2, 3], model=nn.Linear(1, 1))
    some = table.select([2, 0])
    with pytest.warns(FlowDataWarning, match="2 of 2 rows were not checked"):
        some.check(dataset=[3, 1])
    with pytest.raises(MismatchError, match="2 losses, but the data set has 3 rows"):
        some.check(dataset=[1, 2, 3])
    with pytest.raises(MismatchError, match="this model has hash"):
        some.check(model=nn.Linear(1, 1))


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_selections_and_tables_in_a_row_follow_the_rows(data):
    table = table_of()
    whole = rows_known(table)
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    order = data.draw(st.permutations(range(9)))
    pieces, numbers = [], []
    for size in sizes:
        if rows := order[len(numbers) : len(numbers) + size]:
            pieces.append(table.select(rows))
            numbers += rows
    found = LossTable.concat(pieces)
    assert rows_known(found) == [whole[row] for row in numbers]
    parts = json.loads(found.provenance.parts or '[{"rows": 9}]')
    assert sum(part.get("taken", part["rows"]) for part in parts) == len(found)


def test_a_frame_has_the_columns_of_the_file_and_of_the_data(tmp_path):
    table = table_of()
    data = datasets.Dataset.from_dict({"source": list("aabbbcccc"), "n": range(9)})
    frame = table.to_pandas(data, columns=["source", "n"])
    table.save(tmp_path / "t")
    plain = pd.read_parquet(tmp_path / "t")
    assert frame.columns.tolist() == [*plain.columns, "source", "n"]
    for name in plain.columns.drop("token_losses"):
        assert frame[name].tolist() == plain[name].tolist()
    assert [list(some) for some in frame["token_losses"]] == LISTS
    assert frame.groupby("source")["loss"].mean().to_dict() == {"a": 0.5, "b": 3.0, "c": 6.5}
    rows = [{"source": "x", "label": torch.tensor(row)} for row in range(9)]
    assert table.to_pandas(rows, columns=["label"])["label"].dtype == np.int64


def test_a_frame_of_shards_has_shard_and_key_of_each_sample():
    index = index_of([3, 0, 2])
    frame = LossTable.from_losses(np.arange(5.0), index=index).to_pandas()
    assert frame["shard"].tolist() == ["000.tar"] * 3 + ["002.tar"] * 2
    assert frame["key"].tolist() == [index.key(row) for row in range(5)]
    assert frame["size"].tolist() == index.sizes.tolist()


def test_a_frame_that_cannot_be_made_says_why(monkeypatch):
    table = table_of(3)
    rows = [{"a": 1, "loss": 2}] * 3
    for columns, error, text in (
        (["b"], ValueError, r"row 0: there is no column 'b', there is \['a', 'loss'\]"),
        (["loss"], ValueError, "both have a column 'loss'"),
        ("loss", TypeError, "got the text 'loss'"),
        ([], ValueError, "name its columns"),
    ):
        with pytest.raises(error, match=text):
            table.to_pandas(rows, columns=columns)
    with pytest.raises(ValueError, match="columns need the data set"):
        table.to_pandas(columns=["a"])
    with pytest.raises(MismatchError, match="has 2 rows"):
        table.to_pandas(rows[:2], columns=["a"])
    with pytest.raises(TypeError, match="a DataFrame has no rows by number"):
        table.to_pandas(pd.DataFrame({"a": range(3)}), columns=["a"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas needs pandas: pip install"):
        table.to_pandas()


NO_PARTS = [
    *("", "{", "[3]", '{"rows": 2}', "[" * 100_000),
    *('[{"taken": 2}]', '[{"rows": 3}]', '[{"rows": 2.0}]', '[{"rows": true}, {"rows": 1}]'),
    *('[{"rows": -2}, {"rows": 4}]', '[{"rows": 2, "taken": 3}]'),
    '[{"rows": 2, "data_fingerprint": 3}]',
]


@pytest.mark.parametrize("parts", NO_PARTS)
def test_parts_that_none_can_be_are_damage(tmp_path, parts):
    text = json.dumps({"schema": 1, "rows": 2, "parts": parts})
    rows = pa.table({"loss": pa.array([1.0, 2.0], pa.float32())})
    pq.write_table(rows.replace_schema_metadata({"flowdata": text}), tmp_path / "t")
    with pytest.raises(TableFileError, match="is damaged: its provenance has parts="):
        LossTable.load(tmp_path / "t")
