"""The guide's examples of frameworks run, each on its own, and draw by weight."""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from frameworks_common import ROWS
from guides import README, ROOT, blocks, links, name_of, section, table_rows
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import flowdata

GUIDE = ROOT / "flowdata" / "map_style" / "README.md"
# What tests that a run resumes, for each row of the README's table.
TESTED = {
    "you, one process": "map_style/test_sampler_resume.py",
    "you, under torchrun": "map_style/test_distributed.py",
    "torchdata": "frameworks/test_stateful_ranks.py",
    "accelerate": "frameworks/test_accelerate.py",
    "transformers Trainer": "frameworks/test_trainer.py",
    "TRL SFTTrainer": "frameworks/test_trl_and_peft.py",
    "Lightning": "frameworks/test_lightning.py",
    "anyone, over tar shards": "streaming/test_stream_resume.py",
    "anyone, over a stream of rows": "rows/test_resampled_streams.py",
    "anyone, packing texts": "map_style/test_pack_states.py",
}
WITHOUT_STATE = [
    "anyone, in a WebDataset pipeline",
    "anyone, weighting the loss instead",
    "a trainer that reads files",
]
FRAMEWORKS = ["torchdata", "accelerate", "transformers", "TRL", "Lightning"]
# The guide has one more than the README's table.
EXAMPLES = [*FRAMEWORKS, "Lightning Fabric"]


def example(framework):
    """The one example under a framework's heading, and where it is."""
    text = section(GUIDE, framework)
    (block,) = [block for block in blocks(GUIDE) if block.language == "py" and block.text in text]
    return "\n" * (block.line - 1) + block.text


class Seen(TensorDataset):
    """Counts how often each row is read."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.reads = torch.zeros(len(self), dtype=torch.int64).share_memory_()

    def __getitem__(self, row):
        self.reads[row] += 1
        return super().__getitem__(row)


def test_each_row_of_the_table_has_a_test_that_resumes_a_run():
    owners = [row[0] for row in table_rows(section(README, "Which door?"))]
    assert owners == [*TESTED, *WITHOUT_STATE]
    for file in TESTED.values():
        text = (Path(__file__).parents[1] / file).read_text()
        assert "pytest.mark.skip(" not in text
        assert re.search(r"def test_\w*(resum|goes_on|started_again)", text), file


def test_each_framework_of_the_table_has_an_example():
    assert set(TESTED) >= {"torchdata", "accelerate", "transformers Trainer", "Lightning"}
    linked = {anchor for path, anchor in links(README) if (ROOT / path) == GUIDE}
    assert {framework.lower() for framework in FRAMEWORKS} <= linked
    assert len([block for block in blocks(GUIDE) if block.language == "py"]) == len(EXAMPLES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'set_vital'")
@pytest.mark.parametrize("framework", EXAMPLES)
def test_an_example_runs_and_draws_no_row_of_weight_zero(framework, tmp_path, monkeypatch):
    if module := {"TRL": "trl", "Lightning": "lightning", "Lightning Fabric": "lightning"}.get(
        framework
    ):
        pytest.importorskip(module)
    if framework == "TRL":
        import trl

        on_cpu = functools.partial(trl.SFTConfig, use_cpu=True, bf16=False)
        monkeypatch.setattr(trl, "SFTConfig", on_cpu)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    torch.manual_seed(0)
    weights = np.random.default_rng(0).random(200)
    weights[::2] = 0.0
    data = Seen(torch.rand(200, 64), torch.arange(200) % 10)
    network = nn.Linear(64, 10)
    names = {
        "flowdata": flowdata,
        "torch": torch,
        "F": F,
        "DataLoader": DataLoader,
        "weights": weights,
        "data": data,
        "network": network,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.01),
        **(language() if framework in ("transformers", "TRL") else {}),
    }
    exec(compile(example(framework), name_of(GUIDE), "exec"), names)
    if "trainer" in names:
        assert names["trainer"].state.global_step == 2
        assert isinstance(names["trainer"].train_dataset, flowdata.FlowDataset)
    else:
        assert data.reads[::2].sum() == 0
        assert data.reads.sum() >= 32


def language():
    """What the guide takes for given: rows with losses, a model, a tokenizer."""
    import datasets
    from frameworks_language import make_model, make_tokenizer, sentences
    from transformers import DataCollatorForSeq2Seq

    tokenizer = make_tokenizer()
    return {
        "language_model": make_model(len(tokenizer)),
        "tokenizer": tokenizer,
        "texts": datasets.Dataset.from_dict({"text": sentences()}),
        "tokenized": [
            {**(row := tokenizer(text)), "labels": row["input_ids"]} for text in sentences()
        ],
        "collator": DataCollatorForSeq2Seq(tokenizer),
        "table": flowdata.LossTable.from_losses(np.random.default_rng(0).random(ROWS)),
    }
