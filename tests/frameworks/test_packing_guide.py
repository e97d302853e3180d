"""The examples of token weights and of packing in the guide run, each on its own."""

import datasets
import lightning
import numpy as np
import pytest
import torch
import transformers
import trl
from frameworks_language import make_model, make_tokenizer, sentences
from guides import ROOT, blocks
from torch.utils.data import DataLoader

import flowdata

pytestmark = pytest.mark.slow

GUIDE = ROOT / "flowdata" / "frameworks" / "README.md"
EXAMPLES = {
    name: next(block for block in blocks(GUIDE) if f"\n{call}" in f"\n{block.text}")
    for name, call in {
        "TRL, masked": "trainer.train_dataset = flowdata.mask_tokens(",
        "TRL": "draw_from(",
        "transformers": "trainer = Trainer(",
        "accelerate": "accelerator = Accelerator(",
        "Lightning": "lightning.Trainer(",
    }.items()
}


def names():
    tokenizer = make_tokenizer()
    texts = [text + tokenizer.eos_token for text in sentences()]
    tokenized = [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]
    return {
        "DataLoader": DataLoader,
        "flowdata": flowdata,
        "language_model": make_model(len(tokenizer)),
        "lengths": [len(row["input_ids"]) for row in tokenized],
        "texts": datasets.Dataset.from_dict({"text": texts}),
        "tokenized": tokenized,
        "tokenizer": tokenizer,
        "torch": torch,
        # Packs of the examples hold more than all the rows: of each there are some.
        "weights": np.arange(1.0, len(texts) + 1),
    }


def test_there_is_no_other_example():
    assert len(EXAMPLES) == len([block for block in blocks(GUIDE) if block.language == "py"])


@pytest.mark.filterwarnings("ignore:'set_vital'")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}

    def made_quiet(cls, **more):
        return lambda *args, **options: cls(*args, **more, **options)

    monkeypatch.setattr(trl, "SFTConfig", made_quiet(trl.SFTConfig, bf16=False, **quiet))
    monkeypatch.setattr(
        transformers, "TrainingArguments", made_quiet(transformers.TrainingArguments, **quiet)
    )
    bare = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    shown = {"enable_progress_bar": False, "enable_model_summary": False}
    monkeypatch.setattr(lightning, "Trainer", made_quiet(lightning.Trainer, **bare, **shown))
    given = names()
    weight = given["language_model"].get_input_embeddings().weight
    before = weight.detach().clone()
    block = EXAMPLES[name]
    # Small packs, so that there are several.
    text = block.text.replace("2048", "24").replace("1024", "24")
    exec(compile("\n" * (block.line - 1) + text, str(GUIDE), "exec"), given)
    if name == "accelerate":
        assert weight.grad.abs().sum() > 0
    else:
        assert not weight.equal(before)
