"""The groups of a table's rows, by a field of data files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowdata
from flowdata.data_files.groups import groups_of_files
from flowdata.data_files.opening import data_paths
from flowdata.errors import DataFileError

KEYS = [f"k{row}" for row in range(30)]
TABLE = flowdata.LossTable.from_losses([1.0 + row % 7 for row in range(30)], keys=KEYS)


def test_groups_are_those_of_a_field_in_the_order_of_the_table(tmp_path):
    words = [f"w{row % 7}" for row in range(30)]
    rows = pa.table({"id": KEYS, "word": words})
    parts = [tmp_path / "1.parquet", tmp_path / "0.parquet"]
    for path, part in zip(parts, (rows[20:], rows[:20]), strict=True):
        pq.write_table(part, path)
    groups = groups_of_files(parts, TABLE, "word", key="id")
    assert [groups.names[code] for code in groups.codes] == words


def test_rows_without_a_value_are_a_group_and_what_names_none_is_refused(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"".join(b'{"row": %d}\n' % row for row in range(30)))
    assert groups_of_files(data, TABLE, "row").names == tuple(range(30))
    data.write_bytes(b"\n".join(b"{}" if row % 2 else b'{"g": "x"}' for row in range(30)))
    groups = groups_of_files(data, TABLE, "g")
    assert [groups.names[code] for code in groups.codes] == ["x", "(none)"] * 15
    with pytest.raises(DataFileError, match=r"no row of .*data\.jsonl has a field 'h'"):
        groups_of_files(data, TABLE, "h")
    data.write_bytes(b'{"g": [1]}\n' * 30)
    with pytest.raises(DataFileError, match=r"data\.jsonl, line 1: its 'g' is \[1\], and groups"):
        groups_of_files(data, TABLE, "g")


def test_each_of_many_files_is_opened_for_its_format_once(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.jsonl" for number in range(5)]
    for path in paths:
        path.write_bytes(b"{}")
    opened = []
    usual = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how: opened.append(path) or usual(path, *how))
    assert data_paths([str(tmp_path / "*.jsonl")]) == data_paths(paths) == paths
    assert opened == [paths[0], *paths] * 2


def test_files_of_two_formats_are_refused(tmp_path):
    lines, rows = tmp_path / "data.jsonl", tmp_path / "data.parquet"
    lines.write_bytes(b'{"id": "k0"}')
    pq.write_table(pa.table({"id": KEYS}), rows)
    with pytest.raises(DataFileError, match=r"data\.jsonl is JSONL, and .* is Parquet"):
        groups_of_files([rows, lines], TABLE, "id")
