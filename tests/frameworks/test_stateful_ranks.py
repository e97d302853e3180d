"""torchdata's StatefulDataLoader in a DDP loop of two processes that is killed and goes on."""

import numpy as np
import pytest
import torch
from framework_runs import by_hand, by_step, flat, planned, same_rows, torchrun
from frameworks_common import WEIGHTS, logged

from flowdata import FlowWeights

pytestmark = pytest.mark.slow

DRAWS, BATCH, EPOCHS = 24, 4, 3
STEPS = DRAWS // BATCH // 2
PLANS = [planned(epoch, DRAWS) for epoch in range(EPOCHS)]


def killed_and_resumed(folder, step, **options):
    run = options | {"saved": str(folder / "saved"), "log": str(folder / "log")}
    torchrun("frameworks_stateful.py", {"killed": run | {"kill": step}}, folder, fails=True)
    torchrun("frameworks_stateful.py", {"resumed": run}, folder)
    return logged(folder / "log", 2)


def test_a_killed_weighted_loop_goes_on_as_if_it_had_never_stopped(tmp_path):
    by_rank = killed_and_resumed(tmp_path, STEPS + 1, workers=2, alpha=0.5)
    steps = [
        [plan[rank::2][start : start + BATCH] for rank in (0, 1)]
        for plan in (planned(epoch, DRAWS, alpha=0.5) for epoch in range(EPOCHS))
        for start in range(0, DRAWS // 2, BATCH)
    ]
    assert by_step([rank["rows"] for rank in by_rank]) == steps
    losses = by_step([rank["losses"] for rank in by_rank])
    weights = FlowWeights.from_weights(WEIGHTS)
    rest = torch.from_numpy((weights.residual(0.5)).astype(np.float32))
    np.testing.assert_allclose(losses, by_hand(steps, rest), rtol=1e-9)


def test_a_data_set_whose_epochs_are_named_goes_on_too(tmp_path):
    by_rank = killed_and_resumed(tmp_path, STEPS, door="dataset")
    for epoch, plan in enumerate(PLANS):
        of_ranks = (rank["rows"][epoch * STEPS : (epoch + 1) * STEPS] for rank in by_rank)
        assert same_rows(flat(flat(batches) for batches in of_ranks), plan)
