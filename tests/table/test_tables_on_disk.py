"""Tables that stay in their file: the same values and figures, and damage found when it is read."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_tables import REFUSED
from stored_tables import COUNTS, GROUP, KINDS, ROWS, held, index_of, values_of, write

from flowdata import LossTable, ShardIndex, TableFileError
from flowdata.table import columns, shard_lists, writing
from flowdata.table.parquet import DamagedFileError, Kind, open_parquet, open_reader


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


@pytest.fixture
def read(monkeypatch):
    """Columns and row groups that are read from files, as they are."""
    groups = []
    real = open_reader

    def recording(source, footer=None):
        file = real(source, footer)
        read_row_group = file.read_row_group

        def read(number, columns, **options):
            groups.append((*columns, number))
            return read_row_group(number, columns=columns, **options)

        file.read_row_group = read
        return file

    monkeypatch.setattr(columns, "open_reader", recording)
    return groups


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_its_file_knows_all_that_one_in_memory_does(path, kind, monkeypatch, read):
    write(path, kind, monkeypatch)
    in_memory = LossTable.load(path)
    values = values_of(in_memory)
    held(monkeypatch, 100)
    in_file = LossTable.load(path)
    assert not read
    assert values_of(in_file) == values
    assert read
    assert values_of(pickle.loads(pickle.dumps(LossTable.load(path)))) == values
    if in_file.index is not None:
        alone = ShardIndex.load(path)
        assert alone.bounds().tolist() == values["bounds"]
        assert alone.of_shard(3).keys.to_pylist() == values["samples"][3][1]
    again = path.with_name("again.parquet")
    LossTable.load(path).save(again)
    assert values_of(LossTable.load(again)) == values
    if kind == "tokens":
        assert LossTable.load(path, tokens=True).token_losses.size == in_memory.n_tokens.sum()


@pytest.mark.parametrize("most", [0, 1 << 18])
def test_an_index_alone_is_saved_and_loaded_with_its_shards(path, monkeypatch, most):
    monkeypatch.setattr(shard_lists, "MOST_TEXT", most)
    index = index_of()
    index.save(path)
    for rows in (1 << 20, 100):
        held(monkeypatch, rows)
        found = ShardIndex.load(path)
        assert found.bounds().tolist() == index.bounds().tolist()
        assert (found.shards, found.versions) == (index.shards, index.versions)
        assert found.of_shard(6).offsets.tolist() == index.of_shard(6).offsets.tolist()
        assert found.key(5) == "key0005\udce9" == found.of_shard(1).key(5)
        assert found.key(-1) == found.key(len(found) - 1)


@pytest.mark.parametrize("most", [0, 1 << 18])
@pytest.mark.parametrize("rows", [100, 1 << 20])
def test_an_index_that_has_a_shard_twice_is_damaged(path, monkeypatch, most, rows):
    monkeypatch.setattr(shard_lists, "MOST_TEXT", most)
    index = index_of()
    index.shards = (*index.shards[:-1], index.shards[1])
    index.save(path)
    held(monkeypatch, rows)
    with pytest.raises(DamagedFileError, match="it has a shard twice"):
        ShardIndex.load(path)


def test_loading_reads_no_column_and_a_part_reads_its_row_groups(path, monkeypatch, read):
    write(path, "shards", monkeypatch)
    held(monkeypatch, 100)
    table = LossTable.load(path)
    bounds = table.index.bounds()
    assert read == []
    table.index.of_shard(3)
    first, last = bounds[3] // GROUP, (bounds[4] - 1) // GROUP
    groups = range(first, last + 1)
    assert sorted(read) == [(name, n) for name in ("key", "offset", "size") for n in groups]
    del read[:]
    # The next shard begins in a row group that is still there.
    table.index.of_shard(5)
    assert {number for _, number in read} <= {last, last + 1}
    del read[:]
    weights = table.weights(0.5, on_invalid="drop")
    assert table.weights(0.5, on_invalid="drop") is weights
    assert table.weights(np.float64(0.5), on_invalid="drop") is weights
    passes = len(read) / (ROWS // GROUP + 1)
    assert {name for name, _ in read} == {"loss"}
    assert passes == 2
    del read[:]
    weights.part(0, 10)
    assert read == [("loss", 0)]


def page_of(path, name, group):
    """Where the values of a row group of a column lie in a file."""
    column = pq.ParquetFile(path).metadata.row_group(group)
    place = [i for i in range(column.num_columns) if column.column(i).path_in_schema == name]
    found = column.column(place[0])
    start = found.data_page_offset
    return start + found.total_compressed_size // 2


@pytest.mark.parametrize("name", ["loss", "key", "offset", "size"])
def test_damage_in_a_row_group_is_found_when_that_is_read(path, name, monkeypatch):
    write(path, "shards", monkeypatch)
    held(monkeypatch, 100)
    content = bytearray(path.read_bytes())
    content[page_of(path, name, 12)] ^= 1
    path.write_bytes(content)
    table = LossTable.load(path)
    row = 12 * GROUP + 5
    shard = int(np.searchsorted(table.index.bounds(), row, side="right")) - 1
    assert len(table.index.of_shard(3)) == 300
    readers = {
        "loss": [lambda: table.weights(0.5, on_invalid="drop"), lambda: table.losses],
        "key": [lambda: table.index.of_shard(shard), lambda: table.index.keys],
        "offset": [lambda: table.index.of_shard(shard), lambda: table.index.offsets],
        "size": [lambda: table.index.of_shard(shard), lambda: table.index.sizes],
    }
    for read in readers[name]:
        with pytest.raises(DamagedFileError, match=r"or restore the file") as error:
            read()
        assert str(path) in str(error.value)


def test_places_that_contradict_each_other_are_found_when_their_shard_is_read(path, monkeypatch):
    write(path, "shards", monkeypatch)
    table = pq.read_table(path)
    offsets = table["offset"].to_numpy().copy()
    offsets[700] = offsets[701]
    changed = table.set_column(table.column_names.index("offset"), "offset", pa.array(offsets))
    pq.write_table(changed, path)
    with pytest.raises(DamagedFileError, match="the places of the samples contradict"):
        LossTable.load(path)
    held(monkeypatch, 100)
    index = LossTable.load(path).index
    assert len(index.of_shard(3)) == 300
    with pytest.raises(DamagedFileError, match=r"in 006\.tar, the places of the samples contra"):
        index.of_shard(6)
    with pytest.raises(DamagedFileError, match="the places of the samples contradict"):
        index.sizes  # noqa: B018


def test_shards_of_other_numbers_of_rows_than_a_file_says_are_damage(path, monkeypatch):
    write(path, "shards", monkeypatch)
    table = pq.read_table(path)
    texts = dict(table.schema.metadata)
    lists = json.loads(texts[b"flowdata.shards"])
    for rows, most, text in (
        ([*COUNTS[:-1], 5], 100, "its shards have 1,005 rows, but the file 1,000"),
        ([-1, 131, *COUNTS[2:]], 100, "its rows have a number that none can be"),
        ([1, 129, *COUNTS[2:]], 1 << 20, "its shards have other numbers of rows than it says"),
        ([1000], 100, "it has 8 shards, but rows of 1"),
        ([float(count) for count in COUNTS], 100, "its rows are no list of int"),
    ):
        held(monkeypatch, most)
        texts[b"flowdata.shards"] = json.dumps(lists | {"rows": rows}).encode()
        pq.write_table(table.replace_schema_metadata(texts), path)
        with pytest.raises(DamagedFileError, match=text):
            LossTable.load(path)


def test_long_lists_of_shards_are_a_block_of_which_nothing_is_believed(path, monkeypatch):
    write(path, "many shards", monkeypatch)
    whole = path.read_bytes()
    text = pq.ParquetFile(path).schema_arrow.metadata[b"flowdata.shards"]
    place = json.loads(text)["shards"]
    assert place["start"] == shard_lists.BLOCK_START
    for byte in range(place["start"], place["start"] + place["size"], 37):
        changed = bytearray(whole)
        changed[byte] ^= 4
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match="the block of its shards is not what"):
            LossTable.load(path)
    path.write_bytes(whole)
    table = pq.read_table(path)
    # Another program that copies the texts of a file leaves the block behind.
    pq.write_table(table, path)
    with pytest.raises(DamagedFileError, match="or another program wrote the file anew"):
        LossTable.load(path)
    for other in (place, {}, place | {"start": -4}, place | {"size": 1 << 60}, place | {"xxh3": 3}):
        texts = {**table.schema.metadata, b"flowdata.shards": json.dumps({"shards": other})}
        pq.write_table(table.replace_schema_metadata(texts), path)
        with pytest.raises(
            DamagedFileError, match=r"its shards (are nowhere|is not what)|block of"
        ):
            LossTable.load(path)


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_table_that_is_none_is_refused_when_it_is_read_at_the_latest(path, make, monkeypatch):
    make(path)
    held(monkeypatch, 0)
    try:
        values_of(LossTable.load(path))
        # Its token losses are wrong, and were not read.
        LossTable.load(path, tokens=True)
    except TableFileError as error:
        refused = str(error)
    assert str(path) in refused
    assert len(refused) < 1000


def test_a_table_may_be_saved_over_its_own_file(path, monkeypatch):
    write(path, "many shards", monkeypatch)
    held(monkeypatch, 100)
    table = LossTable.load(path)
    table.save(path)
    assert values_of(LossTable.load(path)) == values_of(table)


def test_numbers_of_tokens_below_zero_are_found_when_they_are_read(path, monkeypatch):
    write(path, "plain", monkeypatch)
    table = pq.read_table(path)
    counts = np.ones(ROWS, dtype=np.int32)
    counts[600] = -3
    pq.write_table(table.append_column("n_tokens", pa.array(counts)), path)
    held(monkeypatch, 100)
    table = LossTable.load(path)
    with pytest.raises(DamagedFileError, match="row 600 has -3 in n_tokens"):
        table.n_tokens  # noqa: B018


@pytest.mark.parametrize(("most", "groups"), [(1 << 14, 16), (16, 16), (15, 8), (2, 2), (1, 1)])
def test_row_groups_are_larger_where_there_would_be_too_many(path, monkeypatch, most, groups):
    monkeypatch.setattr(writing, "MOST_GROUPS", most)
    write(path, "shards", monkeypatch)
    assert pq.ParquetFile(path).metadata.num_row_groups == groups
    held(monkeypatch, 100)
    assert LossTable.load(path).index.keys.to_pylist() == index_of().keys.to_pylist()


def test_weights_that_are_asked_for_again_are_checked_again(path, monkeypatch):
    write(path, "plain", monkeypatch)
    held(monkeypatch, 100)
    table = LossTable.load(path)
    options = {"on_invalid": "drop"}
    one = table.weights(1.0, **options)
    assert table.weights(np.array(1.0), **options).fingerprint == one.fingerprint
    assert table.weights(1, normalize="sum", **options).fingerprint == one.fingerprint
    assert table.weights(1.0, normalize="sum", **options).mean == 1 / ROWS
    for wrong in (True, [1.0], -1.0):
        with pytest.raises(ValueError, match="temperature must be a positive, finite number"):
            table.weights(wrong, **options)
    with pytest.raises(ValueError, match=r"2 of 1,000 losses .*row 7: nan, row 500: nan\)"):
        table.weights(1.0)


def test_runs_of_rows_of_a_column_are_those_of_an_array(path, monkeypatch):
    write(path, "shards", monkeypatch)
    losses, keys = LossTable.load(path).losses, LossTable.load(path).index.keys
    with open_parquet(path, what="table", remedy="none") as file:
        stored = columns.StoredFile(file)
    numbers = columns.StoredColumn(stored, "loss", Kind.FLOAT32)
    texts = columns.StoredColumn(stored, "key", Kind.TEXT)
    ends = (None, 0, 1, GROUP - 1, GROUP, GROUP + 1, 700, ROWS, ROWS + 9, -1, -ROWS - 5)
    for rows in (slice(start, stop) for start in ends for stop in ends):
        assert numbers[rows].tobytes() == losses[rows].tobytes()
        assert texts[rows].to_pylist() == keys.to_pylist()[rows]
    assert numbers[3:4].dtype == numbers.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        numbers[:5][0] = 1.0
    with pytest.raises(ValueError, match="in runs of rows, got the step -1"):
        numbers[::-1]
