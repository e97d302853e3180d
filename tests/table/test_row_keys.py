"""Keys of rows: each row is found by its own, and what is no key, or there twice, is named."""

import pickle
from functools import partial

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_tables import held

from flowdata import LossTable, MismatchError
from flowdata.table import row_keys, writing
from flowdata.table.row_keys import ROW_KEY, RowKeys

NUMBERS = [5, -3, 1 << 62, 0, -(1 << 63)]
TEXTS = ["a", "", "é\0e9", "x" * 3000, "5"]
LOSSES = np.arange(1, 6) / 4


@pytest.fixture
def path(tmp_path):
    return tmp_path / "table.parquet"


@pytest.mark.parametrize("most", [1, 1 << 18])
@pytest.mark.parametrize("keys", [NUMBERS, TEXTS], ids=["numbers", "texts"])
def test_rows_are_found_by_key_after_saving_in_memory_or_in_the_file(path, monkeypatch, keys, most):
    monkeypatch.setattr(writing, "ROW_GROUP", 2)
    LossTable.from_losses(LOSSES, keys=keys).save(path)
    held(monkeypatch, most)
    table = LossTable.load(path)
    for found in (table, pickle.loads(pickle.dumps(table))):
        assert found.rows_of(keys[::-1]).tolist() == [4, 3, 2, 1, 0]
        assert found.rows_of([]).size == 0
        assert found.keys.tolist() == keys == list(found.keys)
        assert (found.keys[-1], found.keys[1:3]) == (keys[4], keys[1:3])
        assert found.keys.find([keys[2], type(keys[0])(77)]).tolist() == [2, -1]
        assert keys[3] in found.keys
    table.save(path.with_name("again"))
    assert LossTable.load(path.with_name("again")).keys.tolist() == keys


def test_the_file_tells_keys_of_rows_from_those_of_shards(path):
    LossTable.from_losses(LOSSES, keys=TEXTS).save(path)
    file = pq.ParquetFile(path)
    assert file.schema_arrow.names == ["loss", "row_key"]
    assert file.schema_arrow.field("row_key").type == pa.string()
    encodings = file.metadata.row_group(0).column(1).encodings
    assert not any("DICTIONARY" in encoding for encoding in encodings)
    assert LossTable.load(path).index is None


def test_a_file_that_has_a_key_twice_is_found_out_when_rows_are_looked_up(path):
    columns = {"loss": pa.array(LOSSES, pa.float32()), ROW_KEY: pa.array([1, 2, 3, 2, 4])}
    known = {"flowdata": '{"schema": 1, "rows": 5}'}
    pq.write_table(pa.table(columns).replace_schema_metadata(known), path)
    table = LossTable.load(path)
    with pytest.raises(MismatchError, match=r"more than once: 2 \(rows 1 and 3\); a key must"):
        table.rows_of([1])


FORMS = {
    "range": range(5),
    "int32": np.arange(5, dtype=np.int32),
    "uint64": np.arange(5, dtype=np.uint64),
    "objects": np.array(list("abcde"), dtype=object),
    "numpy texts": np.array(list("abcde")),
    "tensor": torch.arange(5),
    "series": pd.Series(range(5)),
    "series of texts": pd.Series(list("abcde")),
    "Arrow": pa.array(range(5)),
    "Arrow chunks": pa.chunked_array([["a", "b"], ["c", "d", "e"]]),
    "Arrow dictionary": pa.array(list("abcde")).dictionary_encode(),
    "column": datasets.Dataset.from_dict({"id": list("abcde")})["id"],
    "column of tensors": datasets.Dataset.from_dict({"id": range(5)}).with_format("torch")["id"],
    "tuple of numpy": tuple(np.arange(5)),
}


@pytest.mark.parametrize("keys", FORMS.values(), ids=FORMS)
def test_keys_come_as_anything_that_has_them(keys):
    table = LossTable.from_losses(LOSSES, keys=keys)
    assert table.keys.tolist() in ([*range(5)], [*"abcde"])
    assert table.rows_of(keys).tolist() == [0, 1, 2, 3, 4]


