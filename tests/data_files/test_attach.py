"""Weights as a field of each row of a data file."""

import gzip
import json
import os
import re
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

import flowdata
from flowdata.data_files import attach_file
from flowdata.data_files.json_rows import with_members, with_value
from flowdata.errors import DataFileError, MismatchError

laws = examples(100)

LOSSES = [0.25, 1.0, 3.0, 0.5]
TABLE = flowdata.LossTable.from_losses(LOSSES, keys=["a", "b", "c", "d"])
WEIGHTS = TABLE.weights().values.tolist()

# Each a row, as people and programs write them.
LINES = [
    b'{"id": "a", "n": 1.50, "t": "\\u00e9 {\\"x\\": 1}"}',
    '{"id":"b","t":"é\u2028\x7f","deep":{"weights":[{}]}}'.encode(),
    b' {  "id" : "c" , "e": 1E+05, "z": {} }\t',
    b'{"id": "d", "big": 123456789012345678901234567890, "nan": NaN}  ',
]


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(content, name="data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def attached(path, table=TABLE, output="out.jsonl", **options):
    output = path.with_name(output)
    assert attach_file(path, table, output, **options) == len(LOSSES)
    return output.read_bytes()


def taken_out(content):
    return re.sub(rb'(, )?"weight": [0-9.e-]+', b"", content)


def rows_of(content):
    text = content.decode("utf-8-sig")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("last", [b"", b"\n", b"\r\n\r\n \n"])
@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"\n\n\t\r\n"])
@pytest.mark.parametrize("begin", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_all_bytes_but_the_field_stay_as_they_are(write, begin, between, last):
    content = begin + between.join(LINES) + last
    found = attached(write(content))
    assert taken_out(found) == content
    assert [row["weight"] for row in rows_of(found)] == WEIGHTS
    # Readers see as many rows as before, in the same order.
    assert [row["id"] for row in rows_of(found)] == list("abcd")


def test_an_object_without_members_gets_its_first_one(write):
    content = b"{}\n{ }\n" + b"\n".join(LINES[2:])
    found = attached(write(content))
    first = repr(WEIGHTS[0]).encode()
    assert found.startswith(b'{"weight": ' + first + b"}\n")
    assert rows_of(found)[1] == {"weight": WEIGHTS[1]}


SPACE = st.sampled_from(["", " ", "\t ", "\r"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@laws
@given(st.dictionaries(st.text(), VALUES, max_size=4), st.booleans(), SPACE, SPACE, VALUES)
def test_a_member_is_added_to_any_object_and_replaced_in_any(row, ascii_only, before, inside, new):
    text = json.dumps(row, ensure_ascii=ascii_only)
    try:
        line = f"{before}{text[:-1]}{inside}}}{before}\n".encode()
    except UnicodeEncodeError:  # Half of a surrogate pair is no UTF-8.
        line = f"{before}{json.dumps(row)}\n".encode()
    added = with_members(line, b'"w": 1')
    assert json.loads(added) == {**row, "w": 1}
    value = json.dumps(new).encode()
    assert json.loads(with_value(added, "w", value)) == {**row, "w": new}
    for name in row:
        if name != "w":
            assert json.loads(with_value(line, name, value)) == {**row, name: new}


def test_a_field_that_is_there_is_an_error_and_is_replaced_if_asked(write):
    lines = [b'{"id": "%c", "weight" : {"weight": [1]} , "z": 0}' % letter for letter in b"abcd"]
    path = write(b"\n".join([LINES[0], *lines[1:]]))
    message = re.escape(f"{path}, line 2: it has a field 'weight' already: name another by field=")
    with pytest.raises(DataFileError, match=message):
        attached(path)
    assert not path.with_name("out.jsonl").exists()
    found = attached(path, overwrite=True)
    assert found.split(b"\n")[1] == b'{"id": "b", "weight" : %r , "z": 0}' % WEIGHTS[1]
    assert [row["weight"] for row in rows_of(found)] == WEIGHTS
    assert [row["share"] for row in rows_of(attached(path, field="share"))] == WEIGHTS


def test_a_field_that_is_there_twice_is_replaced_twice(write):
    path = write(b"\n".join([b'{"weight": 1, "weight": 2}', *LINES[1:]]))
    text = repr(WEIGHTS[0]).encode()
    first = attached(path, overwrite=True).split(b"\n")[0]
    assert first == b'{"weight": ' + text + b', "weight": ' + text + b"}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "b"', "is no JSON object"),
        (b'{"id": "b"} {"id": "x"}', "Extra data"),
        (b"[1, 2]", "but a list"),
        (b'"text"', "but a text"),
        (b"17", "but a number"),
        (b"null", "but null"),
        (b'{"id": "\xff"}', "it is no UTF-8"),
        (b"[" * 100_000, "is no JSON object"),
        (b'{"id": "b"}\x0b', "Extra data"),
        (b"{", "JSONL has one object on each line"),
    ],
    ids=range(10),
)
def test_a_line_that_is_no_row_is_named(write, line, message):
    path = write(b"\n\n" + b"\n".join([LINES[0], line, *LINES[2:]]))
    with pytest.raises(DataFileError, match=message) as raised:
        attached(path)
    assert str(raised.value).startswith(f"{path}, line 4: ")
    assert len(str(raised.value)) < 500
    assert [each.name for each in path.parent.iterdir()] == ["data.jsonl"]


def test_a_file_of_another_kind_is_refused(write):
    with pytest.raises(DataFileError, match="is one JSON list"):
        attached(write(b'\xef\xbb\xbf [\n{"a": 1}\n]'))
    with pytest.raises(DataFileError, match="is csv: JSONL and Parquet files are read"):
        attached(write(b"a,b\n1,2\n", "data.csv"))
    with pytest.raises(DataFileError, match="is no Parquet"):
        attached(write(b"{}\n", "data.parquet"), output="out.parquet")
    with pytest.raises(DataFileError, match="is empty"):
        attached(write(b""))
    with pytest.raises(DataFileError, match="has no rows"):
        attached(write(b"\n\n"))
    with pytest.raises(DataFileError, match="is named for another format than the data"):
        attached(write(b"{}\n" * 4), output="out.parquet")
    with pytest.raises(DataFileError, match="written over what it is made of"):
        attached(write(b"{}\n" * 4), output="data.jsonl")
    os.mkfifo("pipe")
    with pytest.raises(DataFileError, match="pipe is a pipe or a device"):
        attach_file("pipe", TABLE, "out.jsonl")
    with pytest.raises(DataFileError, match="pipe is a pipe or a device"):
        attached(write(b"{}\n" * 4), output="pipe")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        attach_file("nothing.jsonl", TABLE, "out.jsonl")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        attach_file(write(b"{}\n" * 4), TABLE, "no/out.jsonl")


def test_another_number_of_rows_than_the_table_has_is_refused(write):
    with pytest.raises(MismatchError, match="has 3 rows, and the loss table 4"):
        attached(write(b"{}\n" * 3))
    with pytest.raises(MismatchError, match="has more rows, and the loss table 4"):
        attached(write(b"{}\n" * 5))
    with pytest.raises(MismatchError, match="there are 3 weights for a loss table of 4 rows"):
        attached(write(b"{}\n" * 4), weights=[1.0, 2.0, 3.0])
    rows = rows_of(attached(write(b"{}\n" * 4), weights=[1, 2, 3, 4]))
    assert rows == [{"weight": float(n)} for n in (1, 2, 3, 4)]


# By key.


def test_rows_are_found_by_key_whatever_their_order(write):
    content = b"\n".join(reversed(LINES))
    found = attached(write(content), key="id")
    assert taken_out(found) == content
    assert [row["weight"] for row in rows_of(found)] == WEIGHTS[::-1]
    numbers = flowdata.LossTable.from_losses(LOSSES, keys=[7, -1, 2**60, 0])
    path = write(b"".join(b'{"k": %d}\n' % key for key in (0, 2**60, -1, 7)))
    assert [row["weight"] for row in rows_of(attached(path, numbers, key="k"))] == WEIGHTS[::-1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x"}', "line 2: its id is 'x', which no row of the loss table has"),
        (b'{"id": "a"}', "line 2: its id is 'a', as that of a row before it"),
        (b'{"ID": "b"}', r"line 2: it has no 'id', its fields are \['ID'\]"),
        (b'{"id": 3}', "line 2: its id is 3: rows of the loss table have texts for keys"),
        (b'{"id": true}', "line 2: its 'id' is True, and keys are texts or whole numbers"),
        (b'{"id": 1267650600228229401496703205376}', "line 2: .* whole numbers of 64 bits"),
        (b'{"id": "\\ud800"}', "line 2: its id is .*, and keys are texts of UTF-8"),
    ],
    ids=range(7),
)
def test_a_row_whose_key_is_none_is_named(write, line, message):
    path = write(b"\n".join([LINES[0], line, *LINES[2:]]))
    with pytest.raises((DataFileError, MismatchError), match=message):
        attached(path, key="id")


