"""attach and export take the rows that were scored: all of them, where the table knows them all."""

import json

import datasets
import numpy as np
import pytest

from flowdata import LossTable, MismatchError
from flowdata.data_files import attach_file, export_file

ROWS = [
    {"id": row, "text": f"row {row}", "turns": [{"role": "user"}][: row % 2]} for row in range(60)
]
EDITED = [row | {"text": "another"} if row["id"] == 1 else row for row in ROWS]
SWAPPED = [ROWS[0], ROWS[2], ROWS[1], *ROWS[3:]]


@pytest.fixture(params=["jsonl", "parquet"])
def write(request, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def written(rows):
        path = tmp_path / f"rows.{request.param}"
        if request.param == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            datasets.Dataset.from_list(rows).to_parquet(path)
        return path

    return written


def opened(path):
    kind = "json" if path.suffix == ".jsonl" else "parquet"
    return datasets.load_dataset(kind, data_files=str(path), split="train")


def table_of(data):
    return LossTable.from_losses(np.random.default_rng(0).exponential(size=len(data)), dataset=data)


@pytest.mark.parametrize("rows", [EDITED, SWAPPED], ids=["edited", "swapped"])
def test_one_row_edited_or_two_swapped_are_refused(write, tmp_path, rows):
    table = table_of(opened(write(ROWS)))
    source, output = write(rows), tmp_path / f"out{write(rows).suffix}"
    for call in (attach_file, export_file):
        with pytest.raises(MismatchError, match="rows 0 to 59 are not those that were scored"):
            call(source, table, output)
        assert not output.exists()
    assert attach_file(source, table, output, unchecked=True) == 60
    source = write(ROWS)
    output.unlink()
    assert attach_file(source, table, output) == 60


def test_further_fields_make_no_difference(write, tmp_path):
    table = table_of(opened(write(ROWS)))
    further = write([row | {"weight": 1.0} for row in ROWS])
    assert attach_file(further, table, tmp_path / f"out{further.suffix}", field="w") == 60
    further = write([row | {"weight": 1.0} for row in EDITED])
    with pytest.raises(MismatchError, match="rows 0 to 59 are not those"):
        attach_file(further, table, tmp_path / f"other{further.suffix}", field="w")


def test_each_part_of_a_table_is_compared_with_its_rows(write, tmp_path):
    data = opened(write(ROWS))
    table = LossTable.concat(
        [table_of(data.select(range(20))), table_of(data.select(range(20, 60)))]
    )
    output = tmp_path / f"out{write(ROWS).suffix}"
    assert attach_file(write(ROWS), table, output) == 60
    with pytest.raises(MismatchError, match="rows 0 to 19 are not those that were scored"):
        attach_file(write(EDITED), table, output)


def test_lines_are_compared_with_all_rows_of_a_list(tmp_path):
    source = tmp_path / "rows.jsonl"

    def attached(rows, table):
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return attach_file(source, table, tmp_path / "out.jsonl")

    for table in (table_of(ROWS), LossTable.concat([table_of(ROWS[:20]), table_of(ROWS[20:])])):
        assert attached(ROWS, table) == 60
        for rows in (EDITED, SWAPPED):
            with pytest.raises(MismatchError, match="are not those that were scored"):
                attached(rows, table)
