"""Weights of tokens over two ranks; every alpha on a real language model."""

from pathlib import Path

import numpy as np
import pytest
import token_training
import torch
from launching import torchrun
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from weighted_loading import drawing_loader, weighted_loader

from flowdata import FlowSampler, FlowWeights

pytestmark = pytest.mark.slow

EPOCHS = 500


def test_tokens_of_two_ranks_are_weighted_as_those_of_one_hand_written_loss(tmp_path):
    random = np.random.default_rng(0)
    ids = random.integers(0, token_training.VOCABULARY, (8, 7))
    labels = np.where(np.arange(7) < random.integers(2, 5, (8, 1)), -100, ids)
    token_losses = [random.gamma(2, size=(row >= 0).sum()).tolist() for row in labels]
    config = {
        "ids": ids.tolist(),
        "labels": labels.tolist(),
        "token_losses": token_losses,
        "batch_size": 4,
    }
    program = Path(token_training.__file__)
    found = torch.tensor(torchrun(program, config, tmp_path))
    weights = np.zeros(labels.shape, dtype=np.float32)
    weights[labels >= 0] = (
        token_training.token_table(token_losses).token_weights(normalize="mean").values
    )

    def gradient(weights):
        model = token_training.language_model()
        targets = torch.from_numpy(labels)[:, 1:].reshape(-1)
        logits = model(torch.from_numpy(ids))[:, :-1].reshape(len(targets), -1)
        losses = F.cross_entropy(logits, targets, reduction="none")
        ((losses * weights[:, 1:].reshape(-1)).sum() / (targets >= 0).sum()).backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    expected = gradient(torch.from_numpy(weights))
    assert (found - expected).norm() < 1e-6 * expected.norm()
    assert (found - gradient(torch.ones(8, 7))).norm() > 1e-2 * expected.norm()


def test_every_alpha_has_the_expected_gradient_of_the_full_data_on_a_real_model(smollm2):
    """Of the last block; counts of draws differ from their mean by less than one an epoch."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    model.requires_grad_(False)
    block = list(model.model.layers[-1].requires_grad_(True).parameters())
    random = np.random.default_rng(0)
    # Rows of one length, so that a mean over tokens is one over rows.
    rows = [torch.from_numpy(ids) for ids in random.integers(1, 40_000, (6, 7))]
    rows = [{"input_ids": ids, "labels": ids} for ids in rows]
    weights = FlowWeights.from_losses(random.gamma(2, size=len(rows)))

    def gradient(batch):
        found = torch.autograd.grad(model(**batch).loss, block)
        return torch.cat([part.flatten() for part in found])

    each = torch.stack([gradient({name: ids[None] for name, ids in row.items()}) for row in rows])
    full = torch.from_numpy(weights.values / weights.values.sum()).float() @ each
    for alpha in (0.0, 0.3, 0.7, 1.0):
        residual = weights.residual(alpha)
        drawn = weights.power(alpha).relative
        exact = torch.from_numpy(drawn / drawn.sum() * residual).float() @ each
        assert (exact - full).norm() < 1e-6 * full.norm(), alpha
        sampler = FlowSampler(weights, alpha=alpha, seed=1)
        counts = np.bincount(np.concatenate([list(sampler) for _ in range(EPOCHS)]), minlength=6)
        long_run = torch.from_numpy(counts / counts.sum() * residual).float() @ each
        assert (long_run - full).norm() < 2e-2 * full.norm(), alpha
        order, loader = range(len(rows)), weighted_loader(rows, weights, batch_size=len(rows))
        if alpha:
            order = list(FlowSampler(weights, alpha=alpha, seed=1))
            loader = drawing_loader(rows, weights, alpha, {"seed": 1}, batch_size=len(rows))
        once = np.bincount(list(order), minlength=6) / len(rows)
        expected = torch.from_numpy(once * residual).float() @ each
        assert (gradient(next(iter(loader))) - expected).norm() < 1e-5 * full.norm(), alpha
