"""Passes on a real Ray cluster on this machine, of two workers, of which one is killed."""

import json
import os
import pickle
import sys
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import ray
import torch
from guides import ROOT, blocks
from language_models import llama, samples
from long_run import LONG
from ray_rows import (
    ROWS,
    KilledOnce,
    LoggedLoss,
    Numbers,
    Sums,
    another_each_time,
    dies,
    fails_to_load,
    invalid_at_77,
    make_linear,
    of_no_shape,
    open_model,
    waits,
)
from tokenizer_families import family
from transformers import BertConfig, BertForSequenceClassification

import flowdata
from flowdata.commands.cli import main

pytestmark = [
    pytest.mark.slow,
    # Of options of its own that Ray Data reads.
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),
]
# A worker takes two seconds of a processor to import torch, and each pass starts its own.
long_run = pytest.mark.skipif(not LONG, reason="in a long run alone")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """Two workers at a time; they import what this process can import."""
    given = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        object_store_memory=1 << 27,
    )
    yield
    ray.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(autouse=True)
def _small_tasks_and_patience(monkeypatch):
    monkeypatch.setattr("flowdata.scoring.engines.ray_workers._ROWS_PER_TASK", 16)
    # A machine that does much else besides takes longer to start a worker.
    monkeypatch.setattr("flowdata.scoring.engines.ray_workers._PATIENCE", 600)


def scored_rows(folder):
    return [int(row) for row in (folder / "scored").read_text().split()]


def on_one_machine(folder, **options):
    given = (make_linear(), Numbers(), LoggedLoss(folder))
    return flowdata.score(*given, batch_size=8, progress=False, **options)


def on_ray(folder, *kills, **options):
    given = (make_linear, Numbers(), LoggedLoss(folder, kills))
    return flowdata.score_on_ray(*given, batch_size=8, workers=2, progress=False, **options)


def test_a_worker_that_is_killed_changes_no_bit_of_the_table(tmp_path):
    expected = on_one_machine(tmp_path)
    (tmp_path / "scored").unlink()
    output = tmp_path / "losses.parquet"
    table = on_ray(tmp_path, 200, output=output)
    assert {path.name for path in tmp_path.iterdir()} == {"killed-200", "scored", output.name}
    assert np.array_equal(table.losses, expected.losses)
    assert table.provenance.dtype == "float32"
    saved = flowdata.LossTable.load(output, model=make_linear(), dataset=Numbers())
    assert np.array_equal(saved.losses, expected.losses)
    # What the one that died had in hand is scored again, and no more.
    again = scored_rows(tmp_path)
    assert {*again} == {*range(ROWS)}
    assert len(again) <= ROWS + 48


class SparkFrame:
    """What gives a function frames as Spark does: pickled, and by an iterator for a partition."""

    def __init__(self, frame):
        self.frame = frame
        self.write = SimpleNamespace(parquet=self._write)

    def mapInPandas(self, function, schema):
        names = [field.split()[0] for field in schema.split(", ")]
        partitions = [self.frame[3:], self.frame[:3]]
        found = [
            frame[names]
            for some in partitions
            for frame in pickle.loads(pickle.dumps(function))(iter([some]))
        ]
        return SparkFrame(pd.concat(found))

    def _write(self, folder):
        os.mkdir(folder)
        self.frame.to_parquet(f"{folder}/part-0.parquet")


@long_run
def test_the_examples_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = datasets.Dataset.from_list([{"id": n, **row} for n, row in enumerate(samples(8))])
    given = {"flowdata": flowdata, "open_model": open_model, "data": data, "folder": tmp_path}
    names, tables = given | {"df": SparkFrame(data.to_pandas())}, []
    page = ROOT / "flowdata" / "scoring" / "engines" / "README.md"
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
            tables.append(names.get("table"))
    expected = flowdata.score(Sums(), data, flowdata.CausalLM(), key="id", progress=False)
    assert len(tables) == 5
    assert tables[0] is None
    assert np.array_equal(tables[1].losses, expected.losses)
    for table in tables[1:]:
        np.testing.assert_allclose(table.losses, expected.losses, rtol=1e-5)
        assert table.provenance.identity() == expected.provenance.identity()


@long_run
@pytest.mark.parametrize("order", [1, -1], ids=["begun on Ray", "begun here"])
def test_a_pass_that_was_stopped_goes_on_wherever_it_began(order, tmp_path, monkeypatch):
    begins, goes_on = (on_ray, on_one_machine)[::order]
    expected = on_one_machine(tmp_path)
    (tmp_path / "scored").unlink()
    output, seen = tmp_path / "losses.parquet", []

    def stop(scores, on_invalid):
        seen.extend(scores.rows)
        if len(seen) > 150:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr("flowdata.scoring.passes.scoring_pass.refuse_invalid", stop)
        with pytest.raises(KeyboardInterrupt):
            begins(tmp_path, output=output, save_every=0)
    assert 150 < len(scored_rows(tmp_path)) < ROWS
    table = goes_on(tmp_path, output=output)
    assert np.array_equal(table.losses, expected.losses)
    assert {*scored_rows(tmp_path)} == {*range(ROWS)}
    # What workers had in hand is lost, and no more.
    assert len(scored_rows(tmp_path)) <= ROWS + 80


