"""FlowDataset: whatever visits each of its items once has drawn an epoch of the plan."""

import copy
import pickle
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from flowdata import EpochPlan, FlowDataset, FlowWeights, MismatchError
from flowdata.errors import FlowDataWarning, InvalidLossError

ROWS, DRAWS, SEED = 17, 22, 4
WEIGHTS = np.random.default_rng(3).random(ROWS)
WORKERS = [
    pytest.param({"num_workers": 0}, id="no workers"),
    pytest.param({"num_workers": 2}, id="2 workers"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="2 persistent workers"),
    pytest.param(
        {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "spawn"},
        id="2 persistent spawned workers",
        marks=pytest.mark.slow,
    ),
]
FORKED_WORKERS = WORKERS[:3]
COPIES = {"pickle": lambda it: pickle.loads(pickle.dumps(it)), "deepcopy": copy.deepcopy}


@pytest.fixture(autouse=True)
def fixed_shuffles():
    torch.manual_seed(0)


def planned(epoch, **options):
    options = {"seed": SEED, "epoch_size": DRAWS} | options
    return EpochPlan(WEIGHTS, epoch=epoch, **options)[:].tolist()


def make(inner=range(ROWS), **options):
    return FlowDataset(inner, WEIGHTS, **({"seed": SEED, "epoch_size": DRAWS} | options))


def one_epoch(loader):
    return torch.cat(list(loader)).tolist()


def same_rows(drawn, expected):
    return Counter(drawn) == Counter(expected)


class Batched:
    """A data set that says which of its doors was used."""

    def __init__(self):
        self.batches, self.singles = [], []

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        self.singles.append(row)
        return row

    def __getitems__(self, rows):
        self.batches.append(rows)
        return list(rows)


