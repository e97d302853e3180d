"""Epochs of draws as data files, and the manifests beside them."""

import gzip
import json
import os
import re
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowdata
from flowdata.data_files import attach_file, export_file, verify_file
from flowdata.data_files import json_rows as json_module
from flowdata.data_files import line_index as line_index_module
from flowdata.data_files import parquet_rows as parquet_module
from flowdata.errors import DataFileError, MismatchError

ROWS = 300
LOSSES = np.random.default_rng(0).gamma(2.0, size=ROWS)
TABLE = flowdata.LossTable.from_losses(LOSSES, keys=[f"k{row}" for row in range(ROWS)])
PLAN = flowdata.EpochPlan(TABLE, seed=7)
DRAWN = [(epoch, draw, row) for epoch in (0, 1, 2) for draw, row in enumerate(PLAN.at_epoch(epoch))]


def line(row):
    text = "é" * (row % 9) if row % 2 else "x" * (row % 70)
    return json.dumps({"id": f"k{row}", "row": row, "t": text}, ensure_ascii=row % 3 == 0).encode()


LINES = [line(row) for row in range(ROWS)]


@pytest.fixture
def data(tmp_path):
    """Rows with blank lines, of which the last has no end."""
    path = tmp_path / "data.jsonl"
    ends = [b"\n\n \n" if row % 5 == 0 else b"\n" for row in range(ROWS)]
    content = b"".join(line + end for line, end in zip(LINES, ends, strict=True))
    path.write_bytes(b"\xef\xbb\xbf\n" + content[: -len(ends[-1])])
    return path


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "losses.parquet"
    TABLE.save(path)
    return path


@pytest.fixture(params=[1, 100, 1 << 20])
def few_bytes(request, monkeypatch):
    """So many bytes are held at a time."""
    monkeypatch.setattr(line_index_module, "_MOST_BYTES", request.param)
    monkeypatch.setattr("flowdata.data_files.export._AT_ONCE", 70)


