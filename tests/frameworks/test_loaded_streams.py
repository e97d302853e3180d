"""A stream whose epoch was set, or whose state was loaded, is drawn so under accelerate's count."""

import pytest
from accelerate import Accelerator, DataLoaderConfiguration
from shard_files import make_table, write_shards
from torch.utils.data import DataLoader

from flowdata import FlowShards

pytestmark = pytest.mark.filterwarnings("error::flowdata.FlowDataWarning")


def number(sample):
    shard, place = sample["txt"].decode().split("/")
    return 100 * int(shard) + int(place)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    urls = write_shards(tmp_path_factory.mktemp("shards"), (12, 8, 12))
    table = make_table(urls)
    options = {"seed": 3, "batch_size": 4, "num_replicas": 1, "rank": 0}
    return lambda: FlowShards(urls, table, **options).map(number)


def prepare(stream, workers, *, stateful):
    accelerator = Accelerator(
        cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=stateful)
    )
    return accelerator.prepare(DataLoader(stream, batch_size=4, num_workers=workers))


def draws(loader):
    return [int(each) for batch in loader for each in batch]


def epoch_of(make, epoch, workers):
    stream = make()
    stream.set_epoch(epoch)
    return draws(DataLoader(stream, batch_size=4, num_workers=workers))


def state_in(make, epoch, samples):
    stream = make()
    stream.set_epoch(epoch)
    for _, _ in zip(range(samples), stream, strict=False):
        pass
    return stream.state_dict()


@pytest.mark.parametrize("stateful", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_that_was_set_is_drawn_and_then_those_after_it(make, workers, stateful):
    stream = make()
    stream.set_epoch(4)
    loader = prepare(stream, workers, stateful=stateful)
    assert [draws(loader) for _ in range(2)] == [epoch_of(make, e, workers) for e in (4, 5)]


@pytest.mark.parametrize("stateful", [False, True])
def test_a_loaded_state_is_gone_on_from_and_then_the_epochs_after_it(make, stateful):
    stream = make()
    loader = prepare(stream, 0, stateful=stateful)
    stream.load_state_dict(state_in(make, 3, 8))
    assert draws(loader) == epoch_of(make, 3, 0)[8:]
    assert draws(loader) == epoch_of(make, 4, 0)


def test_what_is_left_with_workers_is_all_that_was_not_drawn(make):
    stream = make()
    stream.load_state_dict(state_in(make, 3, 8))
    loader = prepare(stream, 2, stateful=True)
    assert sorted(draws(loader)) == sorted(epoch_of(make, 3, 0)[8:])
    assert draws(loader) == epoch_of(make, 4, 2)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_of_accelerates_loader_leads_to_the_epoch_it_was_saved_in(make, workers):
    first, second = make(), make()
    first.set_epoch(5)
    loader = prepare(first, workers, stateful=True)
    taken = []
    for step, batch in enumerate(loader):
        taken.append(batch.tolist())
        if step == 2:
            state = loader.state_dict()
    loader = prepare(second, workers, stateful=True)
    loader.load_state_dict(state)
    assert [batch.tolist() for batch in loader] == taken[3:]
    assert draws(loader) == epoch_of(make, 6, workers)


@pytest.mark.guard
def test_an_epoch_that_is_named_once_workers_have_begun_another_is_refused(make):
    loader = prepare(make(), 2, stateful=True)
    with pytest.raises(RuntimeError, match="started the workers of this stream before it was"):
        loader.set_epoch(2)
