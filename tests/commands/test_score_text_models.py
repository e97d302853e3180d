"""``flowdata score --loss seq2seq`` and ``token_labels``."""

import json

import numpy as np
import pytest
import text_models as text

import flowdata
from flowdata.commands.cli import main

WORDS = ["hello", "world", "wie", "geht", "es", "dir", "one", "two", "three"]


@pytest.fixture
def command(tmp_path):
    """Saves a model, its tokenizer and rows, and gives the command that scores them."""

    def save(model, rows, *options, tokenizer=None):
        for part in filter(None, (model, tokenizer)):
            part.save_pretrained(tmp_path / "model")
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        places = ["--model", tmp_path / "model", "--data", data, "--output", tmp_path / "t.parquet"]
        return ["score", *map(str, places), *options]

    return save


def test_an_encoder_decoder_is_scored_by_its_tokens(command, tmp_path):
    model, rows = text.made(text.bart), text.pair_rows(12)
    assert main(command(model, rows, "--loss", "seq2seq", "--token-losses")) == 0
    table = flowdata.LossTable.load(tmp_path / "t.parquet", tokens=True)
    np.testing.assert_allclose(table.losses, text.own_losses(model, rows), rtol=1e-5)
    assert len(table.token_losses) == table.n_tokens.sum()


def test_columns_of_text_are_source_and_target(command, tmp_path):
    model, tokenizer = text.t5_with_tokenizer(WORDS)
    rows = [{"de": "wie geht es", "en": "one two"}, {"de": "dir", "en": "hello world three"}]
    line = command(model, rows, "--loss", "seq2seq", tokenizer=tokenizer)
    assert main([*line, "--source", "de", "--target", "en", "--max-length", "9"]) == 0
    table = flowdata.LossTable.load(tmp_path / "t.parquet")
    own = [
        {
            "input_ids": tokenizer(row["de"])["input_ids"],
            "labels": tokenizer(row["en"])["input_ids"],
        }
        for row in rows
    ]
    np.testing.assert_allclose(table.losses, text.own_losses(model, own), rtol=1e-5)


def test_labels_of_tokens_are_scored(command, tmp_path):
    model, rows = text.made(text.LABELLED["BERT, tokens"]), text.label_rows(5, 12)
    assert main(command(model, rows, "--loss", "token_labels")) == 0
    table = flowdata.LossTable.load(tmp_path / "t.parquet")
    np.testing.assert_allclose(table.losses, text.own_losses(model, rows), rtol=1e-5)
    assert table.lengths.tolist() == [len(row["input_ids"]) for row in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "seq2seq", "--text", "de"], "--text is not for --loss seq2seq"),
        (["--loss", "seq2seq", "--target", "fr"], "no column ['fr']"),
        (["--loss", "seq2seq", "--source", "input_ids"], "needs --target"),
        (["--loss", "token_labels", "--target", "a"], "--target is not for --loss token_labels"),
        (["--target", "en"], "--target is not for --loss causal_lm"),
    ],
)
def test_options_of_another_loss_are_refused(command, capsys, options, message):
    assert main(command(text.made(text.bart), text.pair_rows(2), *options)) == 1
    assert message in capsys.readouterr().err
