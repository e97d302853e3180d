"""Rows of a stream of datasets that bring their weights in a column."""

from itertools import islice

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from flowdata import FlowSampler
from flowdata.reweight import reweight

ROWS = 11
WEIGHTS = np.random.default_rng(5).random(ROWS)


def weighted_stream():
    """A stream, of which `reweight` is told by a column."""
    rows = datasets.Dataset.from_dict({"row": range(ROWS), "labels": np.ones(ROWS)})
    return rows.to_iterable_dataset(num_shards=2).map(
        lambda row: row | {"__weight__": float(WEIGHTS[row["row"]])}
    )


def test_a_stream_is_reweighted_by_a_column_and_goes_on_from_its_own_state():
    batches, state = [], None
    for _ in range(2):
        data, collate = reweight(weighted_stream(), None, target="labels")
        if state is not None:
            data.load_state_dict(state)
        # Its samples come one by one, as a loader without workers asks for them.
        loader = iter(DataLoader(data, 2, collate_fn=collate))
        batches += list(islice(loader, 2)) if state is None else list(loader)
        state = data.state_dict()
    rows = torch.cat([batch["row"] for batch in batches])
    assert rows.tolist() == list(range(ROWS))
    weights = torch.cat([batch["labels"].weights for batch in batches])
    np.testing.assert_array_equal(weights, np.float32(WEIGHTS)[rows])
    with pytest.raises(ValueError, match="got sampler="):
        DataLoader(weighted_stream(), sampler=FlowSampler(WEIGHTS))
