"""A number is the model's own loss of the sample, or there is an error."""

import numpy as np
import pytest
import text_models as text
import torch
import transformers
from language_models import llama
from torch import nn
from torch.nn import functional as F

from flowdata import CausalLM, Seq2Seq, TokenLabels, score

DECODER = {
    "vocab_size": text.VOCABULARY,
    "d_model": 32,
    "decoder_layers": 1,
    "decoder_ffn_dim": 32,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.5,
}


def scored(model, rows, loss):
    return score(model, rows, loss, progress=False).losses


def test_the_balance_of_experts_is_no_loss_of_a_sample():
    rows = text.causal_rows(6)
    model = text.made(lambda: text.qwen3_moe(output_router_logits=True))
    with pytest.raises(TypeError, match=r"output_router_logits.*set it to False"):
        scored(model, rows, "causal_lm")
    model.config.output_router_logits = False
    np.testing.assert_allclose(
        scored(model, rows, "causal_lm"), text.own_losses(model, rows), rtol=1e-5
    )


def test_a_model_that_does_not_shift_labels_is_scored_where_they_stand():
    model = text.made(lambda: transformers.BartForCausalLM(transformers.BartConfig(**DECODER)))
    rows = text.causal_rows(6)
    with pytest.raises(TypeError, match=r"each label at the token before.*TokenLabels"):
        scored(model, rows, CausalLM())
    shifted = [{**row, "labels": [*row["labels"][1:], -100]} for row in rows]
    losses = scored(model, shifted, TokenLabels())
    np.testing.assert_allclose(losses, text.own_losses(model, shifted), rtol=1e-5)
    with pytest.raises(TypeError, match=r"predicts the next token.*CausalLM"):
        scored(llama(), rows, TokenLabels())


def test_a_loss_with_a_term_of_its_own_is_refused():
    config = transformers.ProphetNetConfig(
        vocab_size=text.VOCABULARY,
        hidden_size=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_encoder_attention_heads=4,
        num_decoder_attention_heads=4,
        max_position_embeddings=64,
    )
    model = text.made(lambda: transformers.ProphetNetForConditionalGeneration(config))
    with pytest.raises(TypeError, match="computes a loss of its own"):
        scored(model, text.pair_rows(6), Seq2Seq())


class Smoothed(nn.Module):
    """A causal model of one's own, whose labels are smoothed by so much."""

    def __init__(self, smoothing=0.0, noise=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.inner = llama()
        self.smoothing, self.noise = smoothing, noise

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.inner(input_ids, attention_mask=attention_mask).logits
        if labels is None:
            return logits
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=self.smoothing
        )
        return {"loss": loss + self.noise * torch.rand(()), "logits": logits}


def test_smoothed_labels_are_refused_and_a_random_loss_says_nothing():
    rows = text.causal_rows(6)
    with pytest.raises(TypeError, match="Smoothed computes a loss of its own"):
        scored(Smoothed(0.1), rows, "causal_lm")
    expected = scored(llama(), rows, "causal_lm")
    np.testing.assert_allclose(scored(Smoothed(), rows, "causal_lm"), expected, rtol=1e-6)
    np.testing.assert_allclose(scored(Smoothed(noise=1.0), rows, "causal_lm"), expected, rtol=1e-6)


class SmoothedElsewhere(Smoothed):
    """Computes another loss of all but one sample, as smoothed labels are by chance."""

    def forward(self, input_ids, attention_mask=None, labels=None):
        self.smoothing = 0.1 * float(input_ids[0, 0] != 6)
        return super().forward(input_ids, attention_mask, labels)


@pytest.mark.parametrize("plain", range(6))
def test_a_loss_that_is_alike_for_one_sample_by_chance_is_refused(plain):
    rows = [{"input_ids": [7 + n, 8, 9, 10], "labels": [-100, 8, 9, 10]} for n in range(6)]
    rows[plain]["input_ids"][0] = 6
    with pytest.raises(TypeError, match="computes a loss of its own"):
        scored(SmoothedElsewhere(), rows, "causal_lm")


class LastToken(nn.Module):
    """Labels tokens by the last one too, whether it is padding or not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(text.VOCABULARY, 16)
        self.out = nn.Linear(16, 5)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embed(input_ids)
        logits = self.out(hidden + hidden[:, -1:])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return transformers.modeling_outputs.TokenClassifierOutput(loss=loss, logits=logits)


@pytest.mark.parametrize("loss", [TokenLabels(), TokenLabels(max_tokens=200), "classification"])
def test_padding_that_a_model_sees_is_left_out(loss):
    model, rows = LastToken().eval(), text.label_rows(5)
    np.testing.assert_allclose(scored(model, rows, loss), text.own_losses(model, rows), rtol=1e-5)
