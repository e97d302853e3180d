"""BatchScorer: batches as Ray Data, Spark and datasets give them, and the table made of them."""

import copy
import json
import pickle
import sys
from functools import partial
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from language_models import llama, samples
from tokenizer_families import CHATML, family
from torch import nn

import flowdata
from flowdata.scoring.engines import worker as engine_worker
from flowdata.scoring.engines.tables import SCORED_BY

LOSS = flowdata.CausalLM(token_losses=True)
NEW = ["loss", "n_tokens", "length", "token_losses", "scored_by"]
made = []


def counted_llama():
    made.append(1)
    return llama()


@pytest.fixture(scope="module")
def data():
    rows = [{"id": f"doc-{n}", **row} for n, row in enumerate(samples(40))]
    return datasets.Dataset.from_list(rows)


@pytest.fixture(scope="module")
def expected(data):
    return flowdata.score(llama(), data, LOSS, key="id", progress=False)


@pytest.fixture(scope="module")
def scorer():
    return flowdata.BatchScorer(llama, LOSS, key="id")


def as_numpy(data):
    """As Ray Data gives it: texts as numpy has them, lists as objects."""
    frame = data.to_pandas()
    columns = {name: frame[name].to_numpy(dtype=object) for name in frame}
    return columns | {"id": np.array(data["id"][:])}


KINDS = {
    "numpy": as_numpy,
    "lists": lambda data: data[:],
    "pandas": lambda data: data.to_pandas(),
    "arrow": lambda data: data.with_format("arrow")[:],
    "record batch": lambda data: data.with_format("arrow")[:].combine_chunks().to_batches()[0],
}


def assert_same(table, expected):
    assert np.array_equal(table.losses, expected.losses, equal_nan=True)
    assert np.array_equal(table.n_tokens, expected.n_tokens)
    assert np.array_equal(table.lengths, expected.lengths)
    assert np.array_equal(table.token_losses, expected.token_losses)
    assert table.keys.tolist() == expected.keys.tolist()
    assert table.provenance.identity() == expected.provenance.identity()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_comes_back_with_the_losses_of_score(kind, data, expected, scorer):
    batch = KINDS[kind](data)
    scored = scorer(batch)
    assert type(scored) is type(batch)
    names = list(scored.schema.names) if hasattr(scored, "schema") else list(scored)
    assert names == [*data.column_names, *NEW]
    if kind == "record batch":
        scored = pa.Table.from_batches([scored])
    assert_same(flowdata.read_scored(scored, key="id", dataset=data), expected)
    types = pa.table({name: scored[name] for name in NEW[:3]}).schema.types
    assert types == [pa.float32(), pa.int32(), pa.int32()]


def test_a_table_of_batches_in_any_order_is_one_of_score(data, expected, scorer, tmp_path):
    # Batches of other rows than those that score reads together: the last bits differ.
    order = np.random.default_rng(0).permutation(40)
    for number, some in enumerate(np.split(order, [7, 8, 25])):
        scored = scorer(data.select(some).with_format("arrow")[:])
        pq.write_table(scored, tmp_path / f"part-{number}.parquet")
    (tmp_path / "_SUCCESS").touch()
    table = flowdata.read_scored(tmp_path, key="id", dataset=data)
    np.testing.assert_allclose(table.losses, expected.losses, rtol=1e-5)
    np.testing.assert_allclose(table.token_losses, expected.token_losses, rtol=1e-4, atol=1e-5)
    assert table.provenance.identity() == expected.provenance.identity()
    table.check(dataset=data, model=llama())
    with pytest.raises(flowdata.MismatchError, match="by a model with hash"):
        table.check(model=another_llama())
    # A pass that it finishes, and rows that another pass need not score.
    table.save(tmp_path / "table.parquet")
    again = flowdata.score(
        llama(), data, LOSS, key="id", output=tmp_path / "table.parquet", progress=False
    )
    assert np.array_equal(again.losses, table.losses)
    known = flowdata.read_scored(str(tmp_path / "part-2.parquet"), key="id")
    with pytest.warns(flowdata.FlowDataWarning, match="only the keys"):
        more = flowdata.score(llama(), data, LOSS, key="id", known=known, progress=False)
    np.testing.assert_allclose(more.losses, expected.losses, rtol=1e-5)


