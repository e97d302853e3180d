"""Reweighting in real processes, started by torchrun, with gloo."""

import numpy as np
import pytest
import torch
from launching import torchrun
from torch.nn import functional as F

pytestmark = pytest.mark.slow

ROWS, BATCH, EPOCHS, RATE = 24, 3, 2, 0.1


def test_two_ranks_train_as_one_hand_written_loop(tmp_path):
    random = np.random.default_rng(0)
    features, weights = random.standard_normal((ROWS, 4)), random.random(ROWS)
    targets = random.integers(0, 3, ROWS)
    config = {
        "features": features.tolist(),
        "targets": targets.tolist(),
        "weights": weights.tolist(),
        "lr": RATE,
        "batch_size": BATCH,
        "epochs": EPOCHS,
    }
    found = torchrun("reweight_training.py", config, tmp_path)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3).double()
    for _ in range(EPOCHS):
        for start in range(0, ROWS, 2 * BATCH):
            rows = np.arange(start, start + 2 * BATCH)
            logits = model(torch.from_numpy(features[rows]))
            losses = F.cross_entropy(logits, torch.from_numpy(targets[rows]), reduction="none")
            model.zero_grad()
            (losses * torch.from_numpy(weights[rows].astype(np.float32))).mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= RATE * parameter.grad
    for parameter, trained in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(parameter.detach(), torch.tensor(trained, dtype=torch.float64))