def written(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.usefixtures("few_bytes")
def test_the_draws_are_those_of_the_plan_and_lines_keep_their_bytes(data, table):
    output = data.with_name("drawn.jsonl")
    export_file(data, table, output, plan=PLAN, epochs=3)
    expected = [
        LINES[row][:-1] + b', "epoch": %d, "draw": %d}\n' % (epoch, draw)
        for epoch, draw, row in DRAWN
    ]
    assert output.read_bytes() == b"".join(expected)
    manifest = verify_file(output)
    assert manifest["rows"] == {"data": ROWS, "table": ROWS, "output": 3 * ROWS}
    assert manifest["epochs"] == {"first": 0, "number": 3}
    assert manifest["plan"] == PLAN.identity() | {"seed": 7}
    assert set(os.listdir(data.parent)) == {
        *("data.jsonl", "losses.parquet", "drawn.jsonl", "drawn.jsonl.manifest.json")
    }


def test_other_epochs_and_options_are_those_of_the_plan(data, table):
    output = data.with_name("drawn.jsonl")
    weights = TABLE.weights(0.5)
    plan = flowdata.EpochPlan(weights, epoch=4, seed=1, epoch_size="ess", alpha=0.5)
    rest = weights.residual(0.5)
    export_file(
        *(data, table, output),
        plan=plan,
        epochs=2,
        epoch_field="e",
        draw_field=None,
        loss_weights=rest,
    )
    expected = [(epoch, row) for epoch in (4, 5) for row in plan.at_epoch(epoch)]
    assert [(row["e"], row["row"], row["weight"]) for row in written(output)] == [
        (epoch, row, rest[row]) for epoch, row in expected
    ]
    assert list(written(output)[0]) == ["id", "row", "t", "e", "weight"]


def test_without_fields_lines_are_those_of_the_data(data):
    output = data.with_name("drawn.jsonl")
    export_file(data, TABLE, output, plan=PLAN, epoch_field=None, draw_field=None)
    assert output.read_bytes() == b"".join(LINES[row] + b"\n" for row in PLAN)
    assert verify_file(output)["files"]["table"] is None


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_data_are_drawn_from_too(data, suffix):
    plain = data.with_name("plain.jsonl")
    export_file(data, TABLE, plain, plan=PLAN)
    packed = data.with_name(f"data.jsonl{suffix}")
    with pa.output_stream(str(packed), compression="detect") as file:
        file.write(data.read_bytes())
    output = data.with_name(f"drawn.jsonl{suffix}")
    export_file(packed, TABLE, output, plan=PLAN)
    with pa.input_stream(str(output), compression="detect") as file:
        assert file.read() == plain.read_bytes()
    verify_file(output)


def test_lines_that_end_as_on_windows_do_so_when_they_are_drawn(tmp_path):
    path, output = tmp_path / "data.jsonl", tmp_path / "drawn.jsonl"
    path.write_bytes(b'{"n": 0}\r\n{"n": 1}')
    export_file(path, flowdata.LossTable.from_losses([1.0, 2.0]), output)
    assert output.read_bytes().count(b"\r\n") == output.read_bytes().count(b"\n") == 2


# Parquet.


@pytest.fixture
def parquet(tmp_path):
    rows = [json.loads(line) for line in LINES]
    rows = pa.Table.from_pylist(
        [row | {"deep": [{"a": row["row"]}] * (row["row"] % 3)} for row in rows]
    )
    names = pa.array([f"w{row % 7}" for row in range(ROWS)]).dictionary_encode()
    path = tmp_path / "data.parquet"
    pq.write_table(rows.append_column("word", names), path, row_group_size=70)
    return path


@pytest.mark.parametrize("most_rows", [1, 64, 1 << 16])
@pytest.mark.parametrize("key", [None, "id"])
def test_rows_of_parquet_are_drawn_in_the_order_of_the_plan(parquet, monkeypatch, most_rows, key):
    monkeypatch.setattr(parquet_module, "_MOST_ROWS", most_rows)
    monkeypatch.setattr(parquet_module, "_MOST_PIECES", 9)
    monkeypatch.setattr("flowdata.data_files.export._AT_ONCE", 70)
    output = parquet.with_name("drawn.parquet")
    rest = TABLE.weights().residual(0.0)
    export_file(parquet, TABLE, output, plan=PLAN, epochs=3, key=key, loss_weights=rest)
    found, rows = pq.read_table(output), pq.read_table(parquet)
    for name, values in (
        ("epoch", [epoch for epoch, _, _ in DRAWN]),
        ("draw", [draw for _, draw, _ in DRAWN]),
        ("weight", [rest[row] for _, _, row in DRAWN]),
    ):
        assert found.column(name).to_pylist() == values
    expected = rows.take([row for _, _, row in DRAWN])
    kept = found.drop_columns(["epoch", "draw", "weight"])
    assert kept.schema.equals(rows.schema, check_metadata=True)
    assert kept.to_pylist() == expected.to_pylist()
    verify_file(output)
    assert {path.name for path in parquet.parent.iterdir()} == {
        *("data.parquet", "drawn.parquet", "drawn.parquet.manifest.json")
    }


# By key.


def test_rows_are_drawn_by_key_whatever_their_order(data):
    turned, output = data.with_name("turned.jsonl"), data.with_name("drawn.jsonl")
    order = np.random.default_rng(1).permutation(ROWS)
    turned.write_bytes(b"\n".join(LINES[row] for row in order))
    export_file(turned, TABLE, output, plan=PLAN, epochs=2, key="id")
    assert [row["row"] for row in written(output)] == [row for _, _, row in DRAWN[: 2 * ROWS]]


def test_rows_that_may_be_drawn_must_be_there(data):
    output = data.with_name("drawn.jsonl")
    some = data.with_name("some.jsonl")
    some.write_bytes(b"\n".join(LINES[:3] + LINES[4:]))
    with pytest.raises(MismatchError, match="has no row with the id 'k3', which the loss table"):
        export_file(some, TABLE, output, plan=PLAN, key="id")
    kept = flowdata.EpochPlan(TABLE.weights().times(np.arange(ROWS) != 3))
    export_file(some, TABLE, output, plan=kept, key="id")
    assert 3 not in {row["row"] for row in written(output)}


# Several files.


@pytest.mark.usefixtures("few_bytes")
@pytest.mark.parametrize("key", [None, "id"])
def test_rows_of_several_files_follow_each_other(data, key):
    parts = [
        data.with_name(f"part-{number}.jsonl{end}") for number, end in enumerate(["", ".gz", ""])
    ]
    parts[0].write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(LINES[:100]))
    parts[1].write_bytes(gzip.compress(b"\n\n".join(LINES[100:101])))
    parts[2].write_bytes(b"\n".join(LINES[101:]) + b"\n\n")
    output = data.with_name("drawn.jsonl")
    manifest = export_file(parts, TABLE, output, plan=PLAN, epochs=2, key=key, epoch_field=None)
    ends = [b"\r\n"] * 100 + [b"\n"] * 200
    assert output.read_bytes() == b"".join(
        LINES[row][:-1] + b', "draw": %d}' % draw + ends[row] for _, draw, row in DRAWN[: 2 * ROWS]
    )
    assert manifest["rows"]["data"] == ROWS
    verify_file(output)
    verify_file(output, data=data.with_name("part-*"))
    with pytest.raises(MismatchError, match="were made of 3 data files, and 1 are given"):
        verify_file(output, data=parts[0])
    parts[2].write_bytes(parts[2].read_bytes().replace(b"xxx", b"xyx", 1))
    with pytest.raises(DataFileError, match=r"part-2\.jsonl, the data, was changed, in bytes"):
        verify_file(output)
    parts[2].write_bytes(b"\n".join(LINES[101:-1]))
    reason = "has 299 rows, and" if key is None else "has no row with the id 'k299'"
    with pytest.raises(MismatchError, match=rf"part-0\.jsonl to .*2\.jsonl, 3 files, {reason}"):
        export_file(parts, TABLE, output, plan=PLAN, key=key)
    with pytest.raises(DataFileError, match=r"part-0\.jsonl is given twice"):
        export_file([*parts, parts[0]], TABLE, output)