def test_keys_that_come_again_much_later_are_found_too(write):
    losses = np.ones(5000)
    table = flowdata.LossTable.from_losses(losses, keys=range(5000))
    path = write(b"".join(b'{"id": %d}\n' % row for row in [*range(4999), 0]))
    with pytest.raises(MismatchError, match="line 5,000: its id is 0, as that of a row before it"):
        attach_file(path, table, "out.jsonl", key="id")


def test_a_table_without_keys_is_refused_before_anything_is_read(write):
    table = flowdata.LossTable.from_losses(LOSSES)
    with pytest.raises(MismatchError, match="but the loss table has no keys of rows"):
        attached(write(b"no JSON"), table, key="id")


def test_rows_are_found_by_the_key_they_were_scored_with(write, monkeypatch):
    table = flowdata.LossTable.from_losses(LOSSES, keys=list("abcd"))
    table.provenance = replace(table.provenance, key="id")
    content = b"\n".join(reversed(LINES))
    assert [row["weight"] for row in rows_of(attached(write(content), table))] == WEIGHTS[::-1]
    found = attached(write(content), table, unchecked=True)
    assert [row["weight"] for row in rows_of(found)] == WEIGHTS
    with pytest.raises(DataFileError, match="line 1: it has no 'id'"):
        attached(write(b"{}\n" * 4), table)
    # In the table's order no search is needed, nor what it holds.
    monkeypatch.setattr(type(table.keys), "find", None)
    found = attached(write(b"\n".join(LINES)), table)
    assert [row["weight"] for row in rows_of(found)] == WEIGHTS


