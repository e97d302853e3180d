"""A small language model, its rows, and their weighted loss written by hand."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch_release import lacks
from transformers import LlamaConfig, LlamaForCausalLM

from flowdata import CausalLM, score

LENGTHS = (5, 9, 7, 12, 6, 8, 11, 4)


def small_model(initializer_range=0.02):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attn_implementation="eager",
        initializer_range=initializer_range,
    )
    return LlamaForCausalLM(config).eval()


def compiled_or_skipped(model, batch):
    """Skip the test where torch cannot compile the model, whatever its labels are."""
    torch.compiler.reset()
    try:
        torch.compile(copy.deepcopy(model), backend="eager")(**batch)
    except Exception as error:
        pytest.skip(lacks(f"compiler for models of transformers ({type(error).__name__})"))
    torch.compiler.reset()


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


def spread_weights(table, rows, batch, level, **options):
    """The authors' weights of all label positions, shape (B, T); for "none" ones."""
    labels = batch["labels"]
    made = torch.zeros(labels.shape)
    tokens = table.token_weights(normalize="mean", **options).values
    samples = table.weights(normalize="mean").values
    offsets = table.token_offsets
    for number, row in enumerate(rows):
        places = (labels[number, 1:] >= 0).nonzero()[:, 0] + 1
        own = tokens[offsets[row] : offsets[row + 1]]
        value = {"token": own, "sample": samples[row], "none": 1.0}[level]
        made[number, places] = torch.as_tensor(value, dtype=torch.float32)
    return made


def by_hand(model, batch, weights, items=None, smoothing=0.0):
    """Sum over tokens of weight x loss, over the number of active tokens.

    Of logits in rows: over a strided vocabulary torch adds up with an error of 5e-5.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:].reshape(-1)
    losses = F.cross_entropy(
        logits[:, :-1].float().reshape(len(targets), -1),
        targets,
        reduction="none",
        ignore_index=-100,
        label_smoothing=smoothing,
    )
    total = (losses * weights[:, 1:].reshape(-1)).sum()
    return total / ((targets >= 0).sum() if items is None else items)


def close(found, expected, bound=1e-6):
    """Whether float32 gradients are the same, relative to the size of the whole."""
    return (found - expected).norm() < bound * expected.norm()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    parts = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


def step_by_hand(model, rows, table, level, parts, options, rate=0.05):
    """A step of SGD over the micro-batches of some rows."""
    batches = [padded([rows[row] for row in part]) for part in parts]
    items = sum((batch["labels"][:, 1:] >= 0).sum() for batch in batches)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.get("bf16", False)):
        losses = [
            by_hand(
                model,
                batch,
                spread_weights(table, part, batch, level),
                items,
                options.get("label_smoothing_factor", 0.0),
            )
            for part, batch in zip(parts, batches, strict=True)
        ]
    sum(losses).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