def test_several_parquet_files_are_drawn_from_as_one(parquet):
    rows = pq.read_table(parquet)
    parts = [parquet.with_name(f"part-{number}.parquet") for number in range(2)]
    for path, part in zip(parts, (rows[:130], rows[130:]), strict=True):
        pq.write_table(part, path)
    output, whole = parquet.with_name("drawn.parquet"), parquet.with_name("whole.parquet")
    export_file(parquet, TABLE, whole, plan=PLAN, epochs=2)
    for key in (None, "id"):
        export_file(parts, TABLE, output, plan=PLAN, epochs=2, key=key)
        assert pq.read_table(output).to_pylist() == pq.read_table(whole).to_pylist()
    pq.write_table(rows[130:].rename_columns(["i", *rows.column_names[1:]]), parts[1])
    with pytest.raises(DataFileError, match=r"part-1\.parquet has other columns"):
        export_file(parts, TABLE, output)


# What is refused.


def test_fields_that_rows_have_are_refused_by_name_and_line(data, parquet):
    data.write_bytes(data.read_bytes().replace(b'"row": 17,', b'"row": 17, "draw": 1,'))
    output = data.with_name("drawn.jsonl")
    message = re.escape("line 27: it has a field 'draw' already: name another for draws by")
    with pytest.raises(DataFileError, match=message):
        export_file(data, TABLE, output)
    export_file(data, TABLE, output, draw_field="d")
    for field in ("epoch_field", "draw_field"):
        with pytest.raises(DataFileError, match="has a column 'row' already"):
            export_file(parquet, TABLE, data.with_name("x.parquet"), **{field: "row"})
    with pytest.raises(ValueError, match="fields of one name"):
        export_file(data, TABLE, output, epoch_field="x", draw_field="x")


def test_what_does_not_belong_together_is_refused(data, table):
    output = data.with_name("drawn.jsonl")
    for plan, error, message in (
        (flowdata.EpochPlan([1.0, 2.0]), MismatchError, "the plan draws from 2 rows"),
        (flowdata.PackPlan(PLAN, [1] * ROWS, 3), TypeError, "by an EpochPlan, got PackPlan"),
    ):
        with pytest.raises(error, match=message):
            export_file(data, table, output, plan=plan)
    with pytest.raises(MismatchError, match="there are 2 loss_weights for 300 rows"):
        export_file(data, table, output, loss_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="epochs must be an int >= 1, got 0"):
        export_file(data, table, output, epochs=0)
    with pytest.raises(DataFileError, match="written over what it is made of"):
        export_file(data, table, table)
    short = data.with_name("short.jsonl")
    short.write_bytes(b"\n".join(LINES[:-1]))
    with pytest.raises(MismatchError, match="has 299 rows, and the loss table 300"):
        export_file(short, table, output)
    assert not output.exists()


def test_data_that_change_while_they_are_read_are_an_error(data, monkeypatch):
    output = data.with_name("drawn.jsonl")
    read = line_index_module.LineIndex.read

    def changing(self, rows):
        data.write_bytes(data.read_bytes() + b" ")
        return read(self, rows)

    monkeypatch.setattr(line_index_module.LineIndex, "read", changing)
    with pytest.raises(DataFileError, match="was changed while it was read"):
        export_file(data, TABLE, output)
    assert not output.exists()


