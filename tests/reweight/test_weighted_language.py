"""Unmodified transformers models and Trainer, with sequence and token weights."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from flowdata import CausalLM, score
from flowdata.reweight import reweight, reweighting_loader
from flowdata.reweight.target import Ledger

LENGTHS = (5, 9, 7, 12, 6, 8, 11, 4)


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
    monkeypatch.setattr(Ledger, "_warned", True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def make_rows(vocabulary=50, lengths=LENGTHS):
    random = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = random.integers(1, vocabulary, length)
        labels = np.where(np.arange(length) < 2, -100, ids)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def padded(rows):
    """A collator that pads on the right, as users write them."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name, value):
        filled = [row[name] + [value] * (width - len(row[name])) for row in rows]
        return torch.tensor(filled)

    ids = fill("input_ids", 0)
    mask = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": fill("labels", -100)}


def tables(model, rows):
    """Losses of samples and of tokens by the model itself."""
    return score(model, rows, CausalLM(token_losses=True), progress=False)


def spread_weights(table, rows, batch, level):
    """The authors' weights of all label positions, shape (B, T)."""
    labels = batch["labels"]
    made = torch.zeros(labels.shape)
    tokens = table.token_weights(normalize="mean").values
    samples = table.weights(normalize="mean").values
    offsets = table.token_offsets
    for number, row in enumerate(rows):
        places = (labels[number, 1:] >= 0).nonzero()[:, 0] + 1
        value = tokens[offsets[row] : offsets[row + 1]] if level == "token" else samples[row]
        made[number, places] = torch.as_tensor(value, dtype=torch.float32)
    return made


def by_hand(model, batch, weights, items=None, smoothing=0.0):
    """Sum over tokens of weight x loss, over the number of active tokens."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        targets,
        reduction="none",
        ignore_index=-100,
        label_smoothing=smoothing,
    )
    return (losses * weights[:, 1:]).sum() / ((targets >= 0).sum() if items is None else items)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    parts = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("items", [None, 37])
def test_the_loss_of_a_model_is_that_of_the_authors(model, level, items):
    rows = make_rows()
    table = tables(model, rows)
    loader = reweighting_loader(rows, table, level=level, batch_size=8, collate_fn=padded)
    [batch] = loader
    options = {} if items is None else {"num_items_in_batch": items}
    found = model(**batch, **options).loss
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, level)
    expected = by_hand(model, plain_batch, weights, items)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        gradients(model, found),
        gradients(model, by_hand(model, plain_batch, weights, items)),
        rtol=1e-5,
        atol=1e-8,
    )


def test_it_holds_under_autocast(model):
    rows = make_rows()
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, batch_size=8, collate_fn=padded)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, "sample")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).loss
        expected = by_hand(model, plain_batch, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_compiled_model_in_a_plain_loop(model):
    rows = make_rows(lengths=(6,) * 4)
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, batch_size=4, collate_fn=padded)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    logits = compiled(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["labels"][:, 1:]
    found = F.cross_entropy(logits[:, :-1].reshape(-1, 50), labels.reshape(-1))
    plain_batch = padded(rows)
    expected = by_hand(model, plain_batch, spread_weights(table, range(4), plain_batch, "sample"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def trained(model, data, collate, folder, **options):
    """Parameters after a training by an unmodified Trainer, in the order of the data."""

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        learning_rate=0.05,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        num_train_epochs=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        **options,
    )
    InOrder(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("options", [{}, {"dataloader_num_workers": 2}], ids=["", "workers"])
def test_an_unmodified_trainer_trains_as_by_hand(model, tmp_path, level, accumulation, options):
    rows = make_rows()
    table = tables(model, rows)
    data, collate = reweight(rows, table, level=level, collate_fn=padded)
    found = trained(
        copy.deepcopy(model), data, collate, tmp_path,
        gradient_accumulation_steps=accumulation, **options,
    )  # fmt: skip
    hand = copy.deepcopy(model)
    step = 2 * accumulation
    for start in range(0, len(rows), step):
        together = range(start, min(start + step, len(rows)))
        batch = padded([rows[row] for row in together])
        weights = spread_weights(table, together, batch, level)
        gradients(hand, by_hand(hand, batch, weights))
        with torch.no_grad():
            for parameter in hand.parameters():
                parameter -= 0.05 * parameter.grad
    expected = torch.cat([p.detach().flatten() for p in hand.parameters()])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_label_smoothing_of_the_trainer_is_seen_or_refused(model, tmp_path):
    """Its smoother gathers on its own: that must not pass without weights."""
    from flowdata.reweight import UnweightedLossError

    rows = make_rows()
    data, collate = reweight(rows, tables(model, rows), collate_fn=padded)
    with pytest.raises(UnweightedLossError, match="gather"):
        trained(copy.deepcopy(model), data, collate, tmp_path, label_smoothing_factor=0.1)


def by_hand_in_float32(model, batch, weights):
    """The same in the order in which transformers computes it: rounding is as large as 2e-4."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:].reshape(-1)
    losses = F.cross_entropy(
        logits.view(-1, logits.shape[-1]), targets, reduction="none", ignore_index=-100
    )
    shifted = F.pad(weights, (0, 1))[:, 1:].reshape(-1)
    return (losses * shifted).sum() / (targets >= 0).sum()


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sample", "token"])
def test_the_real_language_model_has_the_gradients_of_a_hand_written_loss(smollm2, level):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = make_rows(40_000, lengths=(6, 9, 7))
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, level=level, batch_size=3, collate_fn=padded)
    found = gradients(model, model(**batch).loss)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(3), plain_batch, level)
    expected = gradients(model, by_hand_in_float32(model, plain_batch, weights))
    assert (found - expected).norm() < 1e-6 * expected.norm()
    unweighted = gradients(model, model(**plain_batch).loss)
    assert (found - unweighted).norm() > 1e-2 * expected.norm()
