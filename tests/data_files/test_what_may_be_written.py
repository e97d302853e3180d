"""Data files and manifests are written over nothing that somebody would miss."""

import bz2
import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowdata
from flowdata.data_files import attach_file, export_file
from flowdata.data_files.groups import groups_of_files
from flowdata.errors import DataFileError

ROWS = 20
TABLE = flowdata.LossTable.from_losses(np.random.default_rng(0).random(ROWS), keys=range(ROWS))
LINES = [json.dumps({"id": number}) for number in range(ROWS)]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_text("\n".join(LINES))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="a file system of Linux")
def test_what_a_program_has_open_is_not_replaced():
    log = Path("log.txt")
    with log.open("w") as file:
        file.write("before")
        file.flush()
        for name in (f"/proc/self/fd/{file.fileno()}", f"/dev/fd/{file.fileno()}"):
            with pytest.raises(DataFileError, match=f"{name} is a pipe or a device"):
                attach_file("data.jsonl", TABLE, name, key="id")
    with pytest.raises(DataFileError, match="/dev/stdout is a pipe or a device"):
        attach_file("data.jsonl", TABLE, "/dev/stdout", key="id")
    assert log.read_text() == "before"


def test_a_manifest_takes_the_place_of_a_manifest_only():
    before = Path("data.jsonl").rename("drawn.jsonl.manifest.json").read_bytes()
    with pytest.raises(DataFileError, match="would be written over what it is made of"):
        export_file("drawn.jsonl.manifest.json", TABLE, "drawn.jsonl", key="id")
    Path("data.jsonl").write_bytes(before)
    with pytest.raises(DataFileError, match=r"manifest.json is no manifest of draws, and that of"):
        export_file("data.jsonl", TABLE, "drawn.jsonl", key="id")
    assert Path("drawn.jsonl.manifest.json").read_bytes() == before
    assert not Path("drawn.jsonl").exists()
    manifest = Path("other.jsonl.manifest.json")
    for content in ("", '{\n "manifest": 1,\n "dam'):  # A damaged one is written anew.
        manifest.write_text(content)
        export_file("data.jsonl", TABLE, "other.jsonl", key="id")
        assert json.loads(manifest.read_bytes())["manifest"] == 1


def test_a_loss_table_is_not_written_over_though_it_is_in_memory():
    TABLE.save("table.parquet")
    before = Path("table.parquet").read_bytes()
    pq.write_table(pa.table({"id": range(ROWS)}), "data.parquet")
    for write in (attach_file, export_file):
        with pytest.raises(DataFileError, match=r"table.parquet is a loss table, or has weigh"):
            write("data.parquet", flowdata.LossTable.load("table.parquet"), "table.parquet")
    flowdata.save_weights(TABLE.weights(), "weights.parquet")
    with pytest.raises(DataFileError, match=r"weights.parquet is a loss table, or has weights, an"):
        export_file("data.parquet", TABLE, "weights.parquet", key="id")
    assert Path("table.parquet").read_bytes() == before
    assert attach_file("data.parquet", TABLE, "out.parquet", key="id") == ROWS
    assert attach_file("data.parquet", TABLE, "out.parquet", key="id") == ROWS


@pytest.mark.parametrize(
    "end", ["jsonl.bz2", "jsonl.xz", "csv", "tsv.gz", "arrow", "npy", "parquet"]
)
def test_an_output_is_not_named_for_what_it_is_not(end):
    message = f"out.{end} is named for another format than the data, which is JSONL"
    with pytest.raises(DataFileError, match=re.escape(message)):
        attach_file("data.jsonl", TABLE, f"out.{end}", key="id")


def test_an_input_that_is_compressed_otherwise_is_called_so():
    Path("data.jsonl.bz2").write_bytes(bz2.compress(Path("data.jsonl").read_bytes()))
    with pytest.raises(DataFileError, match=r"compressed as bz2: .* gzip \(.gz\) and zstd"):
        attach_file("data.jsonl.bz2", TABLE, "out.jsonl", key="id")


def test_zstd_that_begins_with_a_frame_to_skip_is_read():
    packed = pa.Codec("zstd").compress(Path("data.jsonl").read_bytes(), asbytes=True)
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"1234"
    Path("data.jsonl.zst").write_bytes(skipped + packed)
    assert attach_file("data.jsonl.zst", TABLE, "out.jsonl", key="id") == ROWS


def test_a_link_to_nowhere_names_the_folder_that_is_missing():
    os.symlink("nowhere/out.jsonl", "link.jsonl")
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*nowhere to write link.jsonl"
    ):
        attach_file("data.jsonl", TABLE, "link.jsonl", key="id")


def test_a_key_that_no_column_or_two_columns_have_is_named():
    one = pa.table({"id": range(ROWS), "n": range(ROWS)})
    pq.write_table(one, "one.parquet")
    pq.write_table(one.rename_columns(["id", "id"]), "two.parquet")
    for write in (attach_file, export_file):
        with pytest.raises(DataFileError, match=r"no column 'key', its columns are \['id', 'n'\]"):
            write("one.parquet", TABLE, "out.parquet", key="key")
        with pytest.raises(DataFileError, match=r"two.parquet has 2 columns 'id': rename them"):
            write("two.parquet", TABLE, "out.parquet", key="id")
    with pytest.raises(DataFileError, match=r"two.parquet has 2 columns 'id': rename them"):
        groups_of_files("two.parquet", TABLE, "id", unchecked=True)


def test_what_is_no_name_no_path_and_no_weight_is_refused():
    for options in ({"field": None}, {"field": 3}):
        with pytest.raises(TypeError, match="the name of a field is a text, got"):
            attach_file("data.jsonl", TABLE, "out.jsonl", key="id", **options)
    with pytest.raises(TypeError, match="the name of a field is a text, got 3"):
        export_file("data.jsonl", TABLE, "out.jsonl", key="id", draw_field=3)
    for data in (5, b"data.jsonl"):
        with pytest.raises(TypeError, match="the path of a data file is needed, or several, got"):
            attach_file(data, TABLE, "out.jsonl", key="id")
    for wrong in (np.nan, np.inf, -1.0):
        numbers = np.append(np.ones(ROWS - 1), wrong)
        with pytest.raises(flowdata.InvalidLossError, match="loss_weights that are NaN, infinite"):
            export_file("data.jsonl", TABLE, "out.jsonl", key="id", loss_weights=numbers)
