"""Who reads an item: a pass of a loader, in whichever process, or nobody but a person."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from flowdata.guards import fetching
from flowdata.guards.fetching import UNSEEN, WorkerPool, find_fetch, worker_pool


class Rows(Dataset):
    """Items that tell what is found when they are read."""

    def __init__(self, find):
        self.find = find

    def __len__(self):
        return 4

    def __getitem__(self, row):
        return self.find()


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[row] for row in range(len(self.rows)))


@pytest.mark.parametrize("around", [lambda rows: rows, Stream])
def test_each_pass_has_one_reader_of_its_own(around):
    loader = DataLoader(around(Rows(find_fetch)), 2, collate_fn=list)
    first, second = ([fetch for batch in loader for fetch in batch] for _ in range(2))
    assert len({fetch.reader for fetch in first}) == len({fetch.reader for fetch in second}) == 1
    assert first[0].reader is not second[0].reader
    assert [fetch.items for fetch in first] == [2] * 4


@pytest.mark.parametrize(
    ("options", "batches"),
    [({"batch_size": 3}, 2), ({"batch_size": 3, "drop_last": True}, 1), ({"batch_size": None}, 4)],
)
def test_a_pass_tells_how_many_batches_it_has(options, batches):
    fetch = next(iter(DataLoader(Rows(find_fetch), collate_fn=lambda items: items, **options)))
    fetch = fetch[0] if isinstance(fetch, list) else fetch
    assert fetch.batches_of(4) == batches
    assert fetch.batches_of(5) is None


def test_a_look_at_an_item_has_no_reader():
    assert Rows(find_fetch)[0] is None


def test_who_reads_is_unknown_where_a_loader_cannot_be_recognised(monkeypatch):
    renamed = type("Module", (), {"_MapDatasetFetcher": 1})
    monkeypatch.setitem(fetching.sys.modules, "torch.utils.data._utils.fetch", renamed)
    assert Rows(find_fetch)[0] is UNSEEN


def pool_and_worker():
    return worker_pool(), get_worker_info().id


@pytest.mark.parametrize("persistent", [True, False])
def test_the_workers_of_a_loader_are_one_pool_told_from_any_other(persistent):
    torch.manual_seed(0)
    options = {"num_workers": 2, "persistent_workers": persistent, "collate_fn": list}
    pools = []
    for _ in range(2):
        loader = DataLoader(Rows(pool_and_worker), 1, **options)
        for _ in range(2):
            torch.manual_seed(0)
            found = [item for batch in loader for item in batch]
            assert {worker for _, worker in found} == {0, 1}
            assert len({pool for pool, _ in found}) == 1
            pools.append(found[0][0])
    assert isinstance(pools[0], WorkerPool)
    assert len(set(pools)) == (2 if persistent else 4)
    assert worker_pool() is None
