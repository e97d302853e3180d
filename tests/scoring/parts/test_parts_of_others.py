"""Folders of parts with what other passes, versions and failing disks left in them."""

import errno
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from long_run import LONG
from scoring_lines import Line, Stop, absolute, scored

from flowdata import FlowDataWarning, MismatchError, TableFileError
from flowdata.scoring.parts.folder import Parts
from flowdata.table import parquet, part_file
from flowdata.table.part_file import read_part, write_part
from flowdata.table.scored_rows import ScoredRows

RESULT = list(range(50))


def paths(output):
    return sorted(Parts(output).folder.glob("*.parquet"))


def contents(output):
    folder = Parts(output).folder
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ""}


def others_part(output, rows=50, slope=3.0):
    """A part of a pass of another model, in the folder of this one."""
    identity = json.loads((Parts(output).folder / "identity.json").read_text())
    identity |= {"model_hash": "b" * 32, "rows": rows}
    name = Parts(output).folder / f"{'e' * 32}.parquet"
    at = np.arange(rows - 30, rows)
    write_part(name, ScoredRows(at, (slope * at).astype(np.float32)), identity)
    return name


def plain_part(output, name, rows, losses):
    """A part as earlier versions wrote it."""
    table = pa.table({"row": pa.array(rows, pa.int64()), "loss": pa.array(losses, pa.float32())})
    pq.write_table(table, Parts(output).folder / name, write_page_checksum=True)


# What is of another pass


def test_a_part_of_another_model_is_left_out_and_left_alone(unfinished):
    other = others_part(unfinished)
    with pytest.warns(FlowDataWarning, match=f"{other.name}.*does not belong here.*model_hash"):
        assert scored(unfinished).losses.tolist() == RESULT
    assert absolute.rows == 30
    assert read_part(other).scores.losses[0] == 60.0


def test_a_rank_that_outlived_its_pass_changes_nothing_in_another(tmp_path):
    output = tmp_path / "losses.parquet"
    with pytest.raises(Stop):
        scored(output, model=Line(3.0), most=20)
    late = [(path.name, path.read_bytes()) for path in paths(output)]
    shutil.rmtree(Parts(output).folder)

    def while_late(model, batch):
        for name, content in late:
            (Parts(output).folder / name).write_bytes(content)
        return absolute(model, batch)

    with pytest.warns(FlowDataWarning, match="is left out"):
        table = scored(output, loss=while_late)
    assert table.losses.tolist() == RESULT


@pytest.mark.parametrize("rows", [60, 5000])
def test_a_part_of_a_longer_data_set_is_left_out(unfinished, rows):
    others_part(unfinished, rows=rows)
    with pytest.warns(FlowDataWarning, match="it has rows="):
        assert scored(unfinished).losses.tolist() == RESULT


def test_parts_of_an_earlier_version_count_when_they_were_there_first(unfinished):
    folder = Parts(unfinished).folder
    (folder / "without_identity.json").unlink()
    for path in paths(unfinished):
        part = read_part(path)
        path.unlink()
        plain_part(unfinished, path.name, part.scores.rows, part.scores.losses)
    with pytest.raises(Stop):
        scored(unfinished, most=30)
    # One that comes after this version has met the folder is nobody's.
    plain_part(unfinished, "later.parquet", [40], [9.0])
    with pytest.warns(FlowDataWarning, match="later.parquet does not say of which pass it is"):
        assert scored(unfinished).losses.tolist() == RESULT
    assert absolute.rows == 20


@pytest.mark.parametrize(
    ("rows", "losses", "message"),
    [
        ([50], [1.0], r"extra\.parquet has row 50, of 50 rows"),
        ([-1], [1.0], r"extra\.parquet is damaged: it has scores of a row -1"),
        ([3, 3], [3.0, 3.0], r"extra\.parquet is damaged: it has row 3 more than once"),
    ],
)
def test_impossible_rows_of_a_part_of_an_earlier_version_are_left_out(
    unfinished, rows, losses, message
):
    (Parts(unfinished).folder / "without_identity.json").unlink()
    plain_part(unfinished, "extra.parquet", rows, losses)
    with pytest.warns(FlowDataWarning, match=message):
        assert scored(unfinished).losses.tolist() == RESULT


def test_parts_without_identity_that_contradict_others_are_refused_by_name(unfinished):
    (Parts(unfinished).folder / "without_identity.json").unlink()
    plain_part(unfinished, "extra.parquet", [3], [99.0])
    with pytest.raises(TableFileError, match=r"extra\.parquet has another loss of row 3 than"):
        scored(unfinished)
    assert absolute.rows == 0


