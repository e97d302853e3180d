"""Parts on disk: they come back as they were, or it is noticed."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowdata import TableFileError
from flowdata.table.parquet import DamagedFileError
from flowdata.table.part_file import read_part, write_part
from flowdata.table.scored_rows import ScoredRows

IDENTITY = {"rows": 60, "loss": "mse", "model_hash": "a1", "options": {}}
NAMES = ("rows", "losses", "n_tokens", "token_losses", "truncated", "lengths")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "part.parquet"


def scores(rows=40):
    random = np.random.default_rng(0)
    counts = np.arange(rows, dtype=np.int32) % 4
    return ScoredRows(
        random.permutation(rows),
        random.random(rows, dtype=np.float32),
        counts,
        random.random(int(counts.sum()), dtype=np.float32),
        counts == 1,
        counts + 5,
    )


def same(found, expected):
    return all(
        (getattr(found, name) is None and getattr(expected, name) is None)
        or np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True)
        for name in NAMES
    )


def test_a_part_comes_back_from_disk_as_it_was(path):
    part = scores()
    part.losses[3] = np.nan
    write_part(path, part, IDENTITY)
    found = read_part(path)
    assert same(found.scores, part)
    assert found.identity == IDENTITY
    earlier = replace(part, lengths=None)
    write_part(path, earlier, IDENTITY)
    assert same(read_part(path).scores, earlier)
    plain = ScoredRows(part.rows, part.losses)
    write_part(path, plain, IDENTITY)
    assert same(read_part(path).scores, plain)


def test_a_byte_changed_in_the_losses_of_a_part_is_noticed(path):
    part = scores()
    write_part(path, part, IDENTITY)
    whole = path.read_bytes()
    for values in (part.losses, part.token_losses):
        place = whole.index(values.tobytes())
        changed = bytearray(whole)
        changed[place + 50] ^= 1
        path.write_bytes(changed)
        with pytest.raises(DamagedFileError, match=r"part\.parquet is not.*CRC"):
            read_part(path)


def test_a_part_that_cannot_be_written_leaves_nothing_behind(path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_part(path, scores(), IDENTITY)
    assert list(path.parent.iterdir()) == []


def rewritten(path, change):
    """The part with other columns or metadata, its pages sound."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)


def renamed(identity):
    def change(table):
        known = json.loads(table.schema.metadata[b"flowdata.part"])
        known["identity"] = identity
        return table.replace_schema_metadata({"flowdata.part": json.dumps(known)})

    return change


CHANGES = {
    "another model": renamed(IDENTITY | {"model_hash": "b2"}),
    "no identity": renamed(None),
    "a list for an identity": renamed([1]),
    "metadata of no JSON": lambda t: t.replace_schema_metadata({"flowdata.part": "{"}),
    "metadata of a number": lambda t: t.replace_schema_metadata({"flowdata.part": "3"}),
    "metadata too deep": lambda t: t.replace_schema_metadata({"flowdata.part": "[" * 99_999}),
    "a row fewer": lambda t: t.slice(1),
    "rows in another order": lambda t: t.take(pa.array(range(len(t) - 1, -1, -1))),
    "rows twice": lambda t: pa.concat_tables([t, t]),
    "a negative row": lambda t: t.set_column(0, "row", pa.array(np.arange(len(t)) - 1)),
    "other losses": lambda t: t.set_column(1, "loss", pa.array(np.ones(len(t), np.float32))),
    "losses of float64": lambda t: t.set_column(1, "loss", t["loss"].cast(pa.float64())),
    "losses that are missing": lambda t: t.set_column(1, "loss", pa.nulls(len(t), pa.float32())),
    "no losses": lambda t: t.drop_columns(["loss"]),
    "losses twice": lambda t: t.append_column("loss", t["loss"]),
    "no numbers of tokens": lambda t: t.drop_columns(["n_tokens"]),
    "no lengths": lambda t: t.drop_columns(["length"]),
    "other lengths": lambda t: t.set_column(5, "length", pa.array(np.ones(len(t), np.int32))),
    "negative lengths": lambda t: t.set_column(5, "length", pa.array(np.full(len(t), -1, "i4"))),
    "no truncation": lambda t: t.drop_columns(["truncated"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_part_that_holds_something_else_than_was_written_is_called_damaged(path, change):
    write_part(path, scores(), IDENTITY)
    rewritten(path, change)
    with pytest.raises(DamagedFileError, match=r"part\.parquet is damaged"):
        read_part(path)


def test_a_part_of_an_earlier_version_has_no_identity(path):
    write_part(path, scores(), IDENTITY)
    rewritten(path, lambda table: table.replace_schema_metadata(None))
    assert read_part(path).identity is None


def test_a_part_that_is_not_there_is_not_called_damaged(path):
    with pytest.raises(TableFileError, match="there is no part at") as error:
        read_part(path)
    assert not isinstance(error.value, DamagedFileError)