class Doubled(Dataset):
    """A transform around a data set, which reads items one by one."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item):
        return 2 * self.dataset[item]


def test_item_j_is_the_row_of_draw_j():
    letters = "abcdefghijklmnopq"
    items = make(letters)
    assert len(items) == DRAWS
    assert [items[j] for j in range(DRAWS)] == [letters[row] for row in planned(0)]


def test_options_are_those_of_the_plan():
    options = {"scheme": "multinomial", "alpha": 0.25, "epoch_size": "ess", "seed": 8}
    items = make(**options)
    assert [items[j] for j in range(len(items))] == planned(0, **options)


@pytest.mark.parametrize("workers", WORKERS)
def test_each_shuffled_pass_draws_the_next_epoch_until_someone_names_the_epochs(workers):
    items = make()
    loader = DataLoader(items, batch_size=4, shuffle=True, **workers)
    for epoch in range(3):
        assert same_rows(one_epoch(loader), planned(epoch))
        assert items.epoch == epoch
    for epoch in (7, 7, 0, 8):
        items.set_epoch(epoch)
        assert same_rows(one_epoch(loader), planned(epoch))
        assert items.epoch == epoch
    assert same_rows(one_epoch(loader), planned(8))


@pytest.mark.parametrize("workers", WORKERS)
def test_each_pass_draws_the_next_epoch_through_a_transform_around_it_too(workers):
    items = make()
    loader = DataLoader(Doubled(ConcatDataset([items])), batch_size=4, shuffle=True, **workers)
    for epoch in range(3):
        assert same_rows(one_epoch(loader), [2 * row for row in planned(epoch)])
        assert items[0] == planned(epoch)[0]


@pytest.mark.parametrize("workers", FORKED_WORKERS)
def test_sequential_passes_draw_each_epoch_in_the_order_of_its_plan(workers):
    loader = DataLoader(make(), batch_size=5, **workers)
    assert [one_epoch(loader) for _ in range(3)] == [planned(epoch) for epoch in range(3)]


@pytest.mark.parametrize("workers", FORKED_WORKERS)
@pytest.mark.parametrize("batch_size", [1, 2, DRAWS, DRAWS + 5])
def test_the_batch_size_does_not_change_the_draws_of_an_epoch(batch_size, workers):
    loader = DataLoader(make(), batch_size=batch_size, shuffle=True, **workers)
    for epoch in range(3):
        assert same_rows(one_epoch(loader), planned(epoch))


def test_more_than_255_epochs_each_draw_anew():
    loader = DataLoader(make(), batch_size=11, shuffle=True)
    for epoch in range(520):
        assert same_rows(one_epoch(loader), planned(epoch))


@pytest.mark.parametrize("workers", FORKED_WORKERS)
@pytest.mark.parametrize("of_draws", [RandomSampler, SequentialSampler])
def test_an_epoch_through_a_batch_sampler_is_the_plan(of_draws, workers):
    items = make()
    batches = BatchSampler(of_draws(items), batch_size=4, drop_last=False)
    loader = DataLoader(items, batch_sampler=batches, **workers)
    for epoch in range(3):
        assert same_rows(one_epoch(loader), planned(epoch))


@pytest.mark.parametrize("workers", FORKED_WORKERS)
def test_a_loader_that_drops_its_last_batch_draws_the_epoch_without_that_batch(workers):
    loader = DataLoader(make(), batch_size=4, drop_last=True, **workers)
    assert [one_epoch(loader) for _ in range(3)] == [planned(epoch)[:20] for epoch in range(3)]


@pytest.mark.parametrize("workers", FORKED_WORKERS)
def test_a_shuffling_loader_that_drops_its_last_batch_never_mixes_epochs(workers):
    loader = DataLoader(make(), batch_size=4, shuffle=True, drop_last=True, **workers)
    for epoch in range(6):
        drawn = Counter(one_epoch(loader))
        assert drawn.total() == 20
        assert drawn <= Counter(planned(epoch))


def loaders_of_ranks(replicas, drop_last=False, draws=DRAWS):
    """One data set and loader a rank, as in as many processes."""
    loaders = []
    for rank in range(replicas):
        items = make(epoch_size=draws)
        sampler = DistributedSampler(items, replicas, rank, seed=1, drop_last=drop_last)
        loaders.append(DataLoader(items, batch_size=2, sampler=sampler))
    return loaders


@pytest.mark.parametrize("replicas", [2, 3])
def test_the_ranks_of_a_distributed_sampler_draw_an_epoch_between_them(replicas):
    loaders = loaders_of_ranks(replicas, draws=24)
    for epoch in (0, 1, 5):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
            loader.dataset.set_epoch(epoch)
        drawn = [row for loader in loaders for row in one_epoch(loader)]
        assert same_rows(drawn, planned(epoch, epoch_size=24))


def test_ranks_whose_epochs_nobody_names_draw_anew_all_the_same():
    loaders = loaders_of_ranks(2)
    for epoch in range(4):
        drawn = [row for loader in loaders for row in one_epoch(loader)]
        assert same_rows(drawn, planned(epoch))


@pytest.mark.guard
@pytest.mark.parametrize("workers", WORKERS)
def test_on_several_ranks_a_data_set_that_is_not_told_its_epoch_warns_once(monkeypatch, workers):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = DataLoader(make(), batch_size=4, shuffle=True, **workers)
    with pytest.warns(FlowDataWarning, match="set_epoch") as warned:
        one_epoch(loader)
    one_epoch(loader)
    assert len(warned) == 1
    told = make()
    told.set_epoch(0)
    one_epoch(DataLoader(told, batch_size=4, shuffle=True))


def test_a_padding_distributed_sampler_repeats_only_the_draws_it_pads_with():
    for epoch in range(3):
        drawn = Counter()
        for loader in loaders_of_ranks(2, draws=23):
            loader.sampler.set_epoch(epoch)
            loader.dataset.set_epoch(epoch)
            drawn.update(one_epoch(loader))
        assert drawn.total() == 24
        assert drawn > Counter(planned(epoch, epoch_size=23))


@pytest.mark.parametrize("epoch", [0, 3])
def test_looking_at_single_items_does_not_count_as_drawing_them(epoch):
    items = make()
    loader = DataLoader(items, batch_size=4, shuffle=True)
    for _ in range(epoch):
        one_epoch(loader)
    running = items.epoch
    looks = [items[j] for j in (0, 0, 5, -1)]
    assert items.epoch == running
    assert looks == [planned(running)[j] for j in (0, 0, 5, -1)]
    assert same_rows(one_epoch(loader), planned(epoch))


def test_single_items_follow_the_epoch_the_workers_are_in():
    items = make()
    loader = DataLoader(items, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in range(3):
        one_epoch(loader)
        assert [items[j] for j in range(DRAWS)] == items.plan[:].tolist() == planned(epoch)


def test_set_epoch_turns_off_the_automatic_next_epoch_even_for_epoch_0():
    items = make()
    items.set_epoch(0)
    loader = DataLoader(items, batch_size=4)
    assert [one_epoch(loader) for _ in range(3)] == [planned(0)] * 3


@pytest.mark.parametrize("named", [True, False])
def test_without_automatic_batching_each_pass_draws_the_next_epoch(named):
    items = make()
    loader = DataLoader(items, batch_size=None)
    for epoch in (0, 1):
        if named:
            items.set_epoch(epoch)
        assert [int(row) for row in loader] == planned(epoch)


def test_a_batch_is_fetched_through_getitems_where_the_data_set_has_it():
    inner = Batched()
    assert one_epoch(DataLoader(make(inner), batch_size=DRAWS)) == planned(0)
    assert (inner.batches, inner.singles) == ([planned(0)], [])


def test_a_batch_is_fetched_row_by_row_where_the_data_set_has_no_getitems():
    inner = Batched()
    items = make(inner)
    inner.__class__ = type("Single", (Batched,), {"__getitems__": None})
    assert one_epoch(DataLoader(items, batch_size=DRAWS)) == planned(0)
    assert (inner.batches, inner.singles) == ([], planned(0))


@pytest.mark.filterwarnings("ignore:a Subset gives 3 of the 22 draws")
def test_a_subset_of_an_epoch_reads_the_draws_it_names():
    part = Subset(make(), [2, 9, 4])
    plan = planned(0)
    assert one_epoch(DataLoader(part, batch_size=3)) == [plan[2], plan[9], plan[4]]


def test_negative_draws_count_from_the_end_alone_and_in_a_batch():
    items, plan = make(), planned(0)
    assert [items[-1], items[-DRAWS]] == [plan[-1], plan[0]]
    assert items.__getitems__([-1, 3, -DRAWS]) == [plan[-1], plan[3], plan[0]]


def test_a_negative_draw_is_the_same_item_as_its_positive_twin_when_epochs_advance():
    items = make()
    items.__getitems__([DRAWS - 1])
    assert items.__getitems__([-1]) == [planned(1)[-1]]


@pytest.mark.parametrize("draw", [DRAWS, DRAWS + 100, -DRAWS - 1])
def test_a_draw_outside_the_epoch_is_an_index_error_and_is_not_marked(draw):
    items = make()
    for fetch in (lambda: items[draw], lambda: items.__getitems__([0, draw])):
        with pytest.raises(IndexError, match=str(DRAWS)):
            fetch()
    assert items.__getitems__(range(DRAWS)) == planned(0)


def test_the_data_set_is_a_sequence_that_ends():
    assert list(make()) == planned(0)


def test_tensors_and_numpy_integers_are_draws_too():
    items, plan = make(), planned(0)
    assert [items[np.int64(3)], items[torch.tensor(4)]] == plan[3:5]
    assert items.__getitems__(np.arange(2, 5)) == plan[2:5]
    assert items.__getitems__(torch.arange(5, 8).tolist()) == plan[5:8]


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS + 1, 0])
def test_a_data_set_of_another_length_than_the_weights_is_refused(rows):
    with pytest.raises(MismatchError, match=rf"{rows} rows.*{ROWS} weights"):
        make(range(rows))


def test_weights_that_cannot_be_sampled_are_refused():
    with pytest.raises(InvalidLossError):
        FlowDataset(range(2), [0.0, 0.0])


@pytest.mark.parametrize("epoch", [-1, 0.5, "2"])
def test_an_epoch_that_is_no_count_is_refused_and_changes_nothing(epoch):
    items = make()
    with pytest.raises(ValueError, match="epoch"):
        items.set_epoch(epoch)
    loader = DataLoader(items, batch_size=4)
    assert [one_epoch(loader), one_epoch(loader)] == [planned(0), planned(1)]


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_in_the_same_epoch_and_goes_on_by_itself(copied):
    items = make()
    one_epoch(DataLoader(items, batch_size=4))
    items.set_epoch(2)
    twin = copied(items)
    twin.set_epoch(5)
    assert (items.epoch, twin.epoch) == (2, 5)
    assert one_epoch(DataLoader(items, batch_size=4)) == planned(2)
    assert one_epoch(DataLoader(twin, batch_size=4)) == planned(5)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("workers", FORKED_WORKERS)
def test_each_pass_over_a_copy_draws_the_next_epoch(workers, copied):
    loader = DataLoader(copied(make()), batch_size=1, shuffle=True, **workers)
    for epoch in range(4):
        assert same_rows(one_epoch(loader), planned(epoch))


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_set_epoch_reaches_the_persistent_workers_of_a_copy(copied):
    items = copied(make())
    loader = DataLoader(items, batch_size=4, num_workers=2, persistent_workers=True)
    for epoch in (3, 1):
        items.set_epoch(epoch)
        assert one_epoch(loader) == planned(epoch)


@pytest.mark.parametrize("workers", FORKED_WORKERS)
def test_a_hugging_face_data_set_is_drawn_from_by_rows_and_in_batches(workers):
    table = datasets.Dataset.from_dict({"row": range(ROWS), "text": [f"t{r}" for r in range(ROWS)]})
    items = make(table)
    assert items[3] == {"row": planned(0)[3], "text": f"t{planned(0)[3]}"}
    loader = DataLoader(items, batch_size=4, shuffle=True, **workers)
    for epoch in range(3):
        batches = list(loader)
        drawn = [row for batch in batches for row in batch["row"].tolist()]
        assert same_rows(drawn, planned(epoch))
        assert [text for batch in batches for text in batch["text"]] == [f"t{r}" for r in drawn]


def test_a_hugging_face_data_set_keeps_its_format_and_transform():
    table = datasets.Dataset.from_dict({"row": range(ROWS)}).with_format("torch")
    drawn = torch.stack([item["row"] for item in make(table).__getitems__(range(DRAWS))])
    assert drawn.tolist() == planned(0)


def test_equal_weights_and_full_size_visit_each_row_once():
    items = FlowDataset(range(ROWS), FlowWeights.from_weights(np.ones(ROWS)))
    loader = DataLoader(items, batch_size=3, shuffle=True)
    for _ in range(3):
        assert sorted(one_epoch(loader)) == list(range(ROWS))
