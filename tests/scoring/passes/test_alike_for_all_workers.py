"""What a pass finds out once is found out alike by all who share it, whichever rows they score."""

import copy

import numpy as np
import pytest
import torch
from language_models import llama
from text_models import VOCABULARY, bert
from tokenizer_families import family
from torch import nn
from transformers import BertForTokenClassification

from flowdata import CausalLM, LossTable, TokenLabels, score
from flowdata.scoring.language.causal_lm import LanguagePass
from flowdata.scoring.language.padded_pass import PaddedPass


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(LanguagePass, "rows_per_read", 8)
    monkeypatch.setattr(PaddedPass, "probed", 8)


class SeesLongPadding(nn.Module):
    """Moved by how wide a batch is, if it is wide."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = BertForTokenClassification(bert(num_labels=5).config)
        self.config = self.inner.config

    def forward(self, input_ids=None, attention_mask=None):
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        if (width := input_ids.shape[1]) > 12:
            output.logits = output.logits * (1 + width / 100)
        return output


def labelled(sizes):
    random = np.random.default_rng(0)
    for size in sizes:
        ids = random.integers(3, VOCABULARY, size)
        yield {"input_ids": ids.tolist(), "labels": random.integers(0, 5, size).tolist()}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([3, 12, 5, 9, 4, 11, 10, 7], range(10, 18)),
        ([14, 20, 15, 19, 13, 18, 17, 16], range(3, 11)),
        ([6] * 8, [14, 20, 15, 19, 13, 18, 17, 16]),
        ([6] * 8, range(3, 11)),
    ],
)
def test_padding_is_tried_on_rows_of_all_parts_or_on_each_block(tmp_path, first, then):
    rows = [*labelled([*first, *then, 5, 3, 8, 4, 7, 6, 9, 10])]
    model = SeesLongPadding().eval()
    loss = TokenLabels(token_losses=True, max_tokens=60)
    expected = score(model, rows, loss, progress=False)
    for number in (2, 0, 1):
        score(model, rows, loss, output=tmp_path / "l", shard=(number, 3), progress=False)
    found = LossTable.merge(tmp_path / "l.parts")
    assert found.token_losses.tobytes() == expected.token_losses.tobytes()


def test_a_job_that_sees_turns_alone_knows_that_its_data_begins_with_texts(tmp_path):
    # That of all tests has a template of its own.
    tokenizer = copy.deepcopy(family("byte-level"))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    texts = [{"p": "Say", "r": f" {n}"} for n in range(8)]
    turns = [
        {"p": [{"role": "user", "content": "Say"}], "r": [{"role": "assistant", "content": f"{n}"}]}
        for n in range(8)
    ]
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    loss = CausalLM(tokenizer, prompt="p", response="r")
    score(model, texts + turns, loss, output=tmp_path / "l", shard=(0, 2), progress=False)
    with pytest.raises(ValueError, match="row 8 holds turns, row 0 text"):
        score(model, texts + turns, loss, output=tmp_path / "l", shard=(1, 2), progress=False)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([3, 12, 5, 9, 4, 11, 10, 7], range(10, 18)),
        ([14, 20, 15, 19, 13, 18, 17, 16], range(3, 11)),
        ([6] * 8, [14, 20, 15, 19, 13, 18, 17, 16]),
    ],
)
def test_so_do_batches_of_texts_with_a_label(tmp_path, first, then):
    rows = [*labelled([*first, *then, 5, 3, 8, 4, 7, 6, 9, 10])]
    model = SeesLongPadding().eval()
    given = {"batch_size": 8, "progress": False}
    expected = score(model, rows, "cross_entropy", **given)
    for number in (2, 0, 1):
        score(model, rows, "cross_entropy", output=tmp_path / "l", shard=(number, 3), **given)
    assert LossTable.merge(tmp_path / "l.parts").losses.tobytes() == expected.losses.tobytes()
