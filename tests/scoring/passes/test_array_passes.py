"""Jobs of an array share a pass: the table that is merged is that of one pass, bit for bit."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from language_models import llama, samples
from shard_files import write_shards
from torch import nn

import flowdata
from flowdata import CausalLM, LossTable, MismatchError, ShardRows, TableFileError, score
from flowdata.scoring.parts.folder import Parts
from flowdata.table.part_file import read_part

pytestmark = pytest.mark.filterwarnings("ignore:.*longer than max_length")

COLUMNS = ("losses", "n_tokens", "lengths", "token_losses")
LANGUAGE = CausalLM(token_losses=True, max_tokens=150, max_length=50)
ROWS = samples(61)


@pytest.fixture(scope="module")
def model():
    return llama()


@pytest.fixture(scope="module")
def one_pass(model):
    return score(model, ROWS, LANGUAGE, progress=False)


def require_same(found, expected):
    for name in COLUMNS:
        here, there = getattr(found, name), getattr(expected, name)
        assert (here is None) == (there is None)
        assert here is None or here.tobytes() == there.tobytes()
    known = vars(found.provenance) | {"created": None}
    assert known == vars(expected.provenance) | {"created": None}


def job(model, output, shard, rows=ROWS, loss=LANGUAGE, **options):
    return score(model, rows, loss, output=output, shard=shard, progress=False, **options)


def parts_in(output):
    return sorted(Parts(output).folder.glob("*.parquet"))


@pytest.mark.parametrize(("jobs", "shared"), [(1, True), (3, False), (12, False), (5, True)])
def test_any_number_of_jobs_in_any_order_make_the_table_of_one_pass(
    tmp_path, model, one_pass, jobs, shared
):
    order = np.random.default_rng(jobs).permutation(jobs).tolist()
    outputs = [tmp_path / ("all.parquet" if shared else f"{number}.parquet") for number in order]
    shares = [
        job(model, output, (number, jobs)) for number, output in zip(order, outputs, strict=True)
    ]
    assert sum(map(len, shares)) == len(ROWS)
    assert not any(output.exists() for output in outputs)
    # By the folder that they are in, one by one, or by what they are parts of.
    require_same(LossTable.merge(tmp_path), one_pass)
    require_same(LossTable.merge([Parts(output).folder for output in outputs]), one_pass)
    require_same(LossTable.merge(outputs), one_pass)
    # Nothing is deleted, and a job that has done its share does nothing.
    before = parts_in(outputs[0])
    assert len(job(model, outputs[0], (order[0], jobs))) == len(shares[0])
    assert parts_in(outputs[0]) == before


def test_what_a_job_gives_is_a_selection_of_the_rows_that_it_has_scored(tmp_path, model, one_pass):
    rows = [row | {"id": f"row {number}"} for number, row in enumerate(ROWS)]
    shares = [
        job(model, tmp_path / "l.parquet", (number, 3), rows, key="id") for number in range(3)
    ]
    found = [[int(key.split()[1]) for key in share.keys.tolist()] for share in shares]
    assert sorted(itertools.chain(*found)) == list(range(len(ROWS)))
    for share, numbers in zip(shares, found, strict=True):
        assert all(first < second for first, second in itertools.pairwise(numbers))
        expected = one_pass.select(numbers)
        assert share.losses.tobytes() == expected.losses.tobytes()
        assert share.token_losses.tobytes() == expected.token_losses.tobytes()
        assert json.loads(share.provenance.parts)[0]["taken"] == len(share)
    merged = LossTable.merge(tmp_path)
    assert merged.keys.tolist() == [row["id"] for row in rows]
    assert merged.rows_of(["row 57"]).tolist() == [57]


def test_jobs_without_a_batch_of_their_own_have_nothing_to_do(tmp_path):
    data = [(torch.tensor([float(row)]), torch.tensor([0.0])) for row in range(10)]
    shares = [
        job(nn.Identity(), tmp_path / "l.parquet", (number, 5), data, "mse", batch_size=5)
        for number in range(5)
    ]
    assert sorted(len(share) for share in shares) == [0, 0, 0, 5, 5]
    assert LossTable.merge(tmp_path).losses.tolist() == [row**2 for row in range(10)]


def test_a_table_of_shards_is_merged_with_their_index(tmp_path):
    urls = write_shards(tmp_path)
    data = ShardRows(urls)

    def size(model, batch):
        return model(torch.tensor([[float(len(sample["bin"]))] for sample in batch]))[:, 0] / 1000

    options = {"collate_fn": list, "batch_size": 16}
    at_once = score(nn.Identity(), data, size, progress=False, **options)
    (tmp_path / "jobs").mkdir()
    for number in (2, 0, 1):
        share = job(
            nn.Identity(), tmp_path / "jobs" / f"{number}.p", (number, 3), data, size, **options
        )
        assert len(share.index) == len(share)
    merged = LossTable.merge(tmp_path / "jobs")
    assert merged.losses.tobytes() == at_once.losses.tobytes()
    for name in ("shards", "versions"):
        assert getattr(merged.index, name) == getattr(at_once.index, name)
    for name in ("offsets", "sizes", "lengths", "shard"):
        assert np.array_equal(getattr(merged.index, name), getattr(at_once.index, name))
    assert merged.index.keys.equals(at_once.index.keys)
    merged.save(tmp_path / "table.parquet")
    LossTable.load(tmp_path / "table.parquet", dataset=data)


# What is missing, or of another pass


def test_rows_and_jobs_that_are_missing_are_named(tmp_path):
    data = [(torch.tensor([float(row)]), torch.tensor([0.0])) for row in range(1_200)]
    output = tmp_path / "l.parquet"
    for number in (0, 2, 3):
        job(nn.Identity(), output, (number, 4), data, "mse", batch_size=300)
    missing = "300 of 1,200 rows are missing: 300 to 599. Run these jobs again, which go on: 1/4 "
    with pytest.raises(TableFileError, match=rf"{missing}\(nothing of it\)"):
        LossTable.merge(output)
    # As of a job that was killed before it was done.
    (Parts(output).folder / "done-3-of-4").unlink()
    with pytest.raises(TableFileError, match=r"1/4 \(nothing of it\), 3/4 \(not finished\)"):
        LossTable.merge(output)
    job(nn.Identity(), output, (1, 4), data, "mse", batch_size=300)
    assert LossTable.merge(output).losses.tolist() == [float(row) ** 2 for row in range(1_200)]


def test_parts_of_other_passes_are_refused_saying_what_differs(tmp_path, model):
    rows = [row | {"id": number} for number, row in enumerate(ROWS)]
    job(model, tmp_path / "0.parquet", (0, 2), rows, key="id")
    job(llama_of_another_seed(), tmp_path / "1.parquet", (1, 2), rows, key="id")
    with pytest.raises(MismatchError, match="model_hash"):
        LossTable.merge(tmp_path)
    shutil.rmtree(Parts(tmp_path / "1.parquet").folder)
    job(model, tmp_path / "1.parquet", (1, 2), rows)
    with pytest.raises(MismatchError, match="keys_and_places"):
        LossTable.merge(tmp_path)


def llama_of_another_seed():
    found = llama()
    with torch.no_grad():
        next(found.parameters())[0, 0] += 1
    return found


def test_a_damaged_part_is_named_and_left_where_it_is_and_its_job_scores_it_again(tmp_path, model):
    output = tmp_path / "l.parquet"
    for number in range(2):
        job(model, output, (number, 2), save_every=0.0)
    path = parts_in(output)[1]
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with (
        pytest.warns(flowdata.FlowDataWarning, match=f"{path.name} is left out, so that its rows"),
        pytest.raises(TableFileError, match=r"go on: 0/2 \(a part of it cannot be read\), then"),
    ):
        LossTable.merge(output)
    assert path.read_bytes() == content[:-7]
    with pytest.warns(flowdata.FlowDataWarning, match=path.name):
        job(model, output, (0, 2))
    job(model, output, (1, 2))
    assert len(LossTable.merge(output)) == len(ROWS)


@pytest.mark.parametrize("what", ["nothing", "empty", "table", "text"])
def test_what_has_no_parts_is_refused(tmp_path, what):
    place = tmp_path / "place"
    if what == "empty":
        place.mkdir()
    elif what == "table":
        LossTable.from_losses([1.0, 2.0]).save(place)
    elif what == "text":
        place.write_text("none")
    messages = {
        "nothing": "there is no part at .*place",
        "empty": "there are no parts in .*place",
        "table": "is a finished table, and no part: it needs no merging",
        "text": "not a readable Parquet file",
    }
    if what == "text":
        with (
            pytest.warns(flowdata.FlowDataWarning, match=messages[what]),
            pytest.raises(TableFileError, match="of 1 parts none can be read"),
        ):
            LossTable.merge(place)
    else:
        with pytest.raises(TableFileError, match=messages[what]):
            LossTable.merge(place)
    with pytest.raises(ValueError, match="no parts were given"):
        LossTable.merge([])


def test_the_file_of_keys_that_was_left_behind_is_named(tmp_path, model):
    rows = [row | {"id": number} for number, row in enumerate(ROWS)]
    job(model, tmp_path / "l.parquet", (0, 1), rows, key="id")
    (keys,) = Parts(tmp_path / "l.parquet").folder.glob("rows-*.table")
    keys.unlink()
    with pytest.raises(TableFileError, match=f"{keys.name} is missing, which has the keys"):
        LossTable.merge(tmp_path)


# With the rest of score


def test_a_pass_of_all_rows_takes_what_jobs_have_scored_and_the_other_way_round(
    tmp_path, model, one_pass
):
    output = tmp_path / "l.parquet"
    job(model, output, (1, 3))
    by_job = [read_part(path) for path in parts_in(output)]
    table = score(model, ROWS, LANGUAGE, output=output, progress=False)
    require_same(table, one_pass)
    assert not Parts(output).folder.exists()
    assert sum(len(part.scores) for part in by_job) > 0
    # A job that comes when the table is there has nothing to do.
    require_same(job(model, output, (2, 3)), one_pass)


def test_a_shard_needs_an_output_and_rows_by_number(tmp_path, one_pass):
    options = {"shard": (0, 2), "progress": False}
    with pytest.raises(ValueError, match="shard= needs output="):
        score(nn.Identity(), ROWS, **options)
    with pytest.raises(ValueError, match="takes no known=: score the new rows alone"):
        score(nn.Identity(), ROWS, output=tmp_path / "l", known=one_pass, **options)
    with pytest.raises(ValueError, match=r"shard= are for rows by number, and this is a stream"):
        score(nn.Identity(), iter(ROWS), output=tmp_path / "l", key="id", **options)


def test_what_is_missing_says_how_to_get_it(tmp_path, model):
    output, other = tmp_path / "one", tmp_path / "two"
    job(model, output, (0, 2))
    job(model, other, (1, 2), loss=CausalLM(token_losses=True, max_tokens=400, max_length=50))
    with pytest.raises(TableFileError, match=r"All 2 jobs are done, and made other batches.*rest"):
        LossTable.merge([output, other])
    job(model, output, (1, 3))
    with pytest.raises(TableFileError, match=r"of one array, .* arrays of 2 and of 3 jobs"):
        LossTable.merge(output)
    assert len(job(model, output, None)) == len(ROWS)
    with pytest.raises(
        TableFileError, match="is a finished table, and no part: it needs no merging"
    ):
        LossTable.merge(output)
