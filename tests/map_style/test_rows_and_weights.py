"""As many weights as rows, wherever the rows can be counted; rows of weight 0 with alpha=0."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import (
    DistributedFlowSampler,
    FlowDataset,
    FlowDataWarning,
    FlowSampler,
    FlowWeights,
    MismatchError,
)
from flowdata.reweight import reweight

ROWS = 12
DATA = {
    "list": list(range(ROWS)),
    "range": range(ROWS),
    "torch": TensorDataset(torch.zeros(ROWS)),
    "datasets": datasets.Dataset.from_dict({"x": range(ROWS)}),
    "concatenated": ConcatDataset([range(5), range(7)]),
    "subset": Subset(range(100), range(ROWS)),
    "pandas": pd.DataFrame({"x": range(ROWS)}),
}
SAMPLERS = {
    "FlowSampler": FlowSampler,
    "DistributedFlowSampler": lambda *args, **options: DistributedFlowSampler(
        *args, num_replicas=1, rank=0, **options
    ),
}


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("rows", [1, ROWS - 1, ROWS, ROWS + 1])
def test_a_sampler_that_is_given_its_data_set_checks_the_length(make, data, rows):
    if rows == ROWS:
        assert len(make(np.ones(rows), dataset=data)) == ROWS
        return
    with pytest.raises(MismatchError, match=f"data set has 12 rows, but there are {rows} weights"):
        make(np.ones(rows), dataset=data)


def test_a_stream_is_no_data_set_of_a_sampler():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    for stream in (Stream(), (row for row in range(3))):
        with pytest.raises(TypeError, match="has no length: a sampler draws rows by number"):
            FlowSampler([1.0, 2.0], dataset=stream)


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1])
def test_every_door_that_is_given_the_data_refuses_another_number_of_weights(rows):
    for door in (FlowDataset, reweight):
        with pytest.raises(MismatchError, match=f"12 rows, but there are {rows} weights"):
            door(list(range(ROWS)), np.ones(rows))


LOADERS = {
    "sampler": lambda data, sampler: DataLoader(data, 4, sampler=sampler),
    "no batches": lambda data, sampler: DataLoader(data, batch_size=None, sampler=sampler),
    "batch sampler": lambda data, sampler: DataLoader(
        data, batch_sampler=BatchSampler(sampler, 4, drop_last=False)
    ),
    "torchdata": lambda data, sampler: StatefulDataLoader(data, 4, sampler=sampler),
}


@pytest.mark.guard
@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize("kind", [kind for kind in DATA if kind != "pandas"])
def test_a_loader_of_more_rows_than_weights_is_warned_of(make, kind):
    with pytest.warns(FlowDataWarning, match=r"9 weights, but .* 12 rows: rows from 9 on are nev"):
        list(make(DATA[kind], FlowSampler(np.ones(9))))


@pytest.mark.guard
def test_a_loader_of_fewer_rows_than_weights_is_warned_of_before_a_row_is_missed():
    loader = DataLoader(range(ROWS), 1, sampler=FlowSampler(np.ones(13)))
    with pytest.warns(FlowDataWarning, match="there is no row 12 to be drawn"):
        next(iter(loader))


class InPairs(torch.utils.data.Sampler):
    """Two rows for each draw: what is drawn are no rows."""

    def __init__(self, sampler):
        self._sampler = sampler

    def __iter__(self):
        for draw in self._sampler:
            yield from (2 * draw, 2 * draw + 1)


class WithoutLength(torch.utils.data.Dataset):
    def __getitem__(self, row):
        return row


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS)
def test_no_other_loader_is_warned_of(make):
    weights = np.ones(ROWS)
    assert len(list(make(range(ROWS), FlowSampler(weights)))) in (3, 12)
    weighted, collate = reweight(range(ROWS), weights, target=lambda batch, add: batch)
    assert list(DataLoader(weighted, 4, sampler=FlowSampler(weights), collate_fn=collate))
    assert list(make(WithoutLength(), FlowSampler(weights)))
    assert len(list(FlowSampler(weights))) == ROWS
    if make is not LOADERS["torchdata"]:
        assert list(make(range(ROWS), InPairs(FlowSampler(np.ones(6)))))


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_draws_that_leave_out_rows_of_weight_zero_are_no_pass_over_all_rows(make):
    with pytest.warns(FlowDataWarning, match=r"draws the 2 rows .* the other 1, .*shuffle=True"):
        make([1.0, 0.0, 2.0], alpha=0.0)
    make([1.0, 0.5, 2.0], alpha=0.0)
    make([True, False, True])
    make([1.0, 0.0, 2.0], alpha=0.5)


@pytest.mark.parametrize("kind", ["FlowDataset", "FlowSampler"])
@pytest.mark.parametrize(("weighted_for", "drawn_by"), [(0.0, 1.0), (0.5, 1.0), (0.25, 0.5)])
def test_rows_are_drawn_by_the_alpha_that_they_are_weighted_for(kind, weighted_for, drawn_by):
    def draws(weights, alpha):
        if kind == "FlowDataset":
            return FlowDataset(rows, weights, alpha=alpha)
        return FlowSampler(weights, alpha=alpha, dataset=rows)

    weights = np.arange(1.0, ROWS + 1)
    rows, _ = reweight(list(range(ROWS)), weights, alpha=weighted_for)
    with pytest.raises(MismatchError, match=rf"alpha={weighted_for}.*with alpha={drawn_by}"):
        draws(FlowWeights.from_weights(weights), drawn_by)
    # The same alpha, or weights of something else, of classes for one.
    assert len(draws(weights, weighted_for)) == ROWS
    assert len(draws(weights[::-1], drawn_by)) == ROWS
    # Of equal weights nothing is lost.
    rows, _ = reweight(list(range(ROWS)), np.full(ROWS, 2.0), alpha=weighted_for)
    assert len(draws(np.full(ROWS, 2.0), drawn_by)) == ROWS


@pytest.mark.guard
def test_a_loader_that_draws_by_the_weights_of_its_losses_is_warned_of():
    weights = np.arange(1.0, ROWS + 1)
    rows, collate = reweight(list(range(ROWS)), weights, target=lambda batch, add: add(batch))
    with pytest.warns(FlowDataWarning, match="count twice"):
        list(DataLoader(rows, 4, sampler=FlowSampler(weights), collate_fn=collate))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_loader_whose_weights_are_split_is_not_warned_of(alpha):
    weights = np.arange(1.0, ROWS + 1)
    options = {"target": lambda batch, add: add(batch), "alpha": alpha}
    rows, collate = reweight(list(range(ROWS)), weights, **options)
    list(DataLoader(rows, 4, sampler=FlowSampler(weights, alpha=alpha), collate_fn=collate))
