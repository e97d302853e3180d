"""Samples of packs have, in a model, the losses that they have alone."""

import numpy as np
import pytest
import torch
from packed_samples import joined, token_rows
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening
from weighted_language import small_model

from flowdata import FlowPacks, FlowPackSampler, PackCollator, pack_rows

LENGTHS = np.random.default_rng(0).integers(1, 15, 24)
ROWS = token_rows(LENGTHS)
WEIGHTS = np.random.default_rng(1).random(24)
MAX_LENGTH = 31


def loaders():
    packs = FlowPacks(ROWS, WEIGHTS, LENGTHS, MAX_LENGTH)
    yield DataLoader(packs)
    yield DataLoader(packs, 3, collate_fn=PackCollator(pad_token_id=7))
    yield DataLoader(packs, 3, collate_fn=PackCollator(flatten=True))
    for collate in (pack_rows, DataCollatorWithFlattening()):
        sampler = FlowPackSampler(WEIGHTS, LENGTHS, MAX_LENGTH)
        yield DataLoader(ROWS, batch_sampler=sampler, collate_fn=collate)


def losses_of(model, ids, labels, **inputs):
    logits = model(input_ids=ids, use_cache=False, **inputs).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_samples_in_packs_have_the_losses_that_they_have_alone(attention):
    model = small_model().double()
    model.set_attn_implementation(attention)
    with torch.no_grad():
        alone = []
        for row in ROWS:
            ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
            alone.append(losses_of(model, ids, labels)[labels[:, 1:] >= 0].tolist())
        for loader in loaders():
            found = []
            for batch in loader:
                assert "attention_mask" not in batch
                labels = batch["labels"]
                losses = losses_of(
                    model, batch["input_ids"], labels, position_ids=batch["position_ids"]
                )
                found += losses[labels[:, 1:] >= 0].tolist()
            plan = FlowPackSampler(WEIGHTS, LENGTHS, MAX_LENGTH).plan
            # `DataLoader(packs)` and those after it are passes of their own.
            epoch = getattr(loader.dataset, "epoch", 0)
            expected = joined(alone[row] for pack in plan.at_epoch(epoch) for row in pack)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
