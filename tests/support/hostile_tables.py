"""Files that pose as loss tables, made by hand; each is refused, or holds what it says."""

import json
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowdata import LossTable, Provenance, ShardIndex

ROWS = 12
LOSSES = np.random.default_rng(0).random(ROWS, dtype=np.float32)
COUNTS = (np.arange(ROWS) % 4).astype(np.int32)
LISTS = [[0.5] * int(count) for count in COUNTS]


def table_of(kind):
    """A sound table: plain, with keys, with tokens, or of shards."""
    if kind == "plain":
        return LossTable.from_losses(LOSSES)
    if kind == "keys":
        return LossTable.from_losses(LOSSES, keys=[f"key {row}" for row in range(ROWS)])
    if kind == "tokens":
        tokens = np.random.default_rng(1).random(int(COUNTS.sum()), dtype=np.float32)
        known = Provenance(rows=ROWS, loss="causal_lm", options="{}")
        counts = {"n_tokens": COUNTS, "lengths": COUNTS + 3}
        return LossTable(LOSSES, known, **counts, token_losses=tokens)
    offsets = np.tile(np.arange(ROWS // 2) * 1024, 2)
    index = ShardIndex(
        ("a.tar", "b.tar"),
        np.repeat(np.arange(2, dtype=np.int32), ROWS // 2),
        pa.array([f"key {row}" for row in range(ROWS)]),
        offsets.astype(np.int64),
        np.full(ROWS, 1024, dtype=np.int64),
        np.array([9999, 9999]),
        np.array([False, False]),
    )
    return LossTable.from_losses(LOSSES, index=index)


def same_table(found, expected):
    arrays = [
        [table.losses, table.n_tokens, table.lengths, table.token_losses]
        + ([] if (index := table.index) is None else [index.shard, index.offsets, index.sizes])
        for table in (found, expected)
    ]
    index, other = found.index, expected.index
    return (
        found.provenance == expected.provenance
        and all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
        and (found.keys and found.keys.tolist()) == (expected.keys and expected.keys.tolist())
        and (index is None) == (other is None)
        and (index is None or (index.shards == other.shards and index.keys.equals(other.keys)))
    )


def write(path, columns=None, *, schema=None, texts=None, rows=ROWS, known=None, **options):
    known = {"schema": 1, "rows": rows} | (known or {})
    columns = {"loss": pa.array(LOSSES)} | (columns or {})
    names, arrays = list(columns), list(columns.values())
    table = pa.table(arrays, names=names, schema=schema)
    table = table.replace_schema_metadata({"flowdata": json.dumps(known)} | (texts or {}))
    pq.write_table(table, path, **options)


def column(name, values):
    return lambda path: write(path, {name: values})


def tokens(counts, lists, kind=None):
    kind = kind or pa.large_list(pa.float32())
    counts = pa.array(counts, pa.int32())
    return lambda path: write(path, {"n_tokens": counts, "token_losses": pa.array(lists, kind)})


def index(texts=None, **changed):
    columns = {
        "shard": pa.array(["a.tar"] * ROWS),
        "key": pa.array([str(row) for row in range(ROWS)]),
        "offset": pa.array(np.arange(ROWS) * 1024),
        "size": pa.array(np.full(ROWS, 1024)),
    }
    columns = {name: values for name, values in (columns | changed).items() if values is not None}
    texts = {} if texts is None else {"flowdata.shards": texts}
    return lambda path: write(path, columns, texts=texts)


def shards(**changed):
    known = {"shards": ["a.tar"], "lengths": [99_999], "compressed": [False]} | changed
    return index(json.dumps(known))


def provenance(text):
    return lambda path: write(path, texts={"flowdata": text})


def known(**changed):
    return lambda path: write(path, known=changed)


def twice(path):
    table = pa.table([pa.array(LOSSES), pa.array(LOSSES * 2)], names=["loss", "loss"])
    text = json.dumps({"schema": 1, "rows": ROWS})
    pq.write_table(table.replace_schema_metadata({"flowdata": text}), path)


def nested(path):
    write(path, {"loss": pa.StructArray.from_arrays([pa.array(LOSSES)], names=["loss"])})


def extension(path):
    kind = pa.opaque(pa.float32(), "t", "v")
    write(path, {"loss": pa.ExtensionArray.from_storage(kind, pa.array(LOSSES))})


def cut(size):
    def make(path):
        table_of("tokens").save(path)
        path.write_bytes(path.read_bytes()[:size])

    return make


def changed_bytes(change):
    def make(path):
        table_of("tokens").save(path)
        path.write_bytes(change(path.read_bytes()))

    return make


def varint(number):
    """Zigzag and base 128, as Thrift's compact protocol writes integers."""
    number <<= 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def claiming(rows):
    """Says consistently everywhere that it has so many rows: in footer, texts and second copies."""

    def make(path):
        # Of no rows, so that the number is one that is found and replaced in the footer.
        write(path, rows=rows, store_schema=False)
        whole = path.read_bytes()
        length = struct.unpack("<I", whole[-8:-4])[0]
        footer = whole[-8 - length : -8]
        # i64 fields of 12: num_rows and num_values, and the rows of the row group.
        for field in (b"\x16", b"\x26"):
            footer = footer.replace(field + varint(ROWS), field + varint(rows))
        path.write_bytes(
            whole[: -8 - length] + footer + struct.pack("<I", len(footer)) + whole[-4:]
        )

    return make


def large_page(path):
    """The header of a compressed page says that 2 GB come out of it."""
    losses = np.zeros(1 << 14, dtype=np.float32)
    known = {"loss": pa.array(losses)}
    write(path, known, rows=losses.size, compression="snappy", use_dictionary=False)
    whole = path.read_bytes()
    # Some bytes say that no value is missing.
    size = next(size for more in range(64) if (size := varint(losses.nbytes + more)) in whole[4:40])
    at = whole.index(size, 4)
    path.write_bytes(whole[:at] + varint((1 << 30) - 1) + whole[at + len(size) :])


NAN = float("nan")
REFUSED = {
    "losses of float64": column("loss", pa.array(LOSSES.astype(np.float64))),
    "losses of float16": column("loss", pa.array(LOSSES.astype(np.float16))),
    "losses of integers": column("loss", pa.array(np.arange(ROWS))),
    "losses of texts": column("loss", pa.array(["1.0"] * ROWS)),
    "losses of nothing": column("loss", pa.nulls(ROWS)),
    "losses that are missing": column("loss", pa.nulls(ROWS, pa.float32())),
    "one loss that is missing": column("loss", pa.array([*LOSSES[1:], None], pa.float32())),
    "losses in lists": column("loss", pa.array([[0.5]] * ROWS, pa.list_(pa.float32()))),
    "losses in a struct": nested,
    "losses of an extension type": extension,
    "losses twice": twice,
    "numbers of tokens of float": column("n_tokens", pa.array(COUNTS.astype(np.float32))),
    "numbers of tokens of int64": column("n_tokens", pa.array(COUNTS.astype(np.int64))),
    "numbers of tokens of NaN": column("n_tokens", pa.array([NAN] * ROWS, pa.float32())),
    "negative numbers of tokens": column("n_tokens", pa.array(COUNTS - 1)),
    "numbers of tokens missing": column("n_tokens", pa.nulls(ROWS, pa.int32())),
    "lengths of int64": column("length", pa.array(COUNTS.astype(np.int64))),
    "lengths of float": column("length", pa.array(COUNTS.astype(np.float32))),
    "negative lengths": column("length", pa.array(COUNTS - 1)),
    "lengths missing": column("length", pa.nulls(ROWS, pa.int32())),
    "token losses without numbers": column("token_losses", pa.array(LISTS)),
    "fewer token losses": tokens(COUNTS + 1, LISTS),
    "more token losses": tokens(np.maximum(COUNTS, 1) - 1, LISTS),
    "token losses shifted": tokens(np.roll(COUNTS, 1), LISTS),
    "token losses of float64": tokens(COUNTS, LISTS, pa.list_(pa.float64())),
    "token losses of lists": tokens(COUNTS, [[[0.5]]] * ROWS, pa.list_(pa.list_(pa.float32()))),
    "token losses of no lists": column("token_losses", pa.array(LOSSES)),
    "token lists that are missing": tokens(COUNTS, [None, *LISTS[1:]]),
    "token losses that are missing": tokens(COUNTS, [[None] * len(some) for some in LISTS]),
    "keys of floats": column("row_key", pa.array(LOSSES)),
    "keys of small integers": column("row_key", pa.array(COUNTS)),
    "keys of truth": column("row_key", pa.array(COUNTS > 1)),
    "keys of bytes": column("row_key", pa.array([b"a"] * ROWS)),
    "keys in lists": column("row_key", pa.array([[1]] * ROWS)),
    "keys of nothing": column("row_key", pa.nulls(ROWS)),
    "a number that is missing among keys": column("row_key", pa.array([None, *range(1, ROWS)])),
    "a text that is missing among keys": column("row_key", pa.array([None, *"bcdefghijkl"])),
    "keys of rows that are no text": column(
        "row_key", pa.array([b"\xff"] * ROWS, pa.binary()).view(pa.string())
    ),
    "provenance of no JSON": provenance("{"),
    "provenance that is empty": provenance(""),
    "provenance that is no object": provenance("[1, 2]"),
    "provenance of another text": provenance(b"\xff\xfe"),
    "provenance too deep": provenance("[" * 100_000 + "]" * 100_000),
    "provenance too long": provenance('{"rows": 12, "schema": 1, "x": "' + "x" * 1_500_000 + '"}'),
    "provenance much too long": provenance("[" + "[]," * 2_000_000 + "[]]"),
    "rows that are no number": known(rows="12"),
    "rows that are true": known(rows=True),
    "negative rows": known(rows=-12),
    "rows of a fraction": known(rows=12.0),
    "more rows than there are": known(rows=1 << 40),
    "a version that is no number": known(schema="1"),
    "version 0": known(schema=0),
    "a later version": known(schema=2),
    "a hash that is a number": known(model_hash=3),
    "options that are an object": known(options={"a": 1}),
    "a key column that is a number": known(key=3),
    "parts that are a list": known(parts=[{"rows": ROWS}]),
    "parts of other rows": known(parts='[{"rows": 11}]'),
    "options of no JSON": known(options="{"),
    "options of a number": known(options="3"),
    "an index without keys": index(key=None),
    "an index of shards alone": index(key=None, offset=None, size=None),
    "offsets of float": index(offset=pa.array(np.arange(ROWS) * 1024.0)),
    "offsets missing": index(offset=pa.nulls(ROWS, pa.int64())),
    "negative offsets": index(offset=pa.array(np.arange(ROWS) * 1024 - 1024)),
    "samples that overlap": index(offset=pa.array(np.arange(ROWS) * 512)),
    "samples in another order": index(offset=pa.array(np.arange(ROWS)[::-1] * 1024)),
    "samples of no size": index(size=pa.array(np.zeros(ROWS, dtype=np.int64))),
    "samples of huge size": index(size=pa.array(np.full(ROWS, np.iinfo(np.int64).max))),
    "keys of numbers": index(key=pa.array(np.arange(ROWS))),
    "keys of no text": index(
        key=pa.array([b"\xff"] * ROWS, pa.binary()).view(pa.string()),
    ),
    "shards of numbers": index(shard=pa.array(np.arange(ROWS))),
    "shards missing": index(shard=pa.nulls(ROWS, pa.string())),
    "shards of no JSON": index("{"),
    "shards of a list": index("[1]"),
    "shards of numbers in the text": shards(shards=[1]),
    "shards that are a text": shards(shards="a.tar"),
    "a shard twice": shards(shards=["a.tar", "a.tar"], lengths=[9, 9], compressed=[False] * 2),
    "other shards": shards(shards=["b.tar"]),
    "lengths of more shards": shards(lengths=[1, 2]),
    "lengths of text": shards(lengths=["9"]),
    "lengths of truth": shards(lengths=[True]),
    "lengths below any": shards(lengths=[-5]),
    "lengths above any": shards(lengths=[1 << 70]),
    "a shard shorter than its samples": shards(lengths=[1024]),
    "compression of text": shards(compressed=["no"]),
    "no bytes": cut(0),
    "four bytes": cut(4),
    "eleven bytes": cut(11),
    "half of it": cut(900),
    "all but a byte": cut(-1),
    "a byte appended": changed_bytes(lambda whole: whole + b"x"),
    "a page appended": changed_bytes(lambda whole: whole + bytes(4096)),
    "the footer alone": changed_bytes(lambda whole: b"PAR1" + whole[-1500:]),
    "a footer longer than the file": changed_bytes(
        lambda whole: whole[:-8] + b"\xff\xff\xff\x7f" + b"PAR1"
    ),
    "an encrypted footer": changed_bytes(lambda whole: whole[:-4] + b"PARE"),
    "zeros": changed_bytes(lambda whole: bytes(len(whole))),
    "zeros for values": changed_bytes(lambda whole: whole[:4] + bytes(300) + whole[304:]),
    "2**40 rows": claiming(1 << 40),
    "2**62 rows": claiming(1 << 62),
    "2**31 rows": claiming(1 << 31),
    "a page of 2 GB": large_page,
}
SOUND = {
    "lists for large lists": tokens(COUNTS, LISTS, pa.list_(pa.float32())),
    "an index of plain texts": index(),
    "an index of large texts": index(key=pa.array(["a"] * ROWS, pa.large_string())),
    "an index of keys in a dictionary": index(key=pa.array(["a"] * ROWS).dictionary_encode()),
    "keys of large texts": column("row_key", pa.array([*"abcdefghijkl"], pa.large_string())),
    "keys in a dictionary": column("row_key", pa.array([*"abcdefghijkl"]).dictionary_encode()),
    "keys of numbers": column("row_key", pa.array(range(ROWS))),
    "a column of someone else": column("note", pa.array(["a"] * ROWS)),
    "a column with a dot": column("loss.note", pa.array(["a"] * ROWS)),
    "a column of another name twice": lambda path: write(
        path, {"a": pa.array(LOSSES), "b": pa.nulls(ROWS)}
    ),
    "small row groups": lambda path: write(path, row_group_size=5),
    "compressed": lambda path: write(path, compression="zstd"),
    "another version of pages": lambda path: write(path, data_page_version="2.0"),
    "losses of a dictionary": column("loss", pa.array(LOSSES).dictionary_encode()),
}
