"""Weights of tokens of models whose labels stand where they are predicted."""

import numpy as np
import pytest
import text_models as text
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from flowdata import Seq2Seq, TokenLabels, mask_tokens, score
from flowdata.reweight import reweight


def padded(rows):
    """A batch; the mask of the source is 0 at padding."""
    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(some) for some in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


def case(name):
    """A model, rows whose first label counts, and their table."""
    if name == "BERT, tokens":
        model, rows = text.made(text.LABELLED[name]), text.label_rows(5)[:12]
        loss = TokenLabels(token_losses=True)
    else:
        model, rows = text.made(text.SEQ2SEQ[name]), text.pair_rows()[:12]
        loss = Seq2Seq(token_losses=True)
    rows = [{**row, "labels": [3, *row["labels"][1:]]} for row in rows]
    return model, rows, score(model, rows, loss, progress=False)


@pytest.mark.parametrize("name", ["T5", "BART", "BERT, tokens"])
@pytest.mark.parametrize("entry", [None, "token_weights"])
def test_each_label_has_the_weight_of_its_loss(name, entry):
    model, rows, table = case(name)
    data, collate = reweight(rows, table, level="token", collate_fn=padded, entry=entry)
    weights = table.token_weights(normalize="mean").values
    for start, batch in enumerate(DataLoader(data, batch_size=4, collate_fn=collate)):
        own = slice(*table.token_offsets[[4 * start, 4 * start + 4]])
        if entry:
            assert batch[entry][batch["labels"] >= 0].tolist() == pytest.approx(weights[own])
            continue
        expected = np.mean(weights[own] * table.token_losses[own])
        assert model(**batch).loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:in . of 12 rows no label is left")
def test_labels_of_tokens_are_masked_and_those_of_an_encoder_decoder_are_not():
    _, rows, table = case("BERT, tokens")
    masked = mask_tokens(rows, table, lambda losses, tau: losses <= tau)
    kept = iter(table.token_losses <= np.median(table.token_losses))
    for row, found in zip(rows, masked, strict=True):
        expected = [x if x < 0 or next(kept) else -100 for x in row["labels"]]
        assert found["labels"] == expected
    _, rows, table = case("T5")
    with pytest.raises(TypeError, match="what its decoder reads"):
        mask_tokens(rows, table, lambda losses, tau: losses <= tau)