def another_llama():
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    return model


def test_spark_gives_an_iterator_of_frames_to_a_function_that_was_pickled(data, expected):
    made.clear()
    scorer = flowdata.BatchScorer(counted_llama, LOSS, key="id", keep=())
    frames = [data.select(range(start, start + 10)).to_pandas() for start in (0, 10, 20, 30)]
    scored = []
    # A Python worker is used for one partition after the other, and gets the function each time.
    for partition in (frames[:2], frames[2:]):
        function = pickle.loads(pickle.dumps(scorer.each))
        scored += list(function(iter(partition)))
    assert len(made) == 1
    assert [list(frame) for frame in scored] == [["id", *NEW]] * 4
    table = flowdata.read_scored(pd.concat(scored), key="id", dataset=data)
    np.testing.assert_allclose(table.losses, expected.losses, rtol=1e-5)
    assert next(scorer.each(iter([frames[0].set_index(np.arange(5, 15))]))).index[0] == 5


@pytest.mark.slow
def test_datasets_map_adds_the_losses_in_two_processes(data, expected):
    scorer = flowdata.BatchScorer(llama, LOSS, key="id")
    scored = data.map(scorer, batched=True, batch_size=7, num_proc=2)
    assert scored.column_names == [*data.column_names, *NEW]
    assert scored.features["loss"].dtype == "float32"
    assert scored["input_ids"][:] == data["input_ids"][:]
    table = flowdata.read_scored(scored, dataset=data)
    np.testing.assert_allclose(table.losses, expected.losses, rtol=1e-5)
    assert table.provenance.identity() == expected.provenance.identity()
    with pytest.raises(TypeError, match="got a list beside the batch: leave with_indices=True out"):
        data.map(scorer, batched=True, with_indices=True)
    with pytest.raises(ValueError, match=r"has \['length'\] already"):
        data.add_column("length", [1] * 40).map(scorer, batched=True)


def test_a_map_over_single_rows_says_what_is_missing(data, scorer):
    for way in (data.map, lambda function: function(data[0])):
        with pytest.raises(TypeError, match=r"takes many at once: map\(batched=True\) of datasets"):
            way(scorer)


CHAT = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps."}]


@pytest.fixture(scope="module")
def chat_tokenizer():
    tokenizer = copy.deepcopy(family("byte-level"))
    tokenizer.chat_template = CHATML
    return tokenizer


def big_llama(size):
    torch.manual_seed(0)
    model = llama()
    model.resize_token_embeddings(size, mean_resizing=False)
    return model


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow"])
def test_chats_and_missing_texts_are_read_as_score_reads_them(kind, chat_tokenizer):
    rows = [
        {"id": 1, "messages": CHAT, "answer": "so on"},
        {"id": 2, "messages": CHAT * 2, "answer": None},
        {"id": 3, "messages": CHAT, "answer": "over"},
    ]
    data = datasets.Dataset.from_list(rows)
    make = partial(big_llama, len(chat_tokenizer))
    for columns in ({"messages": "messages"}, {"response": "answer"}):
        loss = flowdata.CausalLM(tokenizer=chat_tokenizer, **columns)
        options = {"key": "id", "on_invalid": "drop"}
        expected = flowdata.score(make(), data, loss, progress=False, **options)
        batch = KINDS[kind](data)
        scored = flowdata.BatchScorer(make, loss, **options)(batch)
        table = flowdata.read_scored(scored, key="id", dataset=data)
        assert np.array_equal(table.losses, expected.losses, equal_nan=True)
        assert np.array_equal(table.n_tokens, expected.n_tokens)
        assert np.isnan(table.losses).sum() == ("response" in columns)


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(12, 5)

    def forward(self, pixel_values):
        return self.out(pixel_values.flatten(1))


