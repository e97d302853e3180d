"""DatasetGuard: a FlowDataset whose epoch nobody sets, on several ranks."""

import numpy as np
import pytest
from torch.utils.data import DataLoader

from flowdata import FlowDataset
from flowdata.errors import FlowDataWarning

pytestmark = pytest.mark.guard

WEIGHTS = np.random.default_rng(5).random(8)


def test_batches_that_no_sampler_of_torch_makes_are_advised_about_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = DataLoader(FlowDataset(range(8), WEIGHTS), batch_sampler=[[0, 1], [2, 3]])
    with pytest.warns(FlowDataWarning, match="set_epoch") as warned:
        list(loader)
    list(loader)
    assert len(warned) == 1
    loader.dataset.set_epoch(0)
    list(loader)
