"""Seq2Seq: rows of text and of tokens, as the collators of transformers make batches of them."""

import datasets
import numpy as np
import pytest
import text_models as text
import torch
from transformers import DataCollatorForSeq2Seq, MBartTokenizer
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from flowdata import (
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    MismatchError,
    Seq2Seq,
    lengths,
    score,
)

WORDS = ["hello", "world", "wie", "geht", "es", "dir", "ich", "bin", "da", "one", "two", "three"]
PIECES = [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -3.0)] + [(c, -5.0) for c in "abcxyz"]
SPECIAL = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
RANDOM = np.random.default_rng(0)
TEXTS = [
    {
        "de": " ".join(RANDOM.choice(WORDS, size=source)),
        "en": " ".join(RANDOM.choice(WORDS, size=target)),
    }
    for source, target in RANDOM.integers(1, 12, size=(40, 2)).tolist()
]


def of_t5():
    return text.t5_with_tokenizer(WORDS)


def of_mbart(target="en_XX"):
    codes = [(code, 0.0) for code in FAIRSEQ_LANGUAGE_CODES]
    tokenizer = MBartTokenizer(
        vocab=[*SPECIAL, *PIECES, *codes, ("<mask>", 0.0)], src_lang="de_DE", tgt_lang=target
    )
    return text.made(lambda: text.mbart(len(tokenizer))), tokenizer


def scored(model, rows, loss, **options):
    return score(model, rows, loss, progress=False, **options)


def collated_losses(model, tokenizer, rows, **cut):
    """Of each row alone, as a script of transformers would train on it."""
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    losses = []
    for row in rows:
        features = tokenizer(row["de"], text_target=row["en"], **cut)
        with torch.no_grad():
            losses.append(model(**collate([features])).loss.item())
    return losses


@pytest.mark.parametrize("make", [of_t5, of_mbart])
def test_texts_are_scored_as_the_collator_of_transformers_gives_them(make):
    model, tokenizer = make()
    loss = Seq2Seq(tokenizer, source="de", target="en", token_losses=True)
    table = scored(model, datasets.Dataset.from_list(TEXTS), loss)
    expected = collated_losses(model, tokenizer, TEXTS)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(table.losses, expected, rtol=1e-5)
    targets = tokenizer(text_target=[row["en"] for row in TEXTS])["input_ids"]
    assert table.n_tokens.tolist() == [len(ids) for ids in targets]
    means = [run.mean() for run in np.split(table.token_losses, np.cumsum(table.n_tokens)[:-1])]
    np.testing.assert_allclose(means, table.losses, rtol=1e-5)
    sources = tokenizer([row["de"] for row in TEXTS])["input_ids"]
    assert table.lengths.tolist() == [
        len(a) + len(b) for a, b in zip(sources, targets, strict=True)
    ]
    np.testing.assert_array_equal(lengths(TEXTS, loss, progress=False), table.lengths)


def test_longer_texts_are_cut_by_the_tokenizer_which_keeps_the_end():
    model, tokenizer = of_t5()
    loss = Seq2Seq(tokenizer, "de", "en", max_source_length=5, max_target_length=5)
    with pytest.warns(FlowDataWarning, match="of 40 samples were longer"):
        table = scored(model, TEXTS, loss)
    expected = collated_losses(model, tokenizer, TEXTS, truncation=True, max_length=5)
    np.testing.assert_allclose(table.losses, expected, rtol=1e-5)
    assert table.lengths.max() == 10


def test_languages_are_those_of_the_tokenizer_and_part_of_the_identity(tmp_path):
    losses = {}
    for target in ("en_XX", "fr_XX"):
        model, tokenizer = of_mbart(target)
        loss = Seq2Seq(tokenizer, source="de", target="en")
        losses[target] = scored(model, TEXTS, loss).losses
        assert loss.identity()["tgt_lang"] == target
    assert (losses["en_XX"] != losses["fr_XX"]).all()
    output = tmp_path / "losses.parquet"
    scored(model, TEXTS, loss, output=output)
    tokenizer.src_lang = "it_IT"
    with pytest.raises(MismatchError):
        scored(model, TEXTS, loss, output=output)
    with pytest.raises(ValueError, match=r"set tokenizer\.src_lang and tokenizer\.tgt_lang"):
        Seq2Seq(of_mbart(None)[1], source="de", target="en")


def test_padding_that_a_row_has_does_not_count():
    model = text.made(text.bart)
    rows = text.pair_rows(8)
    padded = [
        {
            "input_ids": [1, *row["input_ids"], 1, 1],
            "attention_mask": [0, *(1 for _ in row["input_ids"]), 0, 0],
            "labels": [*row["labels"], -100, -1],
        }
        for row in rows
    ]
    table, expected = scored(model, padded, "seq2seq"), scored(model, rows, "seq2seq")
    np.testing.assert_array_equal(table.losses, expected.losses)
    np.testing.assert_array_equal(table.lengths, expected.lengths)


def test_a_row_may_say_what_its_decoder_reads():
    model = text.made(text.bart)
    rows = [
        {**row, "decoder_input_ids": [2, *(9 for _ in row["labels"][1:])]}
        for row in text.pair_rows(8)
    ]
    expected = text.own_losses(model, rows)
    np.testing.assert_allclose(scored(model, rows, "seq2seq").losses, expected, rtol=1e-5)
    assert not np.allclose(expected, text.own_losses(model, text.pair_rows(8)), rtol=1e-2)


