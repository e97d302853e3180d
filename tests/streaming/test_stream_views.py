"""Streams made of one FlowShards: each counts for itself, and is told what the one is told."""

import copy
import json
import pickle
from itertools import islice

import pytest
import webdataset as wds
from shard_files import make_table, name_of, write_shards
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowShards

OPTIONS = {"epoch_size": 24, "seed": 3, "window": 7, "shards_open": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), (20, 3, 12))


@pytest.fixture(scope="module")
def table(urls):
    return make_table(urls)


@pytest.fixture
def base(urls, table):
    return FlowShards(urls, table, **OPTIONS)


@pytest.fixture(scope="module")
def epochs(urls, table):
    """Names of the draws of epochs 0 to 5."""
    alone = FlowShards(urls, table, **OPTIONS).map(name_of)
    return [list(alone) for _ in range(6)]


def always(_):
    return True


def names(samples):
    """Names in samples of any kind: dicts, tuples, batches of them, and names."""
    if isinstance(samples, str):
        return [samples]
    if isinstance(samples, bytes):
        return [samples.decode()]
    if isinstance(samples, dict):
        return names(samples["txt"])
    return [name for sample in samples for name in names(sample)]


WAYS = {
    "map": lambda stream: stream.map(name_of),
    "select": lambda stream: stream.select(always),
    "decode": lambda stream: stream.decode(wds.handle_extension("txt", bytes)),
    "to_tuple": lambda stream: stream.to_tuple("txt"),
    "rename": lambda stream: stream.rename(txt="txt"),
    "batched": lambda stream: stream.map(name_of).batched(4, collation_fn=list),
    "compose": lambda stream: stream.compose(wds.map(name_of)),
    "nothing": lambda stream: stream.compose(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda stream: pickle.loads(pickle.dumps(stream)),
    "itself": lambda stream: stream,
}
PAIRS = [*((way, "map") for way in WAYS), ("map", "itself"), ("batched", "batched")]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids="-".join)
def test_two_streams_made_of_one_draw_the_same_epochs_side_by_side(base, epochs, one, other):
    first, second = WAYS[one](base), WAYS[other](base)
    for epoch in range(2):
        pairs = [[], []]
        running = [iter(first), iter(second)]
        for step in range(200):
            pairs[step % 2] += names(next(running[step % 2], []))
        assert pairs == [epochs[epoch]] * 2