# Whether rows are those that were scored.


def scored(path, **options):
    rows = datasets.load_dataset("json", data_files=str(path), split="train")
    return flowdata.LossTable.from_losses(LOSSES, dataset=rows, **options)


MIXED = [
    b'{"id": "a", "turns": [{"role": "user"}, {"role": "tool", "name": "x"}]}',
    b'{"id": "b", "when": "2020-01-01T00:00:00", "turns": []}',
    b'{"id": "c", "n": 1}',
    b'{"id": "d", "n": 1.5}',
]


@pytest.mark.parametrize(
    "lines", [[b'{"id": "%c"}' % c for c in b"abcd"], MIXED], ids=["", "mixed"]
)
def test_rows_in_another_order_than_they_were_scored_in_are_refused(write, lines):
    path = write(b"\n".join(lines))
    table = scored(path)
    assert [row["weight"] for row in rows_of(attached(path, table))] == WEIGHTS
    other = write(b"\n".join(reversed(lines)), "other.jsonl")
    with pytest.raises(MismatchError, match="not those that were scored, or in another order"):
        attached(other, table)
    assert [row["id"] for row in rows_of(attached(other, table, unchecked=True))] == list("dcba")
    keyed = table.with_keys(list("abcd"))
    assert [row["weight"] for row in rows_of(attached(other, keyed, key="id"))] == WEIGHTS[::-1]


def test_each_part_of_a_table_made_of_others_is_compared(write):
    lines = [b'{"id": "%c"}' % c for c in b"abcd"]
    first = scored(write(b"\n".join(lines), "first.jsonl"))
    second = scored(write(b"\n".join(lines[::-1]), "second.jsonl"))
    both = write(b"\n".join(lines + lines[::-1]))
    table = flowdata.LossTable.concat([first, second])
    assert attach_file(both, table, "out.jsonl") == 8
    both.write_bytes(b"\n".join(lines + lines))
    with pytest.raises(MismatchError, match="but rows 4 to 7 are not those that were scored"):
        attach_file(both, table, "out.jsonl")
    # Of rows that were selected, no fingerprint is known.
    some = write(b"\n".join(lines[1:3]))
    assert attach_file(some, first.select([1, 2]), "out.jsonl") == 2


