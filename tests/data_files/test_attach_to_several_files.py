"""Weights as a field of the rows of several data files, which follow each other."""

import gzip
import itertools
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowdata
from flowdata.data_files import attach_file, export_file
from flowdata.errors import DataFileError, MismatchError

ROWS = 30
IDS = [f"r{number}" for number in range(ROWS)]
TABLE = flowdata.LossTable.from_losses(np.random.default_rng(0).random(ROWS), keys=IDS)
WEIGHTS = TABLE.weights().values.tolist()
CUTS = [0, 7, 19, ROWS]
PARTS = [range(start, stop) for start, stop in itertools.pairwise(CUTS)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()


def write(name, rows):
    content = "".join(f"{json.dumps({'id': IDS[row], 'n': row})}\n" for row in rows).encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def read(path):
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if path.endswith(".gz") else content
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.parametrize("key", [None, "id"])
def test_each_file_of_a_pattern_is_written_under_its_name_with_rows_counted_over_all(key):
    names = [write(f"part-{n}.jsonl{'.gz' * (n == 1)}", part) for n, part in enumerate(PARTS)]
    assert attach_file("part-*", TABLE, "out", key=key) == ROWS
    found = [read(f"out/{name}") for name in names]
    assert [[row["n"] for row in rows] for rows in found] == [list(part) for part in PARTS]
    assert [row["weight"] for rows in found for row in rows] == WEIGHTS


def test_files_in_another_order_are_found_by_key_and_refused_by_number():
    names = [write(f"{n}.jsonl", reversed(part)) for n, part in enumerate(PARTS)][::-1]
    assert attach_file(names, TABLE, "out", key="id") == ROWS
    weights = {row["id"]: row["weight"] for name in names for row in read(f"out/{name}")}
    assert weights == dict(zip(IDS, WEIGHTS, strict=True))


def test_parquet_files_keep_their_own_columns():
    names = ["0.parquet", "1", "2.part"]
    for n, part in enumerate(PARTS):
        table = pa.table({"id": IDS[part.start : part.stop], f"of_{n}": [n] * len(part)})
        pq.write_table(table, names[n])
    assert attach_file(names, TABLE, "out", key="id") == ROWS
    tables = [pq.read_table(f"out/{name}") for name in names]
    assert [table.column_names for table in tables] == [
        ["id", f"of_{n}", "weight"] for n in (0, 1, 2)
    ]
    assert [w for table in tables for w in table["weight"].to_pylist()] == WEIGHTS


WRONG = {
    "a key twice": ([*PARTS[:2], [*PARTS[2], 3]], "2.jsonl, line 12: its id is 'r3', as that"),
    "a row too many": ([*PARTS, [0]], "0.jsonl to 3.jsonl, 4 files, has more rows"),
    "rows are missing": (PARTS[:2], "0.jsonl to 1.jsonl, 2 files, has 19 rows"),
    "no row": ([*PARTS[:2], []], "2.jsonl is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_nothing_is_written_unless_all_files_are_right(case):
    parts, message = WRONG[case]
    names = [write(f"{n}.jsonl", part) for n, part in enumerate(parts)]
    key = "id" if "key" in case else None
    Path("out/0.jsonl").write_text("before")
    with pytest.raises((DataFileError, MismatchError), match=re.escape(message)):
        attach_file(names, TABLE, "out", key=key)
    assert [path.name for path in Path("out").iterdir()] == ["0.jsonl"]
    assert Path("out/0.jsonl").read_text() == "before"


def test_several_files_need_a_folder_and_names_of_their_own():
    Path("a").mkdir()
    names = [write("0.jsonl", PARTS[0]), write("1.jsonl", PARTS[1]), write("a/0.jsonl", PARTS[2])]
    for output in ("one.jsonl", "nowhere", "1.jsonl"):
        with pytest.raises(NotADirectoryError, match=f"there is no folder {output}: several"):
            attach_file(names, TABLE, output)
    with pytest.raises(DataFileError, match=r"0.jsonl and a/0.jsonl have one name"):
        attach_file(names, TABLE, "out")
    with pytest.raises(DataFileError, match=r"0.jsonl would be written over what it is made of"):
        attach_file(names[:2], TABLE, ".")
    # A pattern that fits one file does what it does for several.
    write("whole.jsonl", range(ROWS))
    assert attach_file("whole*", TABLE, "out") == ROWS
    assert [row["weight"] for row in read("out/whole.jsonl")] == WEIGHTS


def test_weights_that_are_all_too_small_for_numbers_are_refused():
    write("data.jsonl", range(ROWS))
    tiny = flowdata.LossTable.from_losses(1.0 + np.random.default_rng(0).random(ROWS), keys=IDS)
    weights = tiny.weights(0.001)
    assert not weights.values.any()
    message = r'e\^-1,\d+, too small for a number: give normalize="mean"'
    with pytest.raises(flowdata.InvalidLossError, match=message):
        attach_file("data.jsonl", tiny, "out", weights=weights)
    rows = [{"id": key} for key in IDS]
    with pytest.raises(flowdata.InvalidLossError, match=message):
        flowdata.attach(rows, tiny, weights=weights, key="id")
    weights = tiny.weights(0.001, normalize="mean")
    attach_file("data.jsonl", tiny, "out", weights=weights, key="id")
    assert [row["weight"] for row in read("out/data.jsonl")] == weights.values.tolist()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_that_have_got_further_fields_are_those_that_were_scored(kind):
    name = f"data.{kind}"
    rows = [{"id": key, "n": n} | ({"more": n} if n % 3 else {}) for n, key in enumerate(IDS)]
    if kind == "jsonl":
        Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows[1:] + rows[:1]), name)
    reader = "json" if kind == "jsonl" else kind
    data = datasets.load_dataset(reader, data_files=name, split="train")
    table = flowdata.LossTable.from_losses(np.random.default_rng(0).random(ROWS), dataset=data)
    source = name
    for field in ("weight", "second", "third"):
        attach_file(source, table, f"{field}.{kind}", field=field)
        source = f"{field}.{kind}"
    export_file(source, table, f"drawn.{kind}")
    for wrong in (data.select(range(ROWS - 1, -1, -1)), data.remove_columns("n")):
        getattr(wrong, "to_json" if kind == "jsonl" else "to_parquet")(f"wrong.{kind}")
        with pytest.raises(MismatchError, match="rows 0 to 29 are not those that were scored"):
            attach_file(f"wrong.{kind}", table, f"other.{kind}")


def test_of_a_table_that_stays_in_its_file_no_more_weights_are_held_than_are_written(monkeypatch):
    monkeypatch.setattr("flowdata.table.stored_table.MOST_ROWS_HELD", 10)
    names = [write(f"{n}.jsonl", part) for n, part in enumerate(PARTS)]
    TABLE.save("table.parquet")
    for key in (None, "id"):
        weights = flowdata.LossTable.load("table.parquet").weights()
        attach_file(names, "table.parquet", "out", key=key, weights=weights)
        assert "relative" not in vars(weights)
        assert [row["weight"] for name in names for row in read(f"out/{name}")] == WEIGHTS
