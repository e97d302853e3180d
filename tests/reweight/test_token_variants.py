"""Token weights of follow-up work, under an unmodified Trainer, against losses written by hand."""

import copy

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerFast
from weighted_language import close, gradient, padded, small_model, tables
from weighted_trainer import trained

from flowdata import mask_tokens
from flowdata.reweight import reweight

LENGTHS = (5, 9, 7, 12, 6, 8, 11, 4)
BATCH = 2
STAYING = {"learning_rate": 0.0}
"""A model that stays as it is has gradients that are the same to their last bits but one."""
PERPLEXITY = 2.5


@pytest.fixture(scope="module")
def model():
    return small_model(initializer_range=1.0)


@pytest.fixture(scope="module")
def rows(model):
    """Half of the tokens are those that the model finds likely."""
    random, made = np.random.default_rng(0), []
    for length in LENGTHS:
        ids = random.integers(1, 50, 1).tolist()
        while len(ids) < length:
            with torch.no_grad():
                likely = model(torch.tensor([ids])).logits[0, -1].argmax().item()
            ids.append(likely if len(ids) % 2 else int(random.integers(1, 50)))
        made.append({"input_ids": ids, "labels": [-100, -100, *ids[2:]]})
    return made


@pytest.fixture(scope="module")
def table(model, rows):
    return tables(model, rows)


def token_losses(model, batch):
    """The loss of each label but the first of a row, shape (B, T - 1); 0 where it is ignored."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].reshape(targets.numel(), -1), targets.reshape(-1), reduction="none"
    )
    return losses.reshape(targets.shape)


def steps_by_hand(model, rows, weights, over="labels"):
    """The gradient of each batch's ``sum(w * loss) / labels``, or over the sum of w.

    weights: of each row, for its labels but the first.
    """
    found = []
    for start in range(0, len(rows), BATCH):
        batch = padded(rows[start : start + BATCH])
        own = [torch.tensor(row) for row in weights[start : start + BATCH]]
        weight = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
        model.zero_grad()
        count = (batch["labels"][:, 1:] >= 0).sum() if over == "labels" else weight.sum()
        ((token_losses(model, batch) * weight).sum() / count).backward()
        found.append(gradient(model))
    return found


def require_same(found, expected):
    assert len(found) == len(expected) == len(LENGTHS) // BATCH
    assert all(close(*pair) for pair in zip(found, expected, strict=True))


def clipped(losses, tau):
    return np.exp(-np.clip(losses, *np.quantile(losses, [0.1, 0.9])) / tau)


VARIANTS = {
    "FLOW at tau 1": ({"temperature": 1.0}, lambda losses: np.exp(-losses)),
    "selective token masking": (
        {"function": lambda losses, tau: losses <= np.log(PERPLEXITY)},
        lambda losses: np.exp(losses) <= PERPLEXITY,
    ),
    "clipped FLOW": ({"function": clipped}, lambda losses: clipped(losses, np.median(losses))),
    "soft masking": (
        {"function": lambda losses, tau: np.exp(-(np.expm1(losses) ** 2)), "normalize": None},
        lambda losses: np.exp(-((np.exp(losses) - 1) ** 2)),
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_trainer_trains_as_by_hand(model, rows, table, tmp_path, variant):
    options, function = VARIANTS[variant]
    data, collate = reweight(rows, table, level="token", collate_fn=padded, **options)
    found = trained(copy.deepcopy(model), data, collate, tmp_path, **STAYING)
    with torch.no_grad():
        alone = [token_losses(model, padded([row]))[0, 1:].numpy() for row in rows]
    losses = table.token_losses.astype(np.float64)
    np.testing.assert_allclose(losses, np.concatenate(alone), rtol=1e-4, atol=1e-5)
    tokens = function(losses).astype(np.float64)
    assert np.ptp(tokens) > 0.1
    if "normalize" not in options:
        tokens /= tokens.mean()
    counts = np.cumsum([part.size for part in alone])[:-1]
    weights = [[0.0, *part] for part in np.split(tokens, counts)]
    hand = steps_by_hand(copy.deepcopy(model), rows, weights)
    require_same(found, hand)
    ones = [[1.0] * (len(row["labels"]) - 1) for row in rows]
    assert not close(found[0], steps_by_hand(copy.deepcopy(model), rows, ones)[0], 1e-2)


@pytest.mark.guard
def test_the_column_of_the_authors_trains_as_their_trainer(model, rows, tmp_path):
    """Weights exp(-loss / tau) of all labels but the first, where ignored labels have loss 0.

    As their create_weighted_dataset.py makes the column, and WeightedLossTrainer takes it.
    """
    with torch.no_grad():
        weights = [torch.exp(-token_losses(model, padded([row])) / 2.0)[0].tolist() for row in rows]
    stored = datasets.Dataset.from_list(
        [row | {"token_weights": own} for row, own in zip(rows, weights, strict=True)]
    )
    data, collate = reweight(
        stored, stored["token_weights"], level="token", normalize=None,
        collate_fn=DataCollatorForTokenClassification(tokenizer()),
    )  # fmt: skip
    # The Trainer takes the column out, which no collator could pad.
    found = trained(
        copy.deepcopy(model), data, collate, tmp_path, remove_unused_columns=True, **STAYING
    )
    require_same(found, steps_by_hand(copy.deepcopy(model), rows, weights))


def tokenizer():
    from tokenizers import Tokenizer, models

    words = Tokenizer(models.WordLevel({"[PAD]": 0}, unk_token="[PAD]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]")


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_masked_labels_train_as_the_kept_tokens_alone(model, rows, table, tmp_path, kind):
    def keep(losses, tau):
        return losses <= np.log(PERPLEXITY)

    masked = mask_tokens(kind(rows), table, keep)
    found = trained(copy.deepcopy(model), masked, padded, tmp_path, **STAYING)
    kept = np.exp(table.token_losses.astype(np.float64)) <= PERPLEXITY
    offsets = table.token_offsets
    weights = [[0.0, *kept[offsets[row] : offsets[row + 1]]] for row in range(len(rows))]
    require_same(found, steps_by_hand(copy.deepcopy(model), rows, weights, over="kept"))