# What cannot be read


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ENOENT]
)
def test_a_part_that_cannot_be_opened_is_no_damaged_one(unfinished, monkeypatch, code):
    before = contents(unfinished)

    def failing(name, *arguments):
        raise OSError(code, os.strerror(code), name)

    monkeypatch.setattr(parquet, "RETRY_WAITS", ())
    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.OSFile", failing)
        with pytest.raises(TableFileError, match=paths(unfinished)[0].name):
            scored(unfinished)
    assert absolute.rows == 0
    assert contents(unfinished) == before
    assert scored(unfinished).losses.tolist() == RESULT
    assert absolute.rows == 30


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(unfinished, monkeypatch, code):
    before, listdir = contents(unfinished), os.listdir

    def failing(path="."):
        if str(path).endswith(".parts"):
            raise OSError(code, os.strerror(code))
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", failing)
        with pytest.raises(TableFileError, match=f"cannot read .*{os.strerror(code)}"):
            scored(unfinished)
    assert contents(unfinished) == before


def test_a_pipe_or_a_folder_among_the_parts_keeps_nobody_waiting(unfinished):
    for make in (os.mkfifo, os.mkdir):
        path = Parts(unfinished).folder / "0.parquet"
        make(path)
        with pytest.raises(TableFileError, match=r"0\.parquet is not a readable Parquet file, but"):
            scored(unfinished)
        path.rmdir() if path.is_dir() else path.unlink()


def test_a_flipped_bit_anywhere_in_a_part_is_noticed_or_changes_nothing(unfinished, monkeypatch):
    monkeypatch.setattr(part_file, "replacing", None)
    path = paths(unfinished)[0]
    sound, whole = read_part(path), path.read_bytes()
    places = [(byte, bit) for byte in range(len(whole)) for bit in range(8)]
    for byte, bit in places if LONG else places[::97]:
        changed = bytearray(whole)
        changed[byte] ^= 1 << bit
        path.write_bytes(changed)
        try:
            found = read_part(path)
        except TableFileError as error:
            text = str(error)
        else:
            # Without an identity it is left out.
            assert found.identity in (sound.identity, None)
            if found.identity is not None:
                assert found.scores.losses.tobytes() == sound.scores.losses.tobytes()
                assert found.scores.rows.tolist() == sound.scores.rows.tolist()
            continue
        assert path.name in text


@pytest.mark.parametrize("places", [range(4, 500, 60), range(-300, 0, 50)])
def test_a_damaged_part_is_set_aside_and_never_deleted(unfinished, places):
    path = paths(unfinished)[0]
    whole = bytearray(path.read_bytes())
    for place in places:
        whole[place] ^= 0xFF
    path.write_bytes(whole)
    with pytest.warns(FlowDataWarning, match=path.name):
        assert scored(unfinished).losses.tolist() == RESULT
    assert absolute.rows == 35
    (aside,) = Parts(unfinished).folder.iterdir()
    assert aside.name.startswith(path.name)
    assert aside.read_bytes() == whole
    # It hinders nobody.
    unfinished.unlink()
    assert scored(unfinished, model=Line(2.0)).losses.tolist() == [2 * row for row in RESULT]


# What the folder says of itself

DAMAGES = {
    "empty": b"",
    "cut off": b'{"rows": 50, "lo',
    "no JSON": b"rows: 50",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "no UTF-8": b"\xff\xfe\x00",
    "too deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", [*DAMAGES.values(), None], ids=[*DAMAGES, "missing"])
@pytest.mark.parametrize("name", ["identity.json", "without_identity.json"])
def test_a_folder_whose_own_files_are_damaged_goes_on_by_its_parts(unfinished, name, content):
    path = Parts(unfinished).folder / name
    path.unlink() if content is None else path.write_bytes(content)
    if name == "identity.json":
        with pytest.raises(MismatchError, match="model_hash"):
            scored(unfinished, model=Line(3.0))
    assert scored(unfinished).losses.tolist() == RESULT
    assert absolute.rows == 30


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_nothing_is_guessed_of_parts_that_nobody_vouches_for(unfinished, content):
    folder = Parts(unfinished).folder
    for path in paths(unfinished):
        part = read_part(path)
        plain_part(unfinished, path.name, part.scores.rows, part.scores.losses)
    (folder / "without_identity.json").unlink()
    (folder / "identity.json").write_bytes(content)
    with pytest.raises(TableFileError, match=r"identity\.json is missing or damaged.*restore it"):
        scored(unfinished)
    assert len(paths(unfinished)) == 4
