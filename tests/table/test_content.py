"""A hash of all rows: one for the same rows however they are stored, another for any other."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from flowdata import LossTable, MismatchError, Provenance
from flowdata.table import content
from flowdata.table.content import content_hash
from flowdata.table.data_columns import RowsOf

ROWS = [
    {
        "id": row,
        "text": f"é{row} " * (row % 7),
        "messages": [{"role": "user", "content": "x" * row}, {"role": "tool", "content": None}][
            : row % 3
        ],
        "input_ids": list(range(row % 11)),
        "score": row / 3 if row % 5 else None,
        "nothing": None,
        "about": {"a": row, "b": ["q"] * (row % 2)} if row % 4 else None,
        "flag": row % 3 == 0,
    }
    for row in range(300)
]


@pytest.fixture
def open_rows(tmp_path):
    """Rows in a JSONL file, as datasets reads it."""

    def opened(rows=ROWS, name="rows.jsonl", **options):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        cache = str(tmp_path / "cache")
        return datasets.load_dataset(
            "json", data_files=str(tmp_path / name), split="train", cache_dir=cache, **options
        )

    return opened


def swapped(rows, one, other):
    rows = list(rows)
    rows[one], rows[other] = rows[other], rows[one]
    return rows


def edited(rows, row, **change):
    return [old | change if number == row else old for number, old in enumerate(rows)]


def test_a_data_set_has_one_hash_however_it_is_stored(open_rows, tmp_path):
    data = open_rows()
    data.save_to_disk(tmp_path / "one")
    data.save_to_disk(tmp_path / "three", num_shards=3)
    data.to_parquet(tmp_path / "rows.parquet")
    backwards = range(299, -1, -1)
    same = {
        "from its cache": open_rows(),
        "in memory": open_rows(keep_in_memory=True),
        "of a list": datasets.Dataset.from_list(ROWS),
        "saved": datasets.load_from_disk(tmp_path / "one"),
        "in shards": datasets.load_from_disk(tmp_path / "three"),
        "as Parquet": datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet")),
        "all of them": data.select(range(300)),
        "by number": data.select([*range(300)]),
        "twice reversed": data.select(backwards).select(backwards),
        "twice reversed, written": data.select(backwards).flatten_indices().select(backwards),
        "of two": datasets.concatenate_datasets(
            [data.select(range(77)), data.select(range(77, 300))]
        ),
        "mapped": data.map(lambda row: row),
        "other columns first": data.select_columns(sorted(data.column_names)),
        "with a format": data.with_format("torch", columns=["id"]),
        "with a transform": data.with_transform(lambda rows: {"x": [0] * len(rows["id"])}),
        "of other widths": data.cast_column("id", datasets.Value("int32")).cast_column(
            "text", datasets.Value("large_string")
        ),
        "as rows of more": RowsOf(open_rows([*ROWS, *ROWS], "twice.jsonl"), range(300)),
    }
    expected = content_hash(data)
    assert expected.startswith("columns-")
    assert {name for name, some in same.items() if content_hash(some) != expected} == set()


def test_types_that_arrow_has_several_of_and_nulls_with_something_behind_them_make_no_difference():
    texts = ["a", None, "", "bc"]
    behind = pa.array(["a", "hidden", "", "bc"])
    hidden = pa.Array.from_buffers(
        pa.string(), 4, [pa.py_buffer(b"\x0d"), *behind.buffers()[1:]], null_count=1
    )
    assert hidden.to_pylist() == texts
    kinds = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()))
    found = [pa.array(texts).cast(kind) for kind in kinds]
    hashes = {content_hash(datasets.Dataset(pa.table({"x": some}))) for some in [*found, hidden]}
    assert len(hashes) == 1
    numbers = [pa.array([1, 2, 300], kind) for kind in (pa.int16(), pa.int64(), pa.uint64())]
    assert len({content_hash(datasets.Dataset(pa.table({"x": some}))) for some in numbers}) == 1
    seconds = pa.array([1, 2]).cast(pa.timestamp("s"))
    days = [seconds.cast(pa.timestamp(unit)) for unit in ("s", "ms", "us")]
    assert len({content_hash(datasets.Dataset(pa.table({"x": some}))) for some in days}) == 1
    lists = [
        pa.array([[1, 2], [3, 4]], kind)
        for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2))
    ]
    assert len({content_hash(datasets.Dataset(pa.table({"x": some}))) for some in lists}) == 1


@pytest.mark.parametrize("make", [datasets.Dataset.from_list, list, tuple])
@pytest.mark.parametrize(
    "other",
    [
        edited(ROWS, 7, text="another"),
        edited(ROWS, 7, flag=True),
        edited(ROWS, 7, score=2.5),
        edited(ROWS, 5, score=0.0),
        edited(ROWS, 7, input_ids=[0, 1, 2, 3, 4, 5, 9]),
        edited(ROWS, 8, about={"a": 8, "b": []}),
        edited(ROWS, 5, messages=[*ROWS[5]["messages"][:1], {"role": "tool", "content": ""}]),
        edited(edited(ROWS, 7, text=ROWS[7]["text"][:-1]), 8, text=" " + ROWS[8]["text"]),
        swapped(ROWS, 7, 8),
        ROWS[:-1],
        [*ROWS, ROWS[-1]],
        [{"number" if name == "id" else name: row[name] for name in row} for row in ROWS],
    ],
)
def test_rows_that_were_edited_or_moved_have_another_hash(make, other):
    assert content_hash(make(ROWS)) == content_hash(make([dict(row) for row in ROWS])) is not None
    assert content_hash(make(other)) != content_hash(make(ROWS))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([(torch.ones(2), 1), (torch.zeros(2), 0)], [(torch.ones(2), 1), (torch.ones(2), 0)]),
        ([{"x": np.arange(3), "y": [1, 2]}], [{"x": np.arange(3), "y": [1, 3]}]),
        ([b"a", b"b"], [b"ab", b""]),
        ([1, 2], [1.0, 2.0]),
        ([["1"], [2]], [[1], [2]]),
        ([True], [1]),
        ([[1], [2, 3]], [[1, 2], [3]]),
    ],
)
def test_rows_of_a_list_are_known_by_all_that_is_in_them(one, other):
    assert content_hash(one) == content_hash(tuple(one)) is not None
    assert content_hash(one) != content_hash(other)


class Opaque:
    """Has no bytes."""


class Read(list):
    """Rows that may be made when they are read."""


@pytest.mark.parametrize(
    "data",
    [
        [Opaque()],
        [{"x": 1, "y": Opaque()}],
        [Image.new("L", (2, 2))],
        Read([1, 2]),
        TensorDataset(torch.ones(3)),
        np.arange(3),
        range(3),
        datasets.Dataset.from_dict({}),
        RowsOf(Read([1, 2]), range(2)),
        RowsOf([1, 2], np.array([0, -1])),
    ],
)
def test_other_data_have_no_such_hash(data):
    assert content_hash(data) is None


def test_more_than_is_cheap_has_no_hash(monkeypatch):
    monkeypatch.setattr(content, "MOST_BYTES", 5_000)
    for make in (list, datasets.Dataset.from_list):
        rows = [{"x": "y" * 400} for _ in range(20)]
        assert content_hash(make(rows)) is None
        assert content_hash(make(rows[:5])) is not None
    # What is left of a large one is small.
    assert content_hash(datasets.Dataset.from_list(rows).select(range(5))) is not None


def test_columns_of_files_are_left_out_and_the_others_are_not(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    paths = [str(tmp_path / "a.png")] * 3
    of_paths = datasets.Dataset.from_dict({"image": paths, "label": [0, 1, 2]}, features=features)
    # Saving puts the bytes in place of the paths.
    of_paths.save_to_disk(tmp_path / "saved")
    saved = datasets.load_from_disk(tmp_path / "saved")
    assert content_hash(saved) == content_hash(of_paths) is not None
    other = datasets.Dataset.from_dict({"image": paths, "label": [0, 2, 1]}, features=features)
    assert content_hash(other) != content_hash(of_paths)
    assert content_hash(of_paths.select_columns(["image"])) is None
    several = datasets.Dataset.from_dict(
        {"images": [paths]}, features=datasets.Features({"images": [datasets.Image()]})
    )
    assert content_hash(several) is None


def test_a_table_refuses_its_data_with_one_row_edited_or_moved(tmp_path, open_rows):
    losses = np.ones(300)
    for make in (list, lambda rows: open_rows(rows, "other.jsonl")):
        table = LossTable.from_losses(losses, dataset=make(ROWS))
        table.save(tmp_path / "table")
        LossTable.load(tmp_path / "table", dataset=make(ROWS))
        for rows in (edited(ROWS, 7, text="another"), swapped(ROWS, 7, 8)):
            with pytest.raises(MismatchError, match=r"changed or reordered\. Score this") as error:
                LossTable.load(tmp_path / "table", dataset=make(rows))
            assert table.provenance.content in str(error.value)


def test_the_same_rows_in_another_kind_of_data_set_are_compared_by_some():
    table = LossTable.from_losses(np.ones(300), dataset=ROWS)
    table.check(dataset=datasets.Dataset.from_list(ROWS))
    table.check(dataset=Read(ROWS))


def test_a_table_of_an_earlier_version_is_compared_by_some_rows():
    losses, other = np.ones(300), edited(ROWS, 7, text="another")
    table = LossTable.from_losses(losses, dataset=ROWS)
    known = json.loads(table.provenance.to_json())
    del known["content"]
    old = LossTable(table.losses, Provenance(**known))
    assert "content" not in old.provenance.identity()
    assert "content" not in json.loads(old.provenance.to_json())
    old.check(dataset=ROWS)
    old.check(dataset=other)
    with pytest.raises(MismatchError):
        old.check(dataset=edited(ROWS, 0, text="another"))


def test_each_table_of_several_refuses_its_rows_with_one_edited():
    parts = [LossTable.from_losses(np.ones(150), dataset=some) for some in (ROWS[:150], ROWS[150:])]
    table = LossTable.concat(parts)
    assert table.provenance.content is None
    for make in (list, datasets.Dataset.from_list):
        table.check(dataset=make(ROWS))
    with pytest.raises(MismatchError, match=r"rows 150 to 299 of the table \(part 1 of 2\)"):
        table.check(dataset=edited(ROWS, 152, text="another"))


def test_rows_that_read_differently_each_time_have_no_hash():
    class Noisy(dict):
        def __getitem__(self, name):
            return torch.rand(2)

    torch.manual_seed(0)
    provenance = Provenance.now(2, dataset=[Noisy(x=1), Noisy(x=2)])
    assert (provenance.data_fingerprint, provenance.content) == (None, None)