# Compressed files, and Parquet.


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_lines_are_read_and_written(write, suffix):
    content = b"\r\n".join(LINES)
    plain = attached(write(content))
    packed = write(b"", f"data.jsonl{suffix}")
    with pa.output_stream(str(packed), compression="detect") as file:
        file.write(content)
    assert attached(packed) == plain
    attached(packed, output=f"out.jsonl{suffix}")
    with pa.input_stream(f"out.jsonl{suffix}", compression="detect") as file:
        assert file.read() == plain
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(DataFileError, match="cannot be decompressed"):
        attached(packed)


def test_a_compressed_file_is_the_same_bytes_each_time(write):
    path = write(b"\n".join(LINES))
    one, other = (attached(path, output=f"{name}.jsonl.gz") for name in ("one", "other"))
    assert one == other
    assert gzip.decompress(one) == attached(path)


@pytest.fixture
def parquet(tmp_path):
    words = pa.array(["x", None, "é", "x"]).dictionary_encode()
    table = pa.table(
        {
            "id": list("abcd"),
            "words": words,
            "lists": [[1], [], None, [2, 3]],
            "turns": [[{"role": "user"}]] * 4,
        },
        metadata={"author": "us"},
    )
    path = tmp_path / "data.parquet"
    pq.write_table(table, path, row_group_size=3, compression="zstd")
    return path


def test_a_column_is_added_to_parquet_and_the_others_stay(parquet):
    output = parquet.with_name("out.parquet")
    attach_file(parquet, TABLE, output)
    before, after = pq.read_table(parquet), pq.read_table(output)
    assert after.column("weight").to_pylist() == WEIGHTS
    assert after.drop_columns(["weight"]).equals(before, check_metadata=True)
    assert pq.ParquetFile(output).metadata.row_group(0).column(0).compression == "ZSTD"
    again = parquet.with_name("again.parquet")
    with pytest.raises(DataFileError, match="has a column 'weight' already"):
        attach_file(output, TABLE, again)
    attach_file(output, TABLE, again, weights=[4, 3, 2, 1], overwrite=True, key="id")
    assert pq.read_table(again).column("weight").to_pylist() == [4.0, 3.0, 2.0, 1.0]
    assert pq.read_table(again).column_names == after.column_names
    table = parquet.with_name("losses.parquet")
    TABLE.save(table)
    with pytest.raises(DataFileError, match=r"losses\.parquet would be written over what it is "):
        attach_file(parquet, table, table)


def test_rows_of_parquet_are_found_by_key_and_compared_with_those_scored(parquet):
    output = parquet.with_name("out.parquet")
    rows = datasets.load_dataset("parquet", data_files=str(parquet), split="train")
    table = flowdata.LossTable.from_losses(LOSSES, dataset=rows, keys=list("abcd"))
    attach_file(parquet, table, output)
    turned = parquet.with_name("turned.parquet")
    pq.write_table(pq.read_table(parquet).take([3, 2, 1, 0]), turned)
    with pytest.raises(MismatchError, match="in another order"):
        attach_file(turned, table, output)
    attach_file(turned, table, output, key="id")
    assert pq.read_table(output).column("weight").to_pylist() == WEIGHTS[::-1]
    with pytest.raises(DataFileError, match="has no column 'ID', its columns are"):
        attach_file(turned, table, output, key="ID")
    other = flowdata.LossTable.from_losses(LOSSES, keys=list("abcx"))
    with pytest.raises(MismatchError, match="row 0: its id is 'd', which no row of the loss table"):
        attach_file(turned, other, output, key="id")


def test_a_damaged_parquet_file_is_named(parquet):
    content = bytearray(parquet.read_bytes())
    content[20] ^= 1
    parquet.write_bytes(content)
    with pytest.raises(DataFileError, match=r"data\.parquet is no readable Parquet file"):
        attach_file(parquet, TABLE, parquet.with_name("out.parquet"))
    parquet.write_bytes(content[:-3])
    with pytest.raises(DataFileError, match=r"data\.parquet is no readable Parquet file"):
        attach_file(parquet, TABLE, parquet.with_name("out.parquet"))
    assert [path.name for path in parquet.parent.iterdir()] == ["data.parquet"]
