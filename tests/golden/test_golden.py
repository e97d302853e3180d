"""Draws, orders, states and files are to the bit what ``make_golden.py`` recorded."""

import json
import shutil
from contextlib import suppress

import pytest
from golden_cases import CASES, stage_rows, stream_orders
from golden_files import Stopped, contents, examples, files, model, scored
from golden_inputs import RECORDS, SHARD_ROWS, urls, weights_of, write_shards
from golden_states import STATES

from flowdata import LossTable, ShardRows

RECORDED_CASES = json.loads((RECORDS / "cases.json").read_text())
RECORDED_STATES = json.loads((RECORDS / "states.json").read_text())
FILES = [f"{name}.parquet" for name in ("tokens", "keys", "numbers", "shards", "index")]
PARTS = "unfinished.parquet.parts"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*draws were dropped in epoch:flowdata.FlowDataWarning"),
    pytest.mark.filterwarnings("ignore:each pass over this FlowDataset:flowdata.FlowDataWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def marked(names):
    """Those that start processes or a framework are slow."""
    slow = [name for name in names if "2 workers" in name or "Lightning" in name]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in slow)) for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    write_shards(folder)
    return folder


def parts_in(folder):
    """What an unfinished pass has on disk: its identity, and losses by row."""
    losses = {}
    for path in folder.glob("*.parquet"):
        part, *_ = contents(path)
        losses |= dict(zip(part["row"], part["loss"], strict=True))
    return json.loads((folder / "identity.json").read_text()), losses


def test_there_is_a_record_of_every_case_and_state():
    assert CASES.keys() == RECORDED_CASES.keys()
    assert STATES.keys() == RECORDED_STATES.keys()


@pytest.mark.parametrize("name", marked(RECORDED_CASES))
def test_draws_weights_and_orders_are_those_recorded(folder, name):
    assert CASES[name](folder) == RECORDED_CASES[name]


@pytest.mark.parametrize("name", marked(RECORDED_STATES))
def test_a_state_saved_now_leads_to_the_same_rows(folder, name):
    state, _ = STATES[name].interrupted(folder)
    state = json.loads(json.dumps(state))
    assert STATES[name].resumed(folder, state) == RECORDED_STATES[name]["passes"]


@pytest.mark.parametrize("name", marked(RECORDED_STATES))
def test_a_state_saved_before_leads_to_the_rows_that_were_left(folder, name):
    recorded = RECORDED_STATES[name]
    assert STATES[name].resumed(folder, recorded["state"]) == recorded["passes"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_what_it_held(folder, tmp_path, name):
    files(folder)[name].save(tmp_path / name)
    assert contents(tmp_path / name) == contents(RECORDS / name)


def test_a_scoring_pass_leaves_on_disk_what_it_left(tmp_path):
    scored(tmp_path / "scored.parquet")
    assert contents(tmp_path / "scored.parquet") == contents(RECORDS / "scored.parquet")
    with suppress(Stopped):
        scored(tmp_path / "unfinished.parquet", most=3)
    assert parts_in(tmp_path / PARTS) == parts_in(RECORDS / PARTS)


@pytest.mark.parametrize("tokens", [False, True])
def test_a_table_saved_before_has_its_losses_and_weights(folder, tokens):
    saved = LossTable.load(RECORDS / "tokens.parquet", tokens=tokens)
    made = files(folder)["tokens.parquet"]
    assert saved.losses.tobytes() == made.losses.tobytes()
    assert saved.weights().values.tobytes() == made.weights().values.tobytes()
    assert saved.n_tokens.tolist() == made.n_tokens.tolist()
    if tokens:
        assert saved.token_losses.tobytes() == made.token_losses.tobytes()
        assert saved.token_weights().values.tobytes() == made.token_weights().values.tobytes()


@pytest.mark.parametrize("name", ["keys.parquet", "numbers.parquet"])
def test_rows_are_found_by_the_keys_of_a_table_saved_before(folder, name):
    saved, made = LossTable.load(RECORDS / name), files(folder)[name]
    assert saved.rows_of(made.keys.tolist()[::-1]).tolist() == list(range(len(made)))[::-1]
    assert saved.provenance.parts == made.provenance.parts


@pytest.mark.parametrize("name", ["index.parquet", "shards.parquet"])
def test_samples_are_found_by_an_index_saved_before(folder, tmp_path, name):
    rows = ShardRows(urls(folder), index=RECORDS / name)
    assert [int(rows[row]["txt"]) for row in range(len(rows))] == [*range(SHARD_ROWS)]
    rows.index.save(tmp_path / "index.parquet")
    assert contents(tmp_path / "index.parquet") == contents(RECORDS / "index.parquet")


@pytest.mark.parametrize(
    ("name", "weights"),
    [("shards.parquet", None), ("index.parquet", weights_of(SHARD_ROWS))],
    ids=["table", "index"],
)
def test_shards_are_drawn_by_a_file_saved_before(folder, name, weights):
    file, options = RECORDS / name, {} if weights is None else {"weights": weights}
    drawn = stream_orders(3, 0, options, folder, table=file)
    assert drawn == RECORDED_CASES["stream, resample, 3 ranks, 0 workers"]
    assert stage_rows({"seed": 0} | options, folder, table=file) == RECORDED_CASES["stage, seed 0"]


def test_a_table_saved_before_belongs_to_its_data_and_model():
    table = LossTable.load(RECORDS / "scored.parquet", dataset=examples(), model=model())
    assert len(table) == 60


def test_a_pass_finished_before_is_given_back_without_scoring(tmp_path):
    output = shutil.copy(RECORDS / "scored.parquet", tmp_path)
    table, rows = scored(output)
    assert rows == 0
    assert table.losses.tolist() == contents(RECORDS / "scored.parquet")[0]["loss"]


def test_a_pass_stopped_before_goes_on_with_the_rows_left(tmp_path):
    shutil.copytree(RECORDS / PARTS, tmp_path / PARTS)
    table, rows = scored(tmp_path / "unfinished.parquet")
    assert rows == 60 - len(parts_in(RECORDS / PARTS)[1]) == 36
    assert table.losses.tolist() == contents(RECORDS / "scored.parquet")[0]["loss"]
    assert not (tmp_path / PARTS).exists()
