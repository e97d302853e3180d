"""Outputs in object stores: S3 by moto, with faults, and what fsspec keeps in memory."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from flaky_store import FlakyStore
from long_run import LONG
from object_store import forget_file_systems, object_store
from scoring_lines import Line, Stop, absolute, scored

from flowdata import FlowDataWarning, LossTable, MismatchError, TableFileError, lengths, score
from flowdata.files import place_of
from flowdata.objects import ObjectPath, without_secrets

RESULT = list(range(50))


@pytest.fixture(scope="module")
def client():
    with object_store() as client:
        yield client


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.slow)])
def output(request):
    """The URL of a table that is not there yet."""
    if request.param == "s3":
        request.getfixturevalue("client")
    return f"{request.param}://bucket/{uuid.uuid4().hex}/losses.parquet"


def objects_beside(output):
    """Names of all objects in the folder of an output."""
    files, path = fsspec.core.url_to_fs(output)
    files.invalidate_cache()
    folder = path.rpartition("/")[0]
    return sorted(name.partition(folder)[2].lstrip("/") for name in files.find(folder))


def test_a_pass_into_a_store_goes_on_and_leaves_the_table_alone(output):
    with pytest.raises(Stop):
        scored(output, most=20)
    names = objects_beside(output)
    assert sum(name.endswith(".parquet") for name in names) == 4
    assert all(name.startswith("losses.parquet.parts/") for name in names)
    table = scored(output)
    assert absolute.rows == 30
    assert table.losses.tolist() == RESULT
    assert objects_beside(output) == ["losses.parquet"]
    assert scored(output).losses.tolist() == RESULT
    assert absolute.rows == 0
    with pytest.raises(MismatchError, match="model_hash"):
        scored(output, model=Line(2.0))
    assert LossTable.load(output).weights().temperature == 24.5


def test_jobs_of_an_array_score_into_a_store_and_are_merged_from_there(output, tmp_path):
    shares = [scored(output, shard=(number, 3)) for number in (2, 0)]
    with pytest.raises(TableFileError, match=r"rows are missing.*1/3 \(nothing of it\)"):
        LossTable.merge(f"{output}.parts")
    own = output.replace("losses", "own")
    shares.append(scored(own, shard=(1, 3)))
    merged = LossTable.merge([f"{output}.parts", own])
    assert merged.losses.tolist() == RESULT
    assert sum(map(len, shares)) == 50
    # What is around them.
    assert LossTable.merge(output.rpartition("/")[0]).losses.tolist() == RESULT
    merged.save(output)
    assert LossTable.load(output).losses.tolist() == RESULT


def test_all_that_a_table_has_comes_back_from_a_store(output):
    keys = [f"row {number}" for number in range(300_000)]
    random = np.random.default_rng(0)
    table = LossTable.from_losses(random.random(len(keys)), keys=keys)
    table.save(output)
    found = LossTable.load(output)
    assert found.losses.tobytes() == table.losses.tobytes()
    assert found.keys.same_as(table.keys)
    assert found.provenance == table.provenance
    assert objects_beside(output) == ["losses.parquet"]


def test_streams_and_lengths_may_lie_in_a_store_too(output):
    rows = [{"id": number, "input_ids": [1] * (number % 4 + 1)} for number in range(40)]
    counted = lengths(rows, output=output.replace("losses", "lengths"), progress=False)
    assert counted.tolist() == [number % 4 + 1 for number in range(40)]

    stream = Stream({"id": number, "x": float(number)} for number in range(40))
    options = {"key": "id", "output": output, "batch_size": 10, "save_every": 0.0}
    sizes.seen, sizes.most = [], 20
    with pytest.raises(Stop):
        score(Line(), stream, sizes, progress=False, **options)
    sizes.most = None
    table = score(Line(), stream, sizes, progress=False, **options)
    assert table.losses.tolist() == list(range(40))
    assert sizes.seen == list(range(40))
    assert objects_beside(output) == ["lengths.parquet", "losses.parquet"]


def sizes(model, batch):
    if sizes.most is not None and batch["id"].max() >= sizes.most:
        raise Stop
    sizes.seen.extend(batch["id"].tolist())
    return model(batch["x"]).abs()


class Stream:
    """A stream that can be read again."""

    def __init__(self, rows):
        self.rows = [*rows]

    def __iter__(self):
        return iter(self.rows)


def test_a_damaged_object_is_set_aside_and_its_rows_are_scored_again(output):
    with pytest.raises(Stop):
        scored(output, most=20)
    files, path = fsspec.core.url_to_fs(f"{output}.parts")
    name = next(name for name in objects_beside(output) if name.endswith(".parquet"))
    damaged = f"{path.rpartition('/')[0]}/{name}"
    files.pipe_file(damaged, files.cat_file(damaged)[:-9])
    with pytest.warns(FlowDataWarning, match="cannot be read.*is kept as"):
        assert scored(output).losses.tolist() == RESULT
    assert absolute.rows == 35
    assert [name.endswith(".damaged") for name in objects_beside(output)] == [False, True]


# Faults


@pytest.fixture(scope="module")
def flaky(client):
    """The store of `client`, behind one that fails where it is told to."""
    direct = os.environ["AWS_ENDPOINT_URL"]
    store = FlakyStore(int(direct.rpartition(":")[2]))
    os.environ.update({"AWS_ENDPOINT_URL": store.url, "AWS_MAX_ATTEMPTS": "2"})
    forget_file_systems()
    yield store
    store.close()
    os.environ["AWS_ENDPOINT_URL"] = direct
    forget_file_systems()


@pytest.fixture
def begun(flaky):
    """An output in that store of which 20 rows of 50 are scored."""
    flaky.mend()
    output = f"s3://bucket/{uuid.uuid4().hex}/losses.parquet"
    with pytest.raises(Stop):
        scored(output, most=20)
    yield output
    flaky.mend()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD", "DELETE"])
def test_what_fails_for_a_moment_is_tried_again(flaky, begun, method):
    flaky.fail("500", method, times=1)
    assert scored(begun).losses.tolist() == RESULT
    assert flaky.failed == 1
    assert absolute.rows == 30
    assert objects_beside(begun) == ["losses.parquet"]


FAULTS = {
    "500": "We encountered an error",
    "denied": r"access denied \(Access Denied\)",
    "dropped": "Connection|closed",
    "swallowed": "what was put is not there",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS if LONG else ["500", "denied", "swallowed"])
def test_a_part_that_cannot_be_put_ends_the_pass_and_the_next_call_goes_on(flaky, begun, fault):
    flaky.fail(fault, "PUT")
    with pytest.raises(TableFileError, match=f"({FAULTS[fault]}).*before is kept") as error:
        scored(begun)
    assert "not-to-be-shown" not in str(error.value)
    flaky.mend()
    assert scored(begun).losses.tolist() == RESULT
    assert absolute.rows == 30


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS if LONG else ["denied", "swallowed"])
def test_a_table_that_cannot_be_put_keeps_all_its_rows_for_the_next_call(flaky, begun, fault):
    flaky.fail(fault, "PUT", ending="/losses.parquet")
    with pytest.raises(TableFileError, match=f"({FAULTS[fault]}).*all 50 rows are kept"):
        scored(begun)
    assert "losses.parquet" not in objects_beside(begun)
    flaky.mend()
    assert scored(begun).losses.tolist() == RESULT
    assert absolute.rows == 0
    assert objects_beside(begun) == ["losses.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["500", "denied"] if LONG else ["denied"])
@pytest.mark.parametrize("ending", ["bucket", ".parquet", ".json"])
def test_what_cannot_be_listed_or_read_now_is_no_empty_pass(flaky, begun, fault, ending):
    before = objects_beside(begun)
    flaky.fail(fault, "GET", ending=ending)
    with pytest.raises(TableFileError, match=f"cannot read .*{FAULTS[fault]}"):
        scored(begun)
    assert absolute.rows == 0
    flaky.mend()
    assert objects_beside(begun) == before
    assert scored(begun).losses.tolist() == RESULT
    assert absolute.rows == 30


@pytest.mark.slow
def test_a_store_that_may_not_be_written_is_refused_before_scoring(flaky):
    for url in (f"s3://bucket/{uuid.uuid4().hex}/l.parquet", "s3://no-such-bucket/l.parquet"):
        flaky.fail("denied" if "no-such" not in url else None, "PUT")
        with pytest.raises(TableFileError, match=r"cannot write s3://.*l\.parquet\.parts: "):
            scored(url)
        assert absolute.rows == 0
        flaky.mend()


@pytest.mark.slow
def test_a_process_that_is_killed_loses_what_was_in_flight_alone(client):
    output = f"s3://bucket/{uuid.uuid4().hex}/losses.parquet"
    support = str(Path(__file__).parents[2] / "support")
    command = [sys.executable, "-c", KILLED, support, output]
    killed = subprocess.run(command, timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert scored(output).losses.tolist() == RESULT
    assert absolute.rows == 30
    assert objects_beside(output) == ["losses.parquet"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import scoring_lines

class Stop(Exception):
    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)

scoring_lines.Stop = Stop
scoring_lines.scored(sys.argv[2], most=20)
"""


