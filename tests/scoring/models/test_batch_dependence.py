"""Losses of models to whom it matters what else is in a batch, or came before."""

import numpy as np
import pytest
import text_models as text
import torch
from datasets import Dataset
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