# Verification.


@pytest.fixture
def exported(data, table):
    output = data.with_name("drawn.jsonl")
    export_file(data, table, output, plan=PLAN)
    return output


@pytest.mark.parametrize("name", ["drawn.jsonl", "data.jsonl", "losses.parquet"])
def test_one_changed_byte_is_found_and_said_where(exported, monkeypatch, name):
    monkeypatch.setattr("flowdata.data_files.manifest._BLOCK", 1000)
    export_file(exported.with_name("data.jsonl"), exported.with_name("losses.parquet"), exported)
    path = exported.with_name(name)
    whole = path.read_bytes()
    for place in (0, 999, 1000, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        begin = place // 1000 * 1000
        end = min(begin + 1000, len(whole)) - 1
        with pytest.raises(
            DataFileError, match=f"was changed, in bytes {begin:,} to {end:,}$"
        ) as is_:
            verify_file(exported)
        assert str(is_.value).startswith(f"{path}, ")
    path.write_bytes(whole[:-1])
    with pytest.raises(DataFileError, match=f"{name}, .*, has {len(whole) - 1:,} bytes, not the "):
        verify_file(exported)
    path.write_bytes(whole + b"\n")
    with pytest.raises(DataFileError, match=f"{name}, .*, has {len(whole) + 1:,} bytes, not the "):
        verify_file(exported)
    path.unlink()
    with pytest.raises(DataFileError, match=f"there is no file .*{name}"):
        verify_file(exported)
    path.write_bytes(whole)
    verify_file(exported)


def test_every_byte_of_the_manifest_counts(exported):
    path = exported.with_name("drawn.jsonl.manifest.json")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DataFileError, match=r"drawn\.jsonl\.manifest\.json"):
            verify_file(exported)
    path.unlink()
    with pytest.raises(DataFileError, match="there is no manifest"):
        verify_file(exported)


def test_files_may_move_together_or_be_named(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    for path in exported.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    verify_file(folder / "drawn.jsonl")
    data = folder / "data.jsonl"
    data.rename(folder / "other.jsonl")
    with pytest.raises(DataFileError, match=r"there is no file .*data\.jsonl, the data: say where"):
        verify_file(folder / "drawn.jsonl")
    verify_file(folder / "drawn.jsonl", data=folder / "other.jsonl")
    verify_file(folder / "drawn.jsonl", output_alone=True)
    with pytest.raises(DataFileError, match=r"other\.jsonl, the loss table, has .* was changed"):
        verify_file(
            folder / "drawn.jsonl", data=folder / "other.jsonl", table=folder / "other.jsonl"
        )


def test_a_second_export_replaces_the_first_and_its_manifest(exported, data, table):
    export_file(data, table, exported, plan=PLAN.at_epoch(1), epochs=2)
    assert verify_file(exported)["epochs"] == {"first": 1, "number": 2}
    assert len(written(exported)) == 2 * ROWS


# Memory.


@pytest.mark.slow
def test_no_more_than_an_index_and_some_rows_are_held(tmp_path, monkeypatch):
    for module in (json_module, line_index_module, parquet_module):
        monkeypatch.setattr(module, "_MOST_BYTES", 1 << 19)
    rows = 8_000
    path, packed = tmp_path / "data.jsonl", tmp_path / "data.parquet"
    text = "x" * 2000
    path.write_bytes(b"".join(b'{"n": %d, "t": "%s"}\n' % (n, text.encode()) for n in range(rows)))
    texts = [f"{n:08}" * 250 for n in range(1000)]
    with pq.ParquetWriter(packed, pa.schema({"t": pa.string()}), compression="none") as writer:
        for _ in range(rows // 1000):
            writer.write_table(pa.table({"t": texts}))
    table = flowdata.LossTable.from_losses(np.random.default_rng(0).gamma(2.0, size=rows))
    attach_file(path, table, tmp_path / "first.jsonl")
    pool = pa.default_memory_pool()
    for function in (attach_file, export_file):
        for data in (path, packed):
            before = pool.bytes_allocated()
            tracemalloc.start()
            function(data, table, tmp_path / f"out{data.suffix}")
            held = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert data.stat().st_size > 15e6
            assert held < 6e6, (function, data)
            assert pool.bytes_allocated() - before < 1e6
