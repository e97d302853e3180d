"""Losses of models to whom it matters what else is in a batch, or came before."""

import numpy as np
import pytest
import text_models as text
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F
from transformers import (
    BigBirdConfig,
    BigBirdForMaskedLM,
    BigBirdPegasusConfig,
    BigBirdPegasusForConditionalGeneration,
    CanineConfig,
    CanineForTokenClassification,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3ForSequenceClassification,
    ReformerConfig,
    ReformerForMaskedLM,
)

from flowdata import CausalLM, score

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_model(kind, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.normal_(0, 0.3)
    return model


def rows_of_tokens(count=60, least=2, most=60):
    numbers = np.random.default_rng(0)
    ids = [numbers.integers(3, 90, size) for size in numbers.integers(least, most, count)]
    return [{"input_ids": some.tolist(), "labels": some.tolist()} for some in ids]


def long_rope():
    rope = {
        "rope_type": "longrope", "rope_theta": 10_000.0,
        "long_factor": [4.0] * 4, "short_factor": [1.0] * 4,
    }  # fmt: skip
    return Phi3Config(
        vocab_size=96, intermediate_size=16, pad_token_id=0, num_labels=3,
        num_key_value_heads=2, rope_parameters=rope, original_max_position_embeddings=24,
        max_position_embeddings=128, **SIZES,
    )  # fmt: skip


def test_rows_on_both_sides_of_the_limit_of_rotary_embeddings_are_in_batches_apart():
    model, rows = random_model(Phi3ForCausalLM, long_rope()), rows_of_tokens()
    losses = score(model, rows, CausalLM(max_tokens=4_000), progress=False).losses
    np.testing.assert_allclose(losses, text.own_losses(model, rows), rtol=1e-5)
    model = random_model(Phi3ForSequenceClassification, long_rope())
    rows = [row | {"labels": number % 3} for number, row in enumerate(rows)]
    np.testing.assert_allclose(
        score(model, rows, progress=False).losses, text.own_losses(model, rows), rtol=1e-4
    )


@pytest.mark.parametrize("loss", ["token_labels", "classification"])
@pytest.mark.parametrize("rows", [rows_of_tokens(), rows_of_tokens(80, 20, 40)])
def test_padding_that_is_seen_by_some_rows_alone_is_found_out(loss, rows):
    config = ReformerConfig(
        vocab_size=96, is_decoder=False, hidden_size=16, feed_forward_size=16,
        num_attention_heads=2, attention_head_size=8, attn_layers=["local", "local"],
        axial_pos_embds=False, max_position_embeddings=128, local_attn_chunk_length=8,
    )  # fmt: skip
    model = random_model(ReformerForMaskedLM, config)
    losses = score(model, rows, loss, progress=False).losses
    np.testing.assert_allclose(losses, text.own_losses(model, rows), rtol=1e-5)


def test_a_model_whose_attention_changes_for_good_is_refused():
    encoder = BigBirdConfig(vocab_size=96, intermediate_size=16, block_size=4, **SIZES)
    pair = BigBirdPegasusConfig(
        vocab_size=96, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, block_size=4,
    )  # fmt: skip
    kinds = (BigBirdForMaskedLM, encoder), (BigBirdPegasusForConditionalGeneration, pair)
    for (kind, config), loss in zip(kinds, ("token_labels", "seq2seq"), strict=True):
        with pytest.raises(TypeError, match="attention_type='original_full'"):
            score(kind(config), rows_of_tokens(4), loss, progress=False)
        config.attention_type = "original_full"
        model, rows = random_model(kind, config), rows_of_tokens(40)
        losses = score(model, rows, loss, progress=False).losses
        np.testing.assert_allclose(losses, text.own_losses(model, rows), rtol=1e-5)


def test_a_model_without_a_token_of_padding_is_told_of_it():
    config = Phi3Config(
        vocab_size=96, intermediate_size=16, num_labels=3, pad_token_id=None, **SIZES
    )
    model = random_model(Phi3ForSequenceClassification, config)
    rows = [row | {"labels": 1} for row in rows_of_tokens(6)]
    with pytest.raises(
        ValueError, match=r"set model\.config\.pad_token_id = tokenizer.pad_token_id"
    ):
        score(model, rows, progress=False)
    assert len(score(model, rows, batch_size=1, progress=False).losses) == 6


def test_a_model_of_characters_has_no_table_of_tokens():
    config = CanineConfig(intermediate_size=16, num_labels=3, max_position_embeddings=64, **SIZES)
    model = random_model(CanineForTokenClassification, config)
    rows = [row | {"labels": [1] * len(row["input_ids"])} for row in rows_of_tokens(12, 8, 40)]
    losses = score(model, rows, "token_labels", progress=False).losses
    np.testing.assert_allclose(losses, text.own_losses(model, rows), rtol=1e-5)


def test_tables_in_place_of_rows_and_a_name_in_place_of_a_model_are_named():
    model, rows = random_model(Phi3ForCausalLM, long_rope()), rows_of_tokens(3)
    with pytest.raises(TypeError, match=r"rows .* are tables"):
        score(model, Dataset.from_list(rows).with_format("arrow"), "causal_lm", progress=False)
    with pytest.raises(TypeError, match="the model is a str"):
        score("gpt2", rows, "causal_lm", progress=False)


class Through(nn.Module):
    """A linear layer of what a function makes of the inputs."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.layer = function, nn.Linear(8, 5)

    def forward(self, inputs):
        return self.layer(self.function(inputs))


NUMBERS = torch.Generator().manual_seed(1)
VECTORS = torch.randn(40, 8, generator=NUMBERS)
PAIRS = [(vector, number % 5) for number, vector in enumerate(VECTORS)]


class Stateful(Through):
    def __init__(self):
        super().__init__(self.and_last)
        self.last = torch.zeros(8)

    def and_last(self, inputs):
        self.last = inputs[-1] + self.last
        return inputs + self.last


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Through(F.dropout), r"the loss of row \d+ is random: .* the second time"),
        (Stateful(), "keeps something from one batch to the next"),
        (Through(lambda x: x - x.mean(0)), "depends on the other rows .* alone.* batch_size=1"),
        (Through(nn.BatchNorm1d(8, track_running_stats=False)), "beside one other.* pass loss="),
    ],
    ids=["dropout", "state", "mean", "norm"],
)
@pytest.mark.parametrize("loss", ["classification", "cross_entropy"])
def test_losses_that_are_random_or_depend_on_other_rows_are_refused(model, said, loss):
    with pytest.raises(ValueError, match=said):
        score(model, PAIRS, loss, progress=False)


def one_at_a_time(inputs):
    assert len(inputs) == 1
    return inputs


def batches_alone(inputs):
    assert len(inputs) > 2
    return inputs


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (nn.Sequential(nn.Dropout(), nn.BatchNorm1d(8)), {}),
        (batches_alone, {}),
        (lambda x: x.bfloat16().float(), {}),
        (one_at_a_time, {"batch_size": 1}),
        (lambda x: x - x.mean(0), {"batch_size": 1}),
        (lambda x: x - x.mean(0), {"loss": lambda model, batch: model(batch[0])[:, 0] ** 2}),
    ],
)
def test_losses_of_samples_are_those_of_the_first_time(function, options):
    score(Through(function), PAIRS, progress=False, **options)


def test_rounding_of_a_nearly_exact_regression_is_no_dependence():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 1, bias=False))
    model[2].weight.data *= 1e6
    with torch.no_grad():
        targets = model(VECTORS) + torch.randn(40, 1, generator=NUMBERS) / 10
    score(model, [*zip(VECTORS, targets, strict=True)], "mse", progress=False)


def test_bags_of_tokens_that_are_one_row_of_tensors_are_scored():
    """Their tokens are no values of samples: no sample can be taken alone."""

    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.bag = nn.EmbeddingBag(90, 5)

        def forward(self, tokens, offsets):
            return self.bag(tokens, offsets)

    def collate(rows):
        sizes = [0, *(len(row["input_ids"]) for row in rows[:-1])]
        tokens = torch.tensor([token for row in rows for token in row["input_ids"]])
        labels = torch.arange(len(rows)) % 5
        return {"tokens": tokens, "offsets": torch.tensor(sizes).cumsum(0), "labels": labels}

    model, rows = Bags(), rows_of_tokens(20)
    losses = score(model, rows, collate_fn=collate, progress=False).losses
    logits = torch.stack([model.bag.weight[row["input_ids"]].mean(0) for row in rows])
    wanted = F.cross_entropy(logits, torch.arange(20) % 5, reduction="none")
    np.testing.assert_allclose(losses, wanted.detach(), rtol=1e-5)


def test_a_model_on_the_meta_device_is_refused():
    with pytest.raises(TypeError, match="on the meta device, which has no values"):
        score(nn.Linear(8, 5).to("meta"), PAIRS, progress=False)
