"""Rows with input_ids for the losses of classifiers: what is a batch, and what is not."""

import datasets
import numpy as np
import pytest
import text_models as text
import torch

from flowdata import TokenLabels, score
from flowdata.scoring.language.text_rows import CollateText, TextBatch

COLLATE = CollateText(frozenset({"input_ids", "attention_mask", "bbox"}), pad=7, ignored=-100)


def scored(model, rows, loss="classification", **options):
    return score(model, rows, loss, progress=False, **options)


def classifier():
    return text.made(text.SEQUENCES["classes"][0])


def test_rows_of_uneven_length_are_padded_and_masked():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [0, 1, -100], "bbox": [[1, 2], [3, 4], [5, 6]]},
        {"input_ids": [4], "labels": [1], "bbox": [[7, 8]]},
    ]
    batch = COLLATE(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[0, 1, -100], [1, -100, -100]]
    assert batch["bbox"].tolist() == [[[1, 2], [3, 4], [5, 6]], [[7, 8], [0, 0], [0, 0]]]
    assert batch.lengths.tolist() == [3, 1]
    cut = batch.cut([1])
    assert {name: value.tolist() for name, value in cut.items()} == {
        "input_ids": [[4]], "attention_mask": [[1]], "labels": [[1]], "bbox": [[[7, 8]]],
    }  # fmt: skip


def test_labels_that_belong_to_no_token_are_not_padded():
    rows = [
        {"input_ids": [1, 2], "label": [0.0, 1.0], "idx": 4, "text": "a"},
        {"input_ids": [1, 2, 3], "label": [1.0, 1.0], "idx": 5, "text": "b"},
    ]
    batch = COLLATE(rows)
    assert batch["labels"].tolist() == [[0, 1], [1, 1]]
    assert sorted(batch) == ["attention_mask", "input_ids", "labels"]


def test_rows_of_one_length_get_no_mask_and_other_rows_are_those_of_torch():
    batch = COLLATE([{"input_ids": [1, 2], "labels": 1}, {"input_ids": [3, 4], "labels": 0}])
    assert sorted(batch) == ["input_ids", "labels"]
    assert isinstance(batch, TextBatch)
    images = COLLATE([(torch.zeros(2), 1), (torch.ones(2), 0)])
    assert [part.tolist() for part in images] == [[[0, 0], [1, 1]], [1, 0]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_as_a_tokenizer_leaves_it_is_scored(workers):
    model, rows = classifier(), text.sequence_rows("class", 12)
    named = [
        {"input_ids": row["input_ids"], "label": row["labels"], "text": "left out"} for row in rows
    ]
    table = scored(model, datasets.Dataset.from_list(named), num_workers=workers, batch_size=5)
    np.testing.assert_allclose(table.losses, text.own_losses(model, rows), rtol=1e-5)


def test_padding_that_rows_have_is_masked_as_they_say():
    model, rows = classifier(), text.sequence_rows("class", 12)
    padded = [
        {
            "input_ids": row["input_ids"] + [0, 0],
            "attention_mask": [1] * len(row["input_ids"]) + [0, 0],
            "labels": row["labels"],
        }
        for row in rows
    ]
    table = scored(model, padded, batch_size=5)
    np.testing.assert_allclose(table.losses, text.own_losses(model, rows), rtol=1e-5)
    assert table.lengths.tolist() == [len(row["input_ids"]) for row in rows]


def test_a_collate_function_of_ones_own_pads_as_it_likes():
    model, rows = classifier(), text.sequence_rows("class", 12)

    def collate(rows):
        batch = [torch.tensor(row["input_ids"]) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        return {
            "input_ids": ids,
            "attention_mask": (ids > 0).long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    table = scored(model, rows, collate_fn=collate)
    np.testing.assert_allclose(table.losses, text.own_losses(model, rows), rtol=1e-5)
    assert table.lengths is None


def test_token_losses_are_those_of_each_label():
    model, rows = text.made(text.LABELLED["BERT, tokens"]), text.label_rows(5, 12)
    table = scored(model, rows, TokenLabels(token_losses=True))
    runs = np.split(table.token_losses, np.cumsum(table.n_tokens)[:-1])
    for row, run in zip(rows, runs, strict=True):
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(row["input_ids"])[None]).logits[0]
        expected = torch.nn.functional.cross_entropy(
            logits[labels >= 0], labels[labels >= 0], reduction="none"
        )
        np.testing.assert_allclose(run, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": ["a"], "ner_tags": [1]},
            r"row 1: there is no column \['input_ids', 'labels'\]",
        ),
        ({"input_ids": [5]}, r"row 1: there is no column \['labels'\]"),
        ({"input_ids": [5], "labels": [5]}, "row 1 has label 5, the model knows labels 0 to 4"),
        ({"input_ids": [97], "labels": [1]}, "row 1 has token 97"),
        ({"input_ids": [5, 6], "labels": [1]}, "must have one shape"),
        ({"input_ids": [5] * 129, "labels": [1] * 129}, "the model's context is 128"),
    ],
)
def test_a_row_whose_tokens_cannot_be_scored_is_named(row, message):
    rows = [{"input_ids": [5, 6], "labels": [-100, 4]}, row]
    with pytest.raises(ValueError, match=message):
        scored(text.made(text.LABELLED["BERT, tokens"]), rows, "token_labels")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": 0.5}, r"row 3: the row has weight=0\.5"),
        ({"labels": None}, r"row 3: .* labels"),
        ({"pixel_values": torch.zeros(3, 4, 4)}, "row 3: the row has pixel_values"),
        ({"input_ids": [5, 6.5]}, "row 3: input_ids must be whole numbers"),
        ({"input_ids": []}, "row 3: it has no token"),
        ({"input_ids": [5, 97]}, "row 3: it has tokens 5 to 97, the model knows 0 to 96"),
        ({"input_ids": None}, "row 3: torch's default_collate makes no batch"),
        ({"attention_mask": [1]}, "row 3: attention_mask must be one 0 or 1 for each of the 2"),
    ],
)
@pytest.mark.parametrize("loss", ["classification", "model"])
def test_what_a_row_has_and_the_model_cannot_take_is_named(wrong, message, loss):
    row = {"input_ids": [5, 6], "labels": 1}
    rows = [row, row, row, {**row, **wrong}]
    with pytest.raises((TypeError, ValueError), match=message):
        scored(classifier(), rows, loss, batch_size=2)
