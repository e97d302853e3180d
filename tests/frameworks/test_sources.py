"""What a framework draws from is found in its loaders."""

import subprocess
import sys

import numpy as np
from torch.utils.data import DataLoader, Subset

from flowdata import FlowDataset, FlowSampler
from flowdata.frameworks.sources import sources_of

ROWS = 11
WEIGHTS = np.random.default_rng(5).random(ROWS)


def test_importing_flowdata_imports_no_framework():
    code = (
        "import flowdata, sys; "
        "print([m for m in ('transformers', 'accelerate', 'lightning', 'trl', 'peft') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_samplers_and_data_sets_are_found_in_loaders_and_collections_of_them():
    items, sampler = FlowDataset(range(ROWS), WEIGHTS), FlowSampler(WEIGHTS)
    plain = DataLoader(range(ROWS), 4, sampler=sampler)
    nested = {"a": [DataLoader(Subset(items, [1, 2]), 2)], "b": plain}
    assert sources_of(nested) == [items, sampler]
    assert sources_of(DataLoader(range(ROWS))) == []