REFUSED = {
    "too few": ([1, 2], MismatchError, "2 keys for 5 rows"),
    "twice": ([1, 2, 3, 2, 1], MismatchError, r"2 \(rows 1 and 3\), 1 \(rows 0 and 4\); a key"),
    "texts twice": (["a"] * 5, MismatchError, r"'a' \(rows 0 and 1\), .*rows apart"),
    "missing": ([1, 2, None, 4, 5], TypeError, "row 2 has the key None"),
    "missing in Arrow": (pa.array([1, 2, None, 4, 5]), ValueError, "row 2 has no key"),
    "booleans": ([True] * 5, TypeError, "row 0 has the key True"),
    "fractions": ([1.5] * 5, TypeError, r"row 0 has the key 1\.5"),
    "floats": (np.ones(5), TypeError, "got float64 .*whole numbers become floats"),
    "mixed": ([1, "a", 2, 3, 4], TypeError, "row 1 has the text 'a', others have numbers"),
    "too large": ([0, 1 << 63, 1, 2, 3], ValueError, "row 1 has the key 9223372036854775808"),
    "too large for a type": (
        np.array([1 << 63, 0, 1, 2, 3], dtype=np.uint64),
        ValueError,
        "row 0 has the key 9223372036854775808",
    ),
    "surrogates": (["a", "\udc80", "b", "c", "d"], ValueError, r"row 1 has the key '\\udc80'"),
    "one text": ("abcde", TypeError, "got one str"),
    "a number": (5, TypeError, "got int"),
    "a table": (np.ones((5, 1), dtype=int), ValueError, r"shape \(5, 1\)"),
    "dates": (pa.array([0] * 5, pa.date32()), TypeError, "Arrow values of type date32"),
}


@pytest.mark.parametrize(("keys", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_key_or_there_twice_is_refused_by_name(keys, error, text):
    with pytest.raises(error, match=text):
        LossTable.from_losses(LOSSES, keys=keys)


def test_keys_that_no_row_has_are_named():
    table = LossTable.from_losses(LOSSES, keys=NUMBERS)
    with pytest.raises(MismatchError, match=r"7 of 8 keys are .*: 7, 8, 9, 10, 11, and 2 more;"):
        table.rows_of([5, *range(7, 14)])
    with pytest.raises(MismatchError, match=r"whole numbers for keys, such as 5, and .* 'a'"):
        table.rows_of(["a"])
    with pytest.raises(MismatchError, match="'a', and these are whole numbers, such as 3:"):
        LossTable.from_losses(LOSSES, keys=TEXTS).rows_of([3])
    with pytest.raises(MismatchError, match="this loss table has no keys"):
        LossTable.from_losses(LOSSES).rows_of([1])


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.sets(st.text()), st.sets(st.integers(-(1 << 63), (1 << 63) - 1))), st.data())
def test_each_key_leads_to_its_own_row_also_where_hashes_are_equal(keys, data):
    keys = data.draw(st.permutations(sorted(keys)))
    asked = data.draw(st.lists(st.sampled_from(keys))) if keys else []
    for bits in (64, 1, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(row_keys.xxhash, "xxh3_64_intdigest", partial(_hash, 1 << bits))
            found = RowKeys.given(keys, rows=len(keys))
            assert found.find(asked).tolist() == [keys.index(key) for key in asked]
            if found.is_text:
                assert found.find(["a" * 99]).tolist() == [-1]
                with pytest.raises(MismatchError, match=f"0 and {len(keys)}"):
                    RowKeys.given([*keys, keys[0]], rows=len(keys) + 1)


def _hash(most, text):
    return int(xxhash.xxh3_64_hexdigest(text), 16) % most


def test_many_keys_at_once_are_found_as_a_few_are(monkeypatch):
    rng = np.random.default_rng(0)
    for keys in (rng.permutation(3000) * 7 - 9000, [f"é{key}" for key in range(3000)]):
        found = LossTable.from_losses(np.ones(3000), keys=keys)
        order = rng.integers(0, 3000, size=5000)
        asked = np.asarray(found.keys)[order]
        alone = found.rows_of(asked)
        with monkeypatch.context() as patch:
            patch.setattr(row_keys, "_PIECE", 100)
            assert found.rows_of(asked).tolist() == alone.tolist() == order.tolist()
            assert list(found.keys) == found.keys.tolist()
            again = RowKeys.given(keys, rows=3000)
            assert found.keys.same_as(again)
            assert not found.keys.same_as(again.take(np.arange(3000)[::-1]))