def test_images_as_numpy_arrays_are_scored_by_a_named_loss():
    random = np.random.default_rng(0)
    batch = {
        "id": np.arange(70) * 10,
        "pixel_values": random.standard_normal((70, 3, 4)).astype(np.float32),
        "labels": random.integers(0, 5, size=70),
    }
    rows = [
        {"pixel_values": torch.tensor(image), "labels": int(label)}
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True)
    ]
    expected = flowdata.score(Image(), rows, "cross_entropy", batch_size=16, progress=False)
    scorer = flowdata.BatchScorer(Image, "cross_entropy", key="id", keep=(), batch_size=16)
    scored = scorer(batch)
    assert list(scored) == ["id", "loss", "scored_by"]
    assert np.array_equal(scored["loss"], expected.losses)
    assert list(flowdata.read_scored(scored, key="id").keys) == batch["id"].tolist()


def test_what_is_wrong_with_a_row_is_said_with_its_key(data, scorer):
    frame = data.to_pandas()
    frame.at[7, "labels"] = [1]
    with pytest.raises(ValueError, match=r"^id 'doc-7', in a batch of rows: row 7: input_ids and"):
        scorer(frame)
    silent = data.to_pandas()
    silent.at[31, "labels"] = np.full_like(silent.labels[31], -100)
    with pytest.raises(flowdata.InvalidLossError, match=r"^id 'doc-31', .* rows \[31\]"):
        scorer(silent)
    dropped = flowdata.BatchScorer(llama, LOSS, key="id", on_invalid="drop")(silent)
    assert np.flatnonzero(dropped.loss.isna()).tolist() == [31]
    without = flowdata.BatchScorer(llama, LOSS)
    with pytest.raises(ValueError, match=r"^in a batch of rows: row 7: input_ids and"):
        without(frame)
    with pytest.raises(ValueError, match=r"there is no column 'id', there is \['input_ids'"):
        scorer(data.remove_columns("id").to_pandas())


def test_a_batch_without_rows_has_the_columns_that_others_have(data, scorer):
    nothing = flowdata.BatchScorer(Image, "cross_entropy")({"labels": np.zeros(0, int)})
    assert list(nothing) == ["labels", "loss", "scored_by"]
    for make in (KINDS["pandas"], KINDS["arrow"]):
        some = pa.table(scorer(make(data))) if make is KINDS["arrow"] else None
        empty = scorer(make(data.select(range(0))))
        names = empty.schema.names if some is not None else list(empty)
        assert names == [*data.column_names, *NEW]
        if some is not None:
            assert empty.schema.types[3:] == some.schema.types[3:]


def test_columns_that_are_kept_and_those_that_are_in_the_way(data):
    frame = data.to_pandas().assign(length=3, group="a")
    with pytest.raises(ValueError, match=r"the batch has \['length'\] already"):
        flowdata.BatchScorer(llama, LOSS, key="id")(frame)
    scored = flowdata.BatchScorer(llama, LOSS, key="id", keep=["group"])(frame)
    assert list(scored) == ["id", "group", *NEW]
    with pytest.raises(ValueError, match=r"there are no columns \['grup'\]"):
        flowdata.BatchScorer(llama, LOSS, key="id", keep=["grup"])(frame)
    with pytest.raises(TypeError, match=r"keep= is a list of columns, got the text 'group'"):
        flowdata.BatchScorer(llama, LOSS, keep="group")
    with pytest.raises(TypeError, match="a batch is a dict of columns, a pandas frame"):
        flowdata.BatchScorer(llama, LOSS)([{"input_ids": [1]}])
    with pytest.raises(ValueError, match=r"must be of one length, got \[1, 2\]"):
        flowdata.BatchScorer(llama, LOSS)({"input_ids": [[1, 2]], "labels": [[1, 2], [3]]})


def test_options_that_no_worker_could_use_are_refused_at_once():
    with pytest.raises(TypeError, match="a function that makes the model in each worker, got a L"):
        flowdata.BatchScorer(llama(), LOSS)
    with pytest.raises(ValueError, match="decided by the first rows of a data set, and each worke"):
        flowdata.BatchScorer(llama, "classification")
    with pytest.raises(ValueError, match="loss must be one of"):
        flowdata.BatchScorer(llama, "crossentropy")
    with pytest.raises(ValueError, match='on_invalid must be "raise" or "drop"'):
        flowdata.BatchScorer(llama, LOSS, on_invalid="skip")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        flowdata.BatchScorer(llama, LOSS, batch_size=0)


