"""Losses of models of text are those that the model computes itself, of each row alone."""

import numpy as np
import pytest
import text_models as text

from flowdata import Seq2Seq, TokenLabels, score

# One of each kind of model; all of them are slow.
FAST = {
    "Gemma 3", "gpt-oss", "Mamba", "T5", "BART", "Whisper", "BERT, tokens", "BERT, masks",
    "classes", "several labels", "numbers", "XLNet",
}  # fmt: skip


def families(models):
    return [
        pytest.param(name, id=name, marks=() if name in FAST else pytest.mark.slow)
        for name in models
    ]


def assert_own(losses, model, rows):
    own = text.own_losses(model, rows)
    assert len(rows) >= 40
    assert own.std() > 0.05 * own.mean()
    np.testing.assert_allclose(losses, own, rtol=1e-5)


@pytest.mark.parametrize("name", families(text.CAUSAL))
def test_causal_models(name):
    model, rows = text.made(text.CAUSAL[name]), text.causal_rows()
    assert_own(score(model, rows, "causal_lm", progress=False).losses, model, rows)


@pytest.mark.parametrize("name", families(text.SEQ2SEQ))
def test_encoder_decoder_models(name):
    model = text.made(text.SEQ2SEQ[name])
    media = name in ("Whisper", "Speech2Text", "ViT to BERT")
    rows = text.media_rows(name) if media else text.pair_rows()
    for max_tokens in (1, 300, 10_000):
        table = score(model, rows, Seq2Seq(max_tokens=max_tokens), progress=False)
        assert_own(table.losses, model, rows)
    fed = [len(row.get("input_ids", ())) + len(row["labels"]) for row in rows]
    assert table.lengths.tolist() == fed
    assert table.n_tokens.tolist() == [sum(x >= 0 for x in row["labels"]) for row in rows]


@pytest.mark.parametrize("name", families(text.LABELLED))
def test_models_that_label_tokens_or_fill_in_masked_ones(name):
    model = text.made(text.LABELLED[name])
    rows = text.label_rows(text.VOCABULARY if "masks" in name else 5)
    sizes = [len(row["input_ids"]) for row in rows]
    for loss in (TokenLabels(), "classification", "cross_entropy"):
        table = score(model, rows, loss, batch_size=16, progress=False)
        assert_own(table.losses, model, rows)
        assert table.lengths.tolist() == sizes


@pytest.mark.parametrize("name", families(text.SEQUENCES))
def test_models_that_label_sequences_of_uneven_length(name):
    make, kind = text.SEQUENCES[name]
    model, rows = text.made(make), text.sequence_rows(kind)
    table = score(model, rows, batch_size=16, progress=False)
    assert_own(table.losses, model, rows)
    assert table.lengths.tolist() == [len(row["input_ids"]) for row in rows]
