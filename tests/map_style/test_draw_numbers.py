"""What a FlowDataset takes in place of the number of a draw."""

import datasets
import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from flowdata import FlowDataset

ROWS, DRAWS = 10, 14
WEIGHTS = np.random.default_rng(1).random(ROWS)
NUMBERS = list(range(100, 100 + ROWS))
DATA = {
    "list": NUMBERS,
    "array": np.array(NUMBERS),
    "tensor": torch.tensor(NUMBERS),
    "data set of tensors": TensorDataset(torch.tensor(NUMBERS)),
    "table": datasets.Dataset.from_dict({"x": NUMBERS}),
    "table of tensors": datasets.Dataset.from_dict({"x": NUMBERS}).with_format("torch"),
}


def numbers_of(found):
    """The numbers in whatever a data set gives for several rows."""
    if isinstance(found, dict):
        found = found["x"]
    elif isinstance(found, tuple | list) and len(found) == 1:
        found = found[0] if torch.is_tensor(found[0]) and found[0].ndim else found
    return [int(number) for number in found]


def make(data=NUMBERS):
    return FlowDataset(data, WEIGHTS, epoch_size=DRAWS, seed=2)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize(
    "index",
    [
        [1, 2],
        (3, 1),
        range(2, 9, 3),
        slice(0, 3),
        slice(None, None, -2),
        slice(5, 1),
        np.array([1, -2]),
        np.array([4], dtype=np.uint8),
        torch.tensor([1, 13]),
        [torch.tensor(1), np.int64(2)],
    ],
    ids=repr,
)
def test_several_draws_are_what_the_data_set_gives_for_as_many_rows(data, index):
    items = make(data)
    expected = [NUMBERS[row] for row in items.plan]
    if isinstance(index, slice):
        expected = expected[index]
    else:
        expected = [expected[int(place)] for place in index]
    assert numbers_of(items[index]) == expected


@pytest.mark.parametrize(
    "index", [3, -3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3), torch.tensor(-3)]
)
def test_one_draw_is_one_item(index):
    items = make()
    assert items[index] == NUMBERS[items.plan[int(index)]]


@pytest.mark.parametrize(
    "index",
    [
        True,
        np.bool_(True),
        torch.tensor(True),
        [True] * DRAWS,
        np.ones(DRAWS, bool),
        torch.zeros(DRAWS, dtype=torch.bool),
        1.0,
        np.float64(1.0),
        [0.5],
        np.array([1.0]),
        torch.tensor(1.0),
        "x",
        ["x"],
        None,
        [None],
        ...,
        {1},
        np.zeros((2, 2), int),
        [[1], [2]],
        [[1], [2, 3]],
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused(index):
    items = make()
    with pytest.raises(TypeError, match=r"draws? (is|are)|are draws"):
        items[index]
    if hasattr(index, "__len__") and not isinstance(index, (str, set)):
        with pytest.raises(TypeError, match="draws are"):
            items.__getitems__(index)


@given(st.lists(st.integers(-2 * DRAWS, 2 * DRAWS) | st.integers(-(1 << 70), 1 << 70), max_size=6))
@examples(200)
def test_draws_are_taken_as_a_list_takes_its_indices(index):
    items = make()
    drawn = [NUMBERS[row] for row in items.plan]
    try:
        expected = [drawn[place] for place in index]
    except IndexError:
        for found in (items.__getitem__, items.__getitems__):
            with pytest.raises(IndexError, match=f"outside an epoch of {DRAWS} draws"):
                found(index)
    else:
        assert items[index] == expected
        assert items.__getitems__(index) == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("order", [SequentialSampler, RandomSampler])
def test_bulk_loading_draws_each_epoch_as_its_plan_is(data, workers, order):
    items = make(data)
    batches = BatchSampler(order(items), 4, drop_last=False)
    loader = DataLoader(items, sampler=batches, batch_size=None, num_workers=workers)
    for epoch in range(2):
        drawn = [number for batch in loader for number in numbers_of(batch)]
        assert sorted(drawn) == sorted(NUMBERS[row] for row in items.plan.at_epoch(epoch))
    assert items.epoch == 1


def test_an_error_of_the_data_set_is_not_hidden():
    class Broken:
        def __len__(self):
            return ROWS

        def __getitem__(self, row):
            raise TypeError("this is wrong in the data")

    with pytest.raises(TypeError, match="this is wrong in the data"):
        make(Broken())[[1, 2]]
