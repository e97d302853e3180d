"""FlowDataset: epochs, states and attributes reach the data set in it, its rows stay rows."""

import copy
import json
import pickle
import random

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import EpochPlan, FlowDataset, MismatchError
from flowdata.errors import FlowDataWarning

ROWS = 12
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


class Images(Dataset):
    """What torchvision's and timm's data sets have, and a random state of its own."""

    def __init__(self):
        self.transform, self.target_transform = None, None
        self.classes = [f"class {number}" for number in range(ROWS)]
        self.targets = list(range(ROWS))
        self.samples = np.arange(2 * ROWS).reshape(ROWS, 2)
        self.epochs = []
        self.random = random.Random(5)

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        item = torch.tensor([row, self.random.randrange(10**6)])
        return item if self.transform is None else self.transform(item)

    @property
    def pixels(self):
        return 64

    @staticmethod
    def loader(path):
        return f"image at {path}"

    def collate(self, items):
        return torch.stack(items) * self.pixels

    def set_size(self, size):
        self.size = size

    def subset(self):
        return Subset(self, [1, 2])

    def labels(self):
        return torch.arange(ROWS)

    def lines(self):
        return iter(self.targets)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def state_dict(self):
        return {"random": self.random.getstate()}

    def load_state_dict(self, state):
        self.random.setstate(state["random"])


def make(data=None, **options):
    return FlowDataset(Images() if data is None else data, np.ones(ROWS), **options)


def pairs(batches):
    return torch.cat(list(batches)).tolist()


def test_attributes_are_those_of_the_data_set():
    items = make()
    assert items.classes is items.dataset.classes
    assert (items.transform, items.pixels, items.loader("x")) == (None, 64, "image at x")
    assert not hasattr(items, "nothing_of_this_name")
    assert getattr(items, "nothing_of_this_name", 3) == 3


def test_a_transform_that_is_set_is_that_of_the_data_set():
    items = make()
    items.transform = lambda item: -item
    assert items.dataset.transform is items.transform
    assert (torch.stack(list(items)) <= 0).all()
    items.note = "of the draws"
    assert not hasattr(items.dataset, "note")
    assert items.note == "of the draws"


def test_what_the_draws_have_themselves_is_not_set_in_the_data_set():
    class Other(Images):
        plan, epoch, seed = "a plan", "an epoch", 7

    items = make(Other())
    assert isinstance(items.plan, EpochPlan)
    assert (items.epoch, items.seed) == (0, 7)
    with pytest.raises(AttributeError):
        items.epoch = 4
    assert items.dataset.epoch == "an epoch"


def test_methods_are_called_on_the_data_set():
    items = make()
    items.set_size(7)
    assert items.dataset.size == 7
    loader = DataLoader(items, ROWS, collate_fn=pickle.loads(pickle.dumps(items.collate)))
    assert sorted(next(iter(loader))[:, 0].tolist()) == [64 * row for row in range(ROWS)]


@pytest.mark.parametrize("name", ["targets", "samples"])
def test_what_goes_by_row_is_not_taken_for_what_goes_by_draw(name):
    with pytest.raises(AttributeError, match=rf"{name} of the Images goes by row.*plan\[:\]"):
        getattr(make(), name)


@pytest.mark.parametrize("name", ["subset", "labels", "lines"])
def test_methods_do_not_give_rows_away_for_draws(name):
    with pytest.raises(TypeError, match=f"Images.{name} gives rows"):
        getattr(make(), name)()


TABLE = datasets.Dataset.from_dict({"x": list(range(ROWS)), "y": list("abcdefghijkl")})


def test_columns_of_a_hugging_face_data_set_are_known():
    items = make(TABLE)
    assert items.column_names == ["x", "y"]
    assert items.features == TABLE.features
    items.set_format("torch", columns=["x"])
    assert items[[0, 1]]["x"].dtype == torch.int64
    items.reset_format()


@pytest.mark.parametrize(
    "name",
    [
        *("map", "filter", "select", "shuffle", "with_format", "train_test_split", "to_pandas"),
        *("iter", "num_rows", "shape", "data", "select_columns", "unique", "push_to_hub", "sort"),
    ],
)
def test_what_a_hugging_face_data_set_does_with_rows_is_not_done_with_draws(name):
    with pytest.raises(AttributeError, match=rf"flow_dataset\.dataset|{name}.* before"):
        getattr(make(TABLE), name)


