"""``flowdata score --proxy``: a small model in place of the large one, on the command line."""

import copy
import json

import numpy as np
import pytest
import torch
from tokenizer_families import family
from transformers import LlamaConfig, LlamaForCausalLM

import flowdata
from flowdata.commands.cli import main

ROWS = [
    {"id": f"row-{n}", "q": f"{n} and {'so on ' * (n % 7)}", "a": f"is {n * n}"} for n in range(64)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a large and of a small model."""
    folders = []
    for layers in (2, 1):
        folder = tmp_path_factory.mktemp(f"layers{layers}")
        tokenizer = copy.deepcopy(family("byte-level"))
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16,
            num_hidden_layers=layers, num_attention_heads=2, initializer_range=0.5,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder)
        folders.append(folder)
    return folders


def test_a_small_model_scores_all_rows_and_the_large_one_a_sample(models, tmp_path, capsys):
    large, small = models
    data, output = tmp_path / "data.jsonl", tmp_path / "table.parquet"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    command = ["score", "--model", large, "--data", data, "--prompt", "q", "--response", "a"]
    command = [*map(str, [*command, "--output", output, "--key", "id", "--sample", 32])]
    assert main([*command, "--proxy", str(small)]) == 0
    shown = capsys.readouterr().out
    assert f"losses of {small} in place of {large}" in shown
    assert "scored by both models        32 of 64 rows" in shown
    table = flowdata.LossTable.load(output)
    sample = flowdata.LossTable.load(tmp_path / "table.sample.parquet")
    assert (len(table), len(sample)) == (64, 32)
    assert table.provenance.model == f"{small} in place of {large}"
    assert table.rows_of(["row-3"]).tolist() == [3]
    table.check(model=LlamaForCausalLM.from_pretrained(small, dtype=torch.float32))
    # What is there is not scored again, and says the same.
    assert main([*command, "--proxy", str(small)]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-5:] == shown.splitlines()[-5:]
    # The large model's own pass is another one.
    assert main(command) == 1
    assert "model" in capsys.readouterr().err
    assert np.array_equal(flowdata.LossTable.load(output).losses, table.losses)


def test_a_sample_is_for_a_proxy(models, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    command = ["score", "--model", models[0], "--data", data, "--prompt", "q", "--response", "a"]
    command += ["--output", tmp_path / "t.parquet", "--sample", "9"]
    assert main([*map(str, command)]) == 1
    assert "--sample is of rows that a small model scores too" in capsys.readouterr().err
    assert not (tmp_path / "t.parquet").exists()


def test_jobs_of_an_array_have_no_proxy(models, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(ROWS[0]) + "\n")
    command = ["score", "--model", models[0], "--proxy", models[1], "--data", data, "--prompt", "q"]
    command += ["--response", "a", "--output", tmp_path / "t.parquet", "--shard", "0/2"]
    assert main([*map(str, command)]) == 1
    assert "--proxy is for a pass of this process" in capsys.readouterr().err