# URLs


def test_a_url_is_taken_as_text_or_as_a_path_and_shows_no_secret():
    place = place_of(Path("s3://bucket/a/x.parquet"), "loss table")
    assert (
        place == place_of("s3://bucket/a/x.parquet", "loss table") == ObjectPath(os.fspath(place))
    )
    assert (str(place.with_name("y") / "z"), str(place.parent)) == (
        "s3://bucket/a/y/z",
        "s3://bucket/a",
    )
    signed = ObjectPath("https://me:word@host/x.parquet?sig=secret")
    assert str(signed) == "https://host/x.parquet"
    assert without_secrets("no 'ftp://u:p@h/x#k', and s3://b/y") == "no 'ftp://h/x', and s3://b/y"


@pytest.mark.parametrize("url", ["s3://bucket/", "nosuch://b/x.parquet"])
def test_a_url_that_is_no_place_for_a_table_is_refused_before_scoring(url):
    with pytest.raises(TableFileError, match=r"is a folder: give the name|nosuch"):
        scored(url)
    assert absolute.rows == 0


def test_a_url_of_a_kind_that_there_is_not_says_what_there_is():
    with pytest.raises(TableFileError, match="fsspec opens no ss3://, but s3://"):
        scored("ss3://bucket/losses.parquet")


def test_a_table_that_is_in_no_store_says_so_without_the_secrets_of_its_url(monkeypatch):
    with pytest.raises(TableFileError, match=r"there is no loss table at memory://x/none$"):
        LossTable.load("memory://x/none")
    url = "nosuch://me:secret@host/x.parquet?sig=secret"
    for action in (LossTable.load, LossTable.from_losses([1.0]).save, LossTable.merge):
        with pytest.raises(TableFileError, match="nosuch://host/x") as error:
            action(url)
        assert "secret" not in str(error.value)