@pytest.mark.parametrize("data", [list(range(ROWS)), np.arange(ROWS), torch.arange(ROWS)])
def test_containers_that_are_not_data_sets_show_nothing_of_themselves(data):
    items = make(data)
    for name in ("append", "sort", "shape", "dtype", "T", "numpy"):
        assert not hasattr(items, name)


def test_copies_have_a_data_set_of_their_own():
    items = make(seed=3)
    for copied in (copy.deepcopy(items), pickle.loads(pickle.dumps(items))):
        copied.transform = abs
        assert items.transform is None
        assert copied.dataset.transform is abs
    assert copy.copy(items).dataset is items.dataset


def test_set_epoch_reaches_the_data_set():
    items = make()
    for epoch in (0, 3, 3):
        items.set_epoch(epoch)
    assert items.dataset.epochs == [0, 3, 3]
    with pytest.raises(ValueError, match="epoch"):
        items.set_epoch(-1)
    assert items.dataset.epochs == [0, 3, 3]


class Epochs(Dataset):
    epoch = None

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return self.epoch

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(
    "workers",
    [
        {},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
        pytest.param(
            {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_set_epoch_reaches_the_copies_of_the_data_set_in_worker_processes(workers):
    items = make(Epochs())
    loader = DataLoader(items, 4, **workers)
    for epoch in (5, 2, 9):
        items.set_epoch(epoch)
        assert torch.cat(list(loader)).tolist() == [epoch] * ROWS


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_stateful_loader_goes_on_with_the_random_state_of_the_data_set(workers, taken):
    def begin():
        items = make()
        items.set_epoch(1)
        return StatefulDataLoader(items, 3, num_workers=workers)

    loader = begin()
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    left = pairs(batches)
    resumed = begin()
    resumed.load_state_dict(state)
    assert pairs(resumed) == left


def test_a_state_holds_that_of_the_data_set_and_brings_it_back():
    items = make()
    items.set_epoch(2)
    items[0]
    state = items.state_dict()
    expected = [item.tolist() for item in items]
    again = make(seed=9)
    again.load_state_dict(state)
    again.set_epoch(2)
    assert [item.tolist() for item in again] == expected
    assert again.dataset.epochs == [2]
    assert pickle.loads(pickle.dumps(state)) == state


def test_naming_another_epoch_after_a_state_reaches_the_data_set():
    items = make()
    items.set_epoch(2)
    again = make()
    again.load_state_dict(items.state_dict())
    for epoch in (3, 2, 2):
        again.set_epoch(epoch)
    assert again.dataset.epochs == [2, 3, 2, 2]


def test_a_state_of_a_data_set_without_one_is_as_it_was():
    items = make(range(ROWS))
    items.set_epoch(2)
    assert set(items.state_dict()) == {"version", "plan", "seed", "epoch", "named"}
    assert json.loads(json.dumps(items.state_dict())) == items.state_dict()


def test_a_state_that_was_saved_without_that_of_the_data_set_is_loaded_with_a_warning():
    items = make()
    items.set_epoch(2)
    state = items.state_dict()
    del state["dataset"]
    again = make()
    with pytest.warns(FlowDataWarning, match="none of the Images in it"):
        again.load_state_dict(state)
    assert again.epoch == 2


def test_a_state_of_a_data_set_that_loads_none_is_refused():
    items = make()
    items.set_epoch(2)
    plain = make(range(ROWS))
    with pytest.raises(MismatchError, match="range has no load_state_dict"):
        plain.load_state_dict(items.state_dict())
    assert plain.epoch == 0
    assert not plain.state_dict()["named"]


def test_a_state_that_the_data_set_refuses_leaves_the_draws_where_they_were():
    items = make(seed=8)
    items.set_epoch(2)
    again = make()
    with pytest.raises(KeyError):
        again.load_state_dict(items.state_dict() | {"dataset": {}})
    assert (again.epoch, again.plan.seed) == (0, 0)


def test_draws_are_no_rows_to_draw_from_again():
    with pytest.raises(TypeError, match="a FlowDataset has draws, which are no rows"):
        make(make())


def test_a_tensor_data_set_keeps_its_tensors():
    items = make(TensorDataset(torch.arange(ROWS), torch.zeros(ROWS)))
    assert len(items.tensors) == 2