def test_rows_of_two_models_or_of_other_data_are_no_table(data, scorer):
    frame = scorer(data.to_pandas())
    said = json.loads(frame[SCORED_BY][3])
    mixed = frame.assign(**{SCORED_BY: frame[SCORED_BY].astype(object)})
    mixed.loc[3, SCORED_BY] = json.dumps(said | {"model_hash": "0"})
    with pytest.raises(flowdata.MismatchError, match=r"another model or loss .* model_hash="):
        flowdata.read_scored(mixed, key="id")
    mixed.loc[3, SCORED_BY] = json.dumps(said | {"flowdata": "0.0.1"})
    assert len(flowdata.read_scored(mixed, key="id")) == 40
    mixed.loc[3, SCORED_BY] = "llama"
    with pytest.raises(flowdata.MismatchError, match="not as a BatchScorer writes it: '"):
        flowdata.read_scored(mixed, key="id")
    with pytest.raises(flowdata.MismatchError, match="more than once: 'doc-0'"):
        flowdata.read_scored(pd.concat([frame, frame[:1]]), key="id")
    with pytest.raises(flowdata.MismatchError, match=r"1 rows of the data set .* \['doc-39'\]"):
        flowdata.read_scored(frame[:39], key="id", dataset=data)
    with pytest.raises(flowdata.MismatchError, match=r"2 rows were scored that .* \['doc-38', 'd"):
        flowdata.read_scored(frame, key="id", dataset=data.select(range(38)))
    with pytest.raises(ValueError, match=r"there are no columns \['scored_by', 'key'\]"):
        flowdata.read_scored({"loss": [1.0]}, key="key")
    with pytest.raises(ValueError, match="there are no rows"):
        flowdata.read_scored(frame[:0], key="id")
    with pytest.raises(TypeError, match="Parquet files, a pandas frame"):
        flowdata.read_scored(3)


def test_what_an_engine_wrote_is_read_from_any_place(data, expected, scorer, tmp_path):
    frame = scorer(data.to_pandas())
    with fsspec.open("memory://engine/scored.parquet", "wb") as file:
        # Engines may write numbers of tokens as longer ones.
        frame.astype({"n_tokens": "int64", "length": "int64"}).to_parquet(file)
    table = flowdata.read_scored("memory://engine/scored.parquet", key="id", dataset=data)
    assert_same(table, expected)
    assert flowdata.read_scored(frame, tokens=False).token_losses is None
    with pytest.raises(flowdata.TableFileError, match="cannot be read"):
        flowdata.read_scored(tmp_path / "nothing.parquet", key="id")
    with pytest.raises(flowdata.TableFileError, match="there are no Parquet files in it"):
        flowdata.read_scored(tmp_path, key="id")


def fake_cuda(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


def fake_ray(task, gpus):
    context = SimpleNamespace(get_task_id=lambda: task, get_accelerator_ids=lambda: {"GPU": gpus})
    return SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)


def fake_spark(address):
    resources = {} if address is None else {"gpu": SimpleNamespace(addresses=[address])}
    task = SimpleNamespace(resources=lambda: resources)
    return SimpleNamespace(TaskContext=SimpleNamespace(get=lambda: task))


@pytest.mark.parametrize(
    ("gpus", "modules", "rank", "expected"),
    [
        (0, {}, None, "cpu"),
        (0, {}, 3, "cpu"),
        (4, {}, None, "cuda:0"),
        (4, {}, 5, "cuda:1"),
        (4, {"ray": fake_ray("task", ["2"])}, None, "cuda:0"),
        (4, {"ray": fake_ray("task", [])}, None, "cpu"),
        (0, {"ray": fake_ray("task", ["2"])}, None, "cpu"),
        (4, {"ray": fake_ray(None, [])}, None, "cuda:0"),
        (4, {"pyspark": fake_spark("3")}, None, "cuda:3"),
        (1, {"pyspark": fake_spark("3")}, None, "cuda:0"),
        (4, {"pyspark": fake_spark(None)}, None, "cuda:0"),
    ],
)
def test_a_worker_runs_on_the_device_that_the_engine_gave_it(
    gpus, modules, rank, expected, monkeypatch
):
    fake_cuda(monkeypatch, gpus)
    for name in ("ray", "pyspark"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert str(engine_worker.assigned_device(rank)) == expected