def test_a_stream_made_of_one_that_was_made_counts_for_itself_too(base, epochs):
    middle = base.compose(wds.select(always))
    last = middle.map(name_of)
    other = middle.map(name_of)
    running = iter(last)
    begun = list(islice(running, 5))
    assert names(middle) == list(other) == names(base) == epochs[0]
    assert begun + list(running) == epochs[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_is_that_of_the_stream_that_was_iterated_over(urls, table, base, workers):
    one, other = base.map(name_of), base.map(name_of)
    loader = iter(DataLoader(one, batch_size=4, num_workers=workers))
    begun = [name for _ in range(3) for name in next(loader)]
    position = 12 if workers else None
    asked_above = base.state_dict(position=position)
    state = one.state_dict(position=position)
    assert asked_above == state
    rest = [name for batch in loader for name in batch]
    del loader
    # The second stream goes ahead without the first one's state changing.
    list(islice(other, 7))
    assert one.state_dict(position=12) == state or not workers
    again = FlowShards(urls, table, **OPTIONS).map(name_of)
    again.load_state_dict(json.loads(json.dumps(state)))
    assert begun + names(DataLoader(again, batch_size=4, num_workers=workers)) == begun + rest


def test_the_last_stream_of_a_chain_has_the_state_of_the_whole(urls, table, epochs):
    def chain(state=None):
        stream = FlowShards(urls, table, **OPTIONS)
        if state is not None:
            stream.load_state_dict(state)
        stream = stream.select(always)
        stream = stream.decode(wds.handle_extension("txt", bytes))
        return stream.map(name_of)

    stream = chain()
    stream.set_epoch(2)
    begun = list(islice(stream, 9))
    after = chain(stream.state_dict())
    assert after.epoch == 2
    after.set_epoch(2)
    assert begun + list(after) == epochs[2]
    assert list(after) == epochs[3]


def test_what_a_stream_is_told_holds_for_those_made_of_it(base, epochs):
    middle = base.compose()
    last = middle.map(name_of)
    base.set_epoch(4)
    assert (base.epoch, middle.epoch, last.epoch) == (4, 4, 4)
    begun = list(islice(last, 5))
    state = last.state_dict()
    base.set_epoch(1)
    assert list(last) == epochs[1]
    base.load_state_dict(state)
    assert begun + list(last) == epochs[4]
    assert (base.epoch, last.epoch) == (5, 5)
    # But not the other way round.
    other = base.map(name_of)
    last.set_epoch(0)
    assert list(other) == epochs[5]
    assert list(last) == epochs[0]


def test_streams_at_different_places_are_told_apart_by_a_clear_error(base):
    one, other = base.map(name_of), base.map(name_of)
    list(islice(one, 3))
    for ask in (base.state_dict, lambda: base.epoch, lambda: base.plan):
        ask()
    list(other)
    list(other)
    for ask in (base.state_dict, lambda: base.epoch, lambda: base.plan):
        with pytest.raises(RuntimeError, match=r"2 streams, .* are at different places"):
            ask()
    assert (one.epoch, other.epoch) == (1, 2)
    base.set_epoch(3)
    assert (base.epoch, base.plan.epoch, one.epoch, other.epoch) == (3, 3, 3, 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keeps_loader", [False, True])
def test_a_stream_made_anew_for_every_epoch_goes_on_with_the_next(
    base, epochs, workers, keeps_loader
):
    for epoch in range(3):
        loader = DataLoader(base.map(name_of), batch_size=4, num_workers=workers)
        assert sorted(names(loader)) == sorted(epochs[epoch])
        if not keeps_loader:
            del loader
        assert base.epoch == epoch + 1
    # Where the last one was left in the middle, the stream it was made of says where.
    loader = iter(DataLoader(base.map(name_of), batch_size=4, num_workers=workers))
    begun = names(next(loader))
    del loader
    state = base.state_dict(position=4)
    base.load_state_dict(state)
    rest = names(DataLoader(base.map(name_of), batch_size=4, num_workers=workers))
    assert sorted(begun + rest) == sorted(epochs[3])


def test_streams_that_are_made_and_never_used_change_nothing(base, epochs):
    for _ in range(20):
        assert len(base.map(name_of).batched(4)) == 6
    assert names(base) == epochs[0]
    assert names(base.map(name_of)) == epochs[1]


@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_streams_that_are_copied_together_still_tell_each_other(base, epochs, through):
    last = base.compose(wds.select(always)).map(name_of)
    base, last = through((base, last))
    base.set_epoch(2)
    assert list(islice(last, 6)) == epochs[2][:6]
    assert base.state_dict() == last.state_dict()


def test_a_stateful_loader_over_one_stream_is_not_moved_by_another(base, epochs):
    def loader_of(stream):
        return StatefulDataLoader(stream, batch_size=4, num_workers=2)

    one, other = loader_of(base.map(name_of)), loader_of(base.map(name_of))
    running = iter(one)
    begun = names(next(running))
    assert sorted(names(other)) == sorted(epochs[0])
    state = one.state_dict()
    again = loader_of(base.map(name_of))
    again.load_state_dict(state)
    assert begun + names(again) == begun + names(running)


def test_many_streams_do_not_hold_files_open(base):
    import os

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        last = base.select(always).map(name_of)
        next(iter(last))
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_long_chains_of_streams_answer_at_once(base, epochs):
    kept = [base]
    for _ in range(40):
        kept.append(kept[-1].select(always))
    last = kept[-1].map(name_of)
    last.set_epoch(2)
    assert (base.epoch, kept[20].epoch) == (2, 2)
    begun = list(islice(last, 7))
    assert base.state_dict() == kept[20].state_dict() == last.state_dict()
    base.load_state_dict(base.state_dict())
    assert begun + list(last) == epochs[2]


def test_a_stream_that_was_told_an_epoch_is_asked_through_one_that_is_gone(base):
    last = base.select(always).map(name_of)
    last.set_epoch(4)
    assert base.epoch == 4
    base.set_epoch(1)
    assert last.epoch == 1