@long_run
def test_rows_that_a_table_knows_are_not_scored_again(tmp_path):
    data = datasets.Dataset.from_list([{"id": n, **row} for n, row in enumerate(samples(60))])
    loss = flowdata.CausalLM(token_losses=True)
    first = flowdata.score(Sums(), data.select(range(20)), loss, key="id", progress=False)
    options = {"key": "id", "known": first, "progress": False}
    expected = flowdata.score(Sums(), data, loss, **options)
    # Each worker opens the data itself.
    table = flowdata.score_on_ray(Sums, partial(_same, data), loss, workers=1, **options)
    assert np.array_equal(table.losses, expected.losses)
    assert np.array_equal(table.token_losses, expected.token_losses)
    assert table.keys.tolist() == [*range(60)]
    assert table.provenance.identity() == expected.provenance.identity()


def _same(data):
    return data


@long_run
def test_errors_of_workers_are_raised_as_they_are_and_deaths_are_named():
    call = partial(flowdata.score_on_ray, make_linear, Numbers(), workers=1, progress=False)
    with pytest.raises(flowdata.InvalidLossError, match=r"losses \[nan\] at rows \[77\]"):
        call(invalid_at_77)
    losses = call(invalid_at_77, on_invalid="drop").losses
    assert np.flatnonzero(np.isnan(losses)).tolist() == [77]
    with pytest.raises(ValueError, match=r"the loss function returned shape \(\) for a batch"):
        call(of_no_shape)
    with pytest.raises(
        flowdata.FlowDataError, match=r"died again and again over rows \d+ to \d+: "
    ):
        call(dies)
    options = {"workers": 2, "progress": False}
    with pytest.raises(RuntimeError, match="no such weights"):
        flowdata.score_on_ray(fails_to_load, Numbers(), dies, **options)
    with pytest.raises(flowdata.MismatchError, match=r"what a worker on .* model_hash="):
        flowdata.score_on_ray(another_each_time, Numbers(), waits, **options)


@long_run
def test_ray_data_scores_blocks_in_actors_and_one_that_is_killed_changes_no_bit(tmp_path):
    rows = [{"id": f"doc-{n}", **row} for n, row in enumerate(samples(48))]
    data, loss = datasets.Dataset.from_list(rows), flowdata.CausalLM()
    expected = [
        flowdata.score(Sums(), data.select(some), loss, progress=False).losses
        for some in (range(16), range(16, 32), range(32, 48))
    ]
    scored = ray.data.from_items(rows, override_num_blocks=3).map_batches(
        KilledOnce,
        fn_constructor_args=(tmp_path, "doc-20", Sums, loss),
        fn_constructor_kwargs={"key": "id", "keep": ()},
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    scored.write_parquet(str(tmp_path / "scored"))
    assert (tmp_path / "killed").exists()
    table = flowdata.read_scored(tmp_path / "scored", key="id", dataset=data)
    assert np.array_equal(table.losses, np.concatenate(expected))
    whole = flowdata.score(Sums(), data, loss, key="id", progress=False)
    assert table.provenance.identity() == whole.provenance.identity()
    np.testing.assert_allclose(table.losses, whole.losses, rtol=1e-5)


@long_run
def test_the_command_scores_on_ray_what_it_scores_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer, model = family("byte-level"), llama()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for saved in (tokenizer, model):
        saved.save_pretrained("model")
    rows = [{"q": f"The {'quick ' * (n % 7)}fox", "a": " jumps."} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["score", "--model", "model", "--data", "data.jsonl", "--prompt", "q"]
    command += ["--response", "a", "--output"]
    assert main([*command, "here.parquet"]) == 0
    assert main([*command, "ray.parquet", "--engine", "ray", "--workers", "2"]) == 0
    assert "ray.parquet is written" in capsys.readouterr().out
    assert_same_tables("here.parquet", "ray.parquet")
    assert main([*command, "x.parquet", "--workers", "2"]) == 1
    assert "--workers are those of --engine ray" in capsys.readouterr().err


@long_run
def test_the_command_scores_a_checkpoint_of_any_kind_on_ray(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 16, "intermediate_size": 16, "num_labels": 3}
    config = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    BertForSequenceClassification(config).save_pretrained("model")
    rows = [{"input_ids": row["input_ids"], "labels": n % 3} for n, row in enumerate(samples(20))]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    command = ["score", "--model", "model", "--data", "data.jsonl", "--loss", "classification"]
    assert main([*command, "--output", "here.parquet"]) == 0
    assert main([*command, "--output", "ray.parquet", "--engine", "ray"]) == 0
    assert_same_tables("here.parquet", "ray.parquet")


def assert_same_tables(*paths):
    here, there = map(flowdata.LossTable.load, paths)
    assert np.array_equal(here.losses, there.losses)
    assert here.provenance.identity() == there.provenance.identity()
    assert here.provenance.model == there.provenance.model