def test_a_sound_has_a_target_of_text_or_tokens():
    model, tokenizer = text.made(text.whisper), of_t5()[1]
    rows = [
        {"input_features": row["input_features"].tolist(), "en": words["en"]}
        for row, words in zip(text.sound_rows(), TEXTS, strict=True)
    ]
    own = [
        {"input_features": row["input_features"], "labels": tokenizer(words["en"])["input_ids"]}
        for row, words in zip(text.sound_rows(), TEXTS, strict=True)
    ]
    table = scored(model, rows, Seq2Seq(tokenizer, target="en"))
    np.testing.assert_allclose(table.losses, text.own_losses(model, own), rtol=1e-5)
    assert table.lengths.tolist() == [len(row["labels"]) for row in own]


def test_labels_that_begin_with_the_token_of_the_start_are_told():
    rows = [{**row, "labels": [3, *row["labels"]]} for row in text.sound_rows(4)]
    with pytest.warns(FlowDataWarning, match="labels of row 0 and others begin with token 3"):
        scored(text.made(text.whisper), rows, "seq2seq")


def test_a_pass_goes_on_and_a_table_knows_its_loss(tmp_path):
    model, rows = text.made(text.bart), text.pair_rows(12)
    output = tmp_path / "losses.parquet"

    class Stops(list):
        def __getitem__(self, row):
            if row == 9 and self.stops:
                raise KeyboardInterrupt
            return list.__getitem__(self, row)

    for loss in (Seq2Seq(), Seq2Seq(max_target_length=3)):
        data = Stops(rows)
        data.stops = loss == Seq2Seq()
        if data.stops:
            with pytest.raises(KeyboardInterrupt):
                scored(model, data, loss, output=output)
            data.stops = False
            table = scored(model, data, loss, output=output)
            np.testing.assert_array_equal(table.losses, scored(model, rows, loss).losses)
        else:
            with pytest.raises(MismatchError):
                scored(model, data, loss, output=output)
    assert LossTable.load(output).provenance.loss == "seq2seq"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": [4]}, "row 2: the source of the row has no token"),
        ({"input_ids": [], "labels": [4]}, "row 2: the source of the row has no token"),
        ({"input_ids": [4]}, r"row 2: there is no column \['labels'\]"),
        ({"input_ids": [500], "labels": [4]}, "row 2 has token 500"),
        ({"input_ids": [4], "labels": [500]}, "row 2 has label 500"),
        ({"input_ids": [4] * 129, "labels": [4]}, "129 tokens in its source.*max_source_length"),
        ({"input_ids": [4], "labels": [4] * 129}, "129 tokens in its target.*max_target_length"),
        ({"input_ids": [[4]], "labels": [4]}, r"must have the shape \(length,\)"),
        ({"input_ids": [4], "labels": [4], "decoder_input_ids": [4, 5]}, "decoder_input_ids must"),
        ({"input_ids": [4], "labels": [4], "weight": 0.5}, "weight=0.5"),
        ({"input_ids": [4], "labels": [4], "pixel_values": [[1.0]]}, "the row has pixel_values"),
        ({"input_ids": [4], "labels": [4], "attention_mask": [0]}, "attention_mask is 0"),
    ],
)
def test_a_row_that_cannot_be_scored_is_named(row, message):
    with pytest.raises(ValueError, match=message):
        scored(text.made(text.bart), [*text.pair_rows(2), row], "seq2seq")


def test_a_row_without_a_label_has_no_loss():
    rows = [
        *text.pair_rows(2),
        {"input_ids": [4], "labels": [-100]},
        {"input_ids": None, "labels": [4]},
    ]
    with pytest.raises(InvalidLossError, match=r"rows \[2, 3\]"):
        scored(text.made(text.bart), rows, "seq2seq")
    table = scored(text.made(text.bart), rows, "seq2seq", on_invalid="drop")
    assert np.isnan(table.losses).tolist() == [False, False, True, True]


def test_models_of_another_kind_and_columns_that_say_too_little_are_refused():
    with pytest.raises(TypeError, match=r"LlamaForCausalLM is no encoder-decoder.*CausalLM"):
        scored(text.made(text.CAUSAL["Llama"]), text.pair_rows(2), "seq2seq")
    with pytest.raises(TypeError, match="takes no labels"):
        scored(torch.nn.Linear(2, 2), text.pair_rows(2), "seq2seq")
    with pytest.raises(ValueError, match="pass tokenizer="):
        Seq2Seq(source="de", target="en")
    with pytest.raises(ValueError, match="needs target="):
        Seq2Seq(of_t5()[1], source="de")
    with pytest.raises(ValueError, match=r"no column \['fr'\]"):
        scored(of_t5()[0], TEXTS, Seq2Seq(of_t5()[1], source="de", target="fr"))
    with pytest.raises(ValueError, match="max_target_length must be at least 1"):
        Seq2Seq(max_target_length=0)


def test_half_precision_is_scored():
    model, rows = text.made(text.whisper), text.sound_rows(8)
    whole = scored(model, rows, "seq2seq").losses
    half = scored(model.bfloat16(), rows, "seq2seq").losses
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, whole, rtol=0.05)
    assert (half != whole).any()
