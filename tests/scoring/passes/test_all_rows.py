"""A pass goes on, and its table is given, for the very rows that were scored."""

import json

import datasets
import pytest
from scoring_lines import Line, Stop, absolute, rows_saved

from flowdata import LossTable, MismatchError, score
from flowdata.scoring.parts.folder import Parts
from flowdata.table import provenance
from flowdata.table.part_file import read_part, write_part

ROWS = [{"id": f"row {row}", "x": float(row)} for row in range(50)]


def own(model, batch):
    return absolute(model, batch["x"].float())


def scored(output, rows, most=None, **options):
    absolute.rows, absolute.most = 0, most
    options = {"batch_size": 5, "save_every": 0.0, "progress": False} | options
    return score(Line(), rows, own, output=output, **options)


def stopped(output, rows, most=30, **options):
    with pytest.raises(Stop):
        scored(output, rows, most, **options)


@pytest.fixture(params=["jsonl", "list"])
def opened(request, tmp_path):
    """Rows as they are in a JSONL file, opened anew."""

    def from_file(rows, name="rows.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return datasets.load_dataset(
            "json",
            data_files=str(tmp_path / name),
            split="train",
            cache_dir=str(tmp_path / "cache"),
        )

    return from_file if request.param == "jsonl" else lambda rows: [dict(row) for row in rows]


def edited(row, rows=ROWS):
    return [*rows[:row], rows[row] | {"x": 0.5}, *rows[row + 1 :]]


SWAPPED = [ROWS[0], ROWS[2], ROWS[1], *ROWS[3:]]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("rows", [edited(1), edited(40), SWAPPED], ids=["1", "40", "swapped"])
def test_one_row_edited_or_two_swapped_are_another_pass(tmp_path, opened, rows, finished):
    output = tmp_path / "losses.parquet"
    if finished:
        scored(output, opened(ROWS))
    else:
        stopped(output, opened(ROWS))
    with pytest.raises(MismatchError, match="its rows are not those that were scored") as error:
        scored(output, opened(rows))
    assert "or choose another output" in str(error.value)
    assert scored(output, opened(ROWS)).losses.tolist() == list(range(50))
    assert absolute.rows == (0 if finished else 20)


def test_a_table_of_an_earlier_version_goes_with_the_rows_it_is_known_by(tmp_path, opened):
    output = tmp_path / "losses.parquet"
    without_content(scored(None, opened(ROWS))).save(output)
    assert scored(output, opened(ROWS)).losses.tolist() == list(range(50))
    assert absolute.rows == 0
    with pytest.raises(MismatchError, match="data_fingerprint"):
        scored(output, opened(edited(0)))


def without_content(table):
    known = json.loads(table.provenance.to_json())
    del known["content"]
    return LossTable(table.losses, type(table.provenance)(**known))


def test_a_pass_that_an_earlier_version_began_goes_on_with_the_rows_it_went_on_with(
    tmp_path, opened
):
    output = tmp_path / "losses.parquet"
    stopped(output, opened(ROWS), most=15)
    folder = Parts(output).folder
    begun = json.loads((folder / "identity.json").read_text())
    del begun["content"]
    (folder / "identity.json").write_text(json.dumps(begun))
    for path in folder.glob("*.parquet"):
        write_part(path, read_part(path).scores, begun)
    stopped(output, opened(ROWS))
    assert rows_saved(output) == set(range(30))
    with pytest.raises(MismatchError, match="its rows are not those that were scored"):
        scored(output, opened(edited(1)))
    assert scored(output, opened(ROWS)).losses.tolist() == list(range(50))
    assert absolute.rows == 20
    assert LossTable.load(output).provenance.content is not None


def test_parts_of_rows_that_were_edited_since_are_not_merged(tmp_path, opened):
    for job, rows in enumerate([ROWS, edited(40)]):
        scored(tmp_path / f"{job}.parquet", opened(rows), shard=(job, 2))
    folders = [tmp_path / f"{job}.parquet.parts" for job in range(2)]
    with pytest.raises(MismatchError, match="its rows are not those that were scored"):
        LossTable.merge(folders)
    with pytest.raises(MismatchError, match="its rows are not those"):
        scored(tmp_path / "0.parquet", opened(edited(40)), shard=(1, 2))


def test_jobs_that_open_the_same_rows_in_two_ways_are_of_one_pass(tmp_path):
    makes = [list, datasets.Dataset.from_list]
    for job, make in enumerate(makes):
        scored(tmp_path / "losses.parquet", make(ROWS), shard=(job, 2))
    table = LossTable.merge(tmp_path / "losses.parquet.parts")
    assert table.losses.tolist() == list(range(50))


@pytest.mark.parametrize("key", [None, "id"])
def test_known_rows_are_all_compared(tmp_path, opened, key):
    known = scored(None, opened(ROWS), key=key)
    new = {"id": "new", "x": 7.0}
    # With keys they are found wherever they are.
    grown = [*ROWS, new] if key is None else [new, *ROWS[::-1]]
    assert sorted(scored(None, opened(grown), key=key, known=known).losses) == sorted(
        [*range(50), 7.0]
    )
    assert absolute.rows == 1
    with pytest.raises(MismatchError, match="rows were changed or reordered"):
        scored(None, opened(other(grown)), key=key, known=known)


def other(rows):
    return [row | {"x": 0.5} if row["id"] == "row 1" else row for row in rows]


def test_all_rows_are_gone_through_once(tmp_path, monkeypatch):
    gone_through = []
    real = provenance.content_hash
    monkeypatch.setattr(
        provenance, "content_hash", lambda data: gone_through.append(data) or real(data)
    )
    scored(tmp_path / "losses.parquet", ROWS)
    assert len(gone_through) == 1
