"""Heads of models of text, of rows of several lengths."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from flowdata import linear_probe, score, score_probe

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
GENERATOR = np.random.default_rng(0)
ROWS = [
    {"input_ids": GENERATOR.integers(3, 60, size).tolist(), "label": number % 3, "id": number}
    for number, size in enumerate(GENERATOR.integers(2, 20, 40))
]


def bert():
    config = BertConfig(num_attention_heads=2, num_labels=3, **SIZES)
    return BertForSequenceClassification(config), "classifier"


def llama():
    config = LlamaConfig(num_attention_heads=2, num_labels=3, pad_token_id=0, **SIZES)
    return LlamaForSequenceClassification(config), "score"


class SeesPadding(nn.Module):
    """A mean of all tokens, whatever the mask says."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Embedding(60, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.head(self.body(input_ids).mean(dim=1))


MODELS = [bert, llama, lambda: (SeesPadding(), "head")]


def made(make):
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("make", MODELS, ids=["bert", "llama", "sees padding"])
def test_a_head_is_fitted_to_what_it_sees_of_each_row_alone(make):
    model, head = made(make)
    reached = linear_probe(model, ROWS, head=head, batch_size=16, progress=False)
    with pytest.warns(UserWarning, match="the head was fitted on these rows"):
        losses = score(model, ROWS, batch_size=1, progress=False).losses
    assert reached == pytest.approx(losses.mean(), rel=1e-4)


@pytest.mark.parametrize("make", MODELS, ids=["bert", "llama", "sees padding"])
def test_batches_of_several_lengths_and_rows_alone_give_the_same_losses(make, tmp_path):
    def losses(**options):
        model, head = made(make)
        how = {"weight_decay": 0.1, "batch_size": 16} | options
        return score_probe(model, ROWS, head=head, progress=False, **how).losses

    found = losses()
    output = tmp_path / "probe.parquet"
    for job in (1, 0):
        losses(output=output, shard=(job, 2))
    np.testing.assert_array_equal(losses(output=output), found)
    np.testing.assert_allclose(losses(batch_size=1), found, rtol=1e-3)


def test_a_head_of_zeros_does_not_tell_which_token_is_taken():
    model, head = made(llama)
    nn.init.zeros_(model.score.weight)
    with pytest.raises(ValueError, match="must see one feature vector per sample"):
        score_probe(model, ROWS, head=head, progress=False)


def test_a_row_that_cannot_be_read_is_named():
    model, head = made(bert)
    rows = [*ROWS, {"input_ids": [70], "label": 0, "id": 40}]
    with pytest.raises(ValueError, match=r"row 40: it has tokens 70 to 70"):
        score_probe(model, rows, head=head, progress=False)
