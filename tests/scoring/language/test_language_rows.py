"""Rows and models that cannot be scored as a language model: named, cut or dropped."""

import copy
import json

import numpy as np
import pytest
from language_models import VOCABULARY, Plain, llama, one_by_one, samples
from tokenizer_families import family
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from flowdata import CausalLM, FlowDataWarning, InvalidLossError, score


def test_a_sample_without_a_response_token_is_named_or_dropped():
    rows = samples(5)
    rows[2]["labels"] = [-100] * len(rows[2]["labels"])
    # A label of the first token has nothing to be predicted from.
    rows[4] = {"input_ids": [1, 2, 3], "labels": [1, -100, -100]}
    with pytest.raises(InvalidLossError, match=r"no response token .* rows \[2, 4\]"):
        score(llama(), rows, "causal_lm", progress=False)
    table = score(llama(), rows, "causal_lm", on_invalid="drop", progress=False)
    assert np.flatnonzero(np.isnan(table.losses)).tolist() == [2, 4]
    assert table.weights(on_invalid="drop").values[[2, 4]].tolist() == [0.0, 0.0]


def test_over_long_samples_are_cut_counted_and_reported():
    model, rows = llama(), samples(30)
    with pytest.warns(FlowDataWarning, match=r"of 30 samples were longer than max_length"):
        table = score(model, rows, CausalLM(max_length=20), progress=False)
    cut = [{name: values[:20] for name, values in row.items()} for row in rows]
    assert table.losses == pytest.approx(
        score(model, cut, "causal_lm", progress=False).losses, rel=1e-5
    )
    assert table.provenance.truncated == sum(len(row["input_ids"]) > 20 for row in rows) > 0
    assert json.loads(table.provenance.options)["max_length"] == 20


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"input_ids": [1] * 200, "labels": [1] * 200}, ValueError, "row 1 has 200 tokens.*128"),
        ({"input_ids": [1, 97], "labels": [1, 97]}, ValueError, "row 1 has token 97.*0 to 96"),
        ({"input_ids": [1, 2], "labels": [1, 500]}, ValueError, "row 1 has token 500"),
        ({"input_ids": [-3, 2], "labels": [1, 2]}, ValueError, "row 1 has token -3"),
        ({"input_ids": [1, 2], "labels": [1]}, ValueError, r"row 1: .*\(2,\) and \(1,\)"),
        ({"input_ids": [1, 2]}, ValueError, r"row 1: .*no column \['labels'\].*\['input_ids'\]"),
        ((1, 2), TypeError, "row 1: .*rows that are dicts.*tuple"),
    ],
)
def test_a_row_the_model_cannot_take_is_refused_with_the_reason(row, error, message):
    with pytest.raises(error, match=message):
        score(llama(), [samples(1)[0], row], "causal_lm", progress=False)


def test_a_row_that_cannot_be_read_is_named_where_samples_are_cut_too():
    rows = [{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [1], "labels": [1, 2]}]
    with pytest.raises(ValueError, match=r"row 1: .*one shape"):
        score(llama(), rows, CausalLM(max_length=5), progress=False)


@pytest.mark.slow
def test_a_row_that_a_worker_cannot_read_is_named_too():
    rows = [*samples(3), {"input_ids": [1], "labels": [1, 2]}]
    with pytest.raises(ValueError, match=r"row 3: .*one shape"):
        score(llama(), rows, "causal_lm", num_workers=1, progress=False)


def test_a_row_with_nothing_in_a_column_is_named_or_dropped():
    rows = samples(6)
    rows[1]["labels"] = None
    rows[4] = {"input_ids": [], "labels": []}
    with pytest.raises(InvalidLossError, match=r"no response token .* rows \[1, 4\]; "):
        score(llama(), rows, "causal_lm", progress=False)
    table = score(llama(), rows, CausalLM(token_losses=True), on_invalid="drop", progress=False)
    assert np.flatnonzero(np.isnan(table.losses)).tolist() == [1, 4]
    kept = [row for number, row in enumerate(rows) if number not in (1, 4)]
    wanted = np.concatenate(one_by_one(llama(), kept))
    assert table.token_losses == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_samples_that_were_cut_before_their_response_are_counted_in_the_error():
    rows = [{"input_ids": [1] * 9, "labels": [-100] * 6 + [1] * 3} for _ in range(3)]
    rows.append({"input_ids": [1, 2], "labels": [-100, -100]})
    with pytest.raises(
        InvalidLossError, match=r"rows \[0, 1, 2, 3\] \(3 of them were cut by max_l"
    ):
        score(llama(), rows, CausalLM(max_length=5), progress=False)


def test_a_token_that_was_added_to_the_tokenizer_is_refused_where_a_row_has_it():
    tokenizer = copy.deepcopy(family("byte-level"))
    model = llama()
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.add_tokens("<image>", special_tokens=True)
    loss, rows = CausalLM(tokenizer=tokenizer, text="t"), [{"t": "The fox"}, {"t": "an <image>"}]
    assert score(model, rows[:1], loss, progress=False).losses[0] > 0
    with pytest.raises(ValueError, match=r"row 1 has token \d+, .*resize_token_embeddings"):
        score(model, rows, loss, progress=False)


def test_a_tokenizer_of_another_model_is_refused_before_a_row_is_read(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    class Unread(list):
        def __getitem__(self, row):
            raise AssertionError("a row was read")

    rows = Unread([{"text": "short"}])
    with pytest.raises(ValueError, match=r"tokens up to 49151, the model knows tokens 0 to 96"):
        score(llama(), rows, CausalLM(tokenizer=tokenizer, text="text"), progress=False)


class LastOnly(Plain):
    """Logits of the last token only, of shape (batch, vocabulary)."""

    def forward(self, ids):
        return super().forward(ids)[:, -1]


class LastOnlyWithHead(LastOnly):
    """The same, with the head where a model of transformers has it."""

    def get_output_embeddings(self):
        return self.out


def sequence_classifier():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=1, pad_token_id=0, num_labels=3, **sizes
    )
    return LlamaForSequenceClassification(config)


@pytest.mark.parametrize("make", [LastOnly, LastOnlyWithHead, sequence_classifier])
def test_a_model_that_gives_no_logits_for_each_token_is_refused(make):
    name = type(make()).__name__
    with pytest.raises(TypeError, match=rf"logits of shape .* {name} gave Tensor \(\d+, \d+\)"):
        score(make(), samples(2), "causal_lm", progress=False)


def test_any_negative_label_is_a_token_that_is_not_scored():
    rows = samples(8)
    others = [
        {**row, "labels": [-1 - t if label < 0 else label for t, label in enumerate(row["labels"])]}
        for row in rows
    ]
    plain, other = (
        score(llama(), data, CausalLM(token_losses=True), progress=False) for data in (rows, others)
    )
    assert other.losses.tolist() == plain.losses.tolist()
    assert other.n_tokens.tolist() == plain.n_tokens.tolist()
    assert other.token_losses.tolist() == plain.token_losses.tolist()
