"""Stopping a stream at any step and going on, with any ranks and workers."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import webdataset as wds
from long_run import some
from shard_files import make_table, name_of, planned, write_shards
from shard_places import PLACES
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import FlowDataWarning, FlowShards, MismatchError

DRAWS, SEED, BATCH = 30, 3, 4
OPTIONS = {"epoch_size": DRAWS, "seed": SEED}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def local_urls(folder):
    return write_shards(folder, (20, 3, 30, 1, 9))


def make(urls, table, **options):
    options = OPTIONS | {"window": 7, "shards_open": 2, "batch_size": BATCH} | options
    return FlowShards(urls, table, **options).map(name_of)


def through_json(state):
    return json.loads(json.dumps(state))


def ranks_of(urls, table, ranks, state=None, **options):
    streams = [make(urls, table, num_replicas=ranks, rank=rank, **options) for rank in range(ranks)]
    if state is not None:
        for stream in streams:
            stream.load_state_dict(through_json(state))
    return streams


def batches_of(stream, workers):
    return [list(batch) for batch in DataLoader(stream, batch_size=BATCH, num_workers=workers)]


def first_batches(streams, workers, steps):
    """The samples of the first steps on all ranks, as a training loop would stop."""
    drawn = []
    for stream in streams:
        loader = iter(DataLoader(stream, batch_size=BATCH, num_workers=workers))
        drawn += [name for _ in range(steps) for name in next(loader)]
        del loader
    return drawn


def test_a_loop_without_workers_goes_on_at_every_step(urls, table):
    whole = make(urls, table)
    epochs = [list(whole) for _ in range(3)]
    running = make(urls, table)
    for epoch in range(2):
        done = []
        state = running.state_dict()
        for name in [*running, None]:
            after = make(urls, table, seed=99)
            after.load_state_dict(through_json(state))
            if done and len(done) == DRAWS:
                break
            assert done + list(after) == epochs[epoch]
            assert list(after) == epochs[epoch + 1]
            done.append(name)
            state = position_state(urls, table, epoch, len(done))


def position_state(urls, table, epoch, draws):
    """The state of a loop that stopped after so many draws of an epoch."""
    stream = make(urls, table)
    stream.set_epoch(epoch)
    drawing = iter(stream)
    for _ in range(draws):
        next(drawing)
    state = stream.state_dict()
    assert state == stream.state_dict(position=draws) or draws == DRAWS
    return state


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_a_plain_loader_goes_on_at_every_batch_in_the_same_order(urls, table, workers):
    epochs = [batches_of(stream, workers) for stream in [make(urls, table)] * 2]
    for steps in range(len(epochs[0])):
        [stream] = ranks_of(urls, table, 1)
        first_batches([stream], workers, steps)
        if steps == 0:
            stream.set_epoch(0)
        state = stream.state_dict(position=steps * BATCH)
        [after] = ranks_of(urls, table, 1, state)
        assert after.epoch == 0
        after.set_epoch(0)
        assert epochs[0][:steps] + batches_of(after, workers) == epochs[0]
        if steps in (1, len(epochs[0]) - 1):
            assert batches_of(after, workers) == epochs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"), [((1, 0), (2, 2)), ((2, 2), (3, 0)), ((3, 1), (1, 3)), ((2, 0), (2, 1))]
)
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("place", some(PLACES, "local"), scope="module")
def test_what_is_left_is_drawn_on_other_ranks_and_workers(urls, table, before, after, drop_last):
    """30 draws: at every step all of them are divided anew, none twice and none missing."""
    expected = planned(table, **OPTIONS)
    steps = -(-DRAWS // before[0] // BATCH)
    for step in range(1, steps):
        streams = ranks_of(urls, table, before[0], drop_last=drop_last)
        done = Counter(first_batches(streams, before[1], step))
        state = streams[0].state_dict(position=step * BATCH * before[0])
        others = ranks_of(urls, table, after[0], state, drop_last=drop_last)
        lengths = set()
        for stream in others:
            names = [name for batch in batches_of(stream, after[1]) for name in batch]
            lengths.add(len(names))
            done.update(names)
        assert len(lengths) == 1
        uneven = (DRAWS - step * BATCH * before[0]) % after[0]
        missing, repeated = (expected - done).total(), (done - expected).total()
        if drop_last:
            assert (missing, repeated) == (uneven, 0)
        else:
            assert (missing, repeated) == (0, -uneven % after[0])
        assert Counter(others[0]).total() == DRAWS // after[0]


@pytest.mark.parametrize("place", PLACES, scope="module")
def test_a_run_can_be_moved_again_and_again(urls, table):
    done, state, position = Counter(), None, 0
    longer = {"epoch_size": 60}
    for ranks, workers, steps in [(1, 0, 2), (2, 2, 3), (3, 0, 1), (2, 1, 1), (1, 2, None)]:
        streams = ranks_of(urls, table, ranks, state, **longer)
        if steps is None:
            done.update(name for batch in batches_of(streams[0], workers) for name in batch)
            continue
        done.update(first_batches(streams, workers, steps))
        position += ranks * steps * BATCH
        state = streams[0].state_dict(position=position)
        assert [stretch["ranks"] for stretch in state["stretches"]][-1] == ranks
    assert done == planned(table, **OPTIONS | longer)


@pytest.mark.parametrize("batched", [False, True])
def test_batches_made_in_the_stream_are_counted_by_their_draws(urls, table, batched):
    def stream_of(state=None):
        stream = make(urls, table, batch_size=None).batched(7, collation_fn=list)
        if state is not None:
            stream.load_state_dict(through_json(state))
        return stream

    whole = list(stream_of())
    assert [len(batch) for batch in whole] == [7] * 4 + [2]
    for steps in range(len(whole)):
        stream = stream_of()
        drawing = iter(stream)
        for _ in range(steps):
            next(drawing)
        state = stream.state_dict(position=steps * 7) if batched and steps else stream.state_dict()
        assert whole[:steps] + list(stream_of(state)) == whole


def states_of(loader, epochs):
    """After each batch of each epoch: batches of the epoch so far, and the state."""
    for epoch in range(epochs):
        done = []
        for batch in loader:
            done.append(list(batch))
            yield epoch, list(done), through_json(loader.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("place", some(PLACES, "local"), scope="module")
def test_a_stateful_loader_goes_on_at_every_batch(urls, table, workers):
    def loader_of(seed=SEED):
        stream = make(urls, table, seed=seed)
        return StatefulDataLoader(stream, batch_size=BATCH, num_workers=workers)

    whole = loader_of()
    epochs = [[list(batch) for batch in whole] for _ in range(3)]
    for epoch, done, state in states_of(loader_of(), 2):
        if epoch == 1 and len(done) in (2, 3, 4):
            continue
        after = loader_of(seed=99)
        after.load_state_dict(state)
        assert done + [list(batch) for batch in after] == epochs[epoch]
        if epoch == 1 or len(done) == 1:
            assert [list(batch) for batch in after] == epochs[epoch + 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_that_saved_after_an_epoch_begins_the_next(urls, table, workers):
    def loader_of():
        return StatefulDataLoader(make(urls, table), batch_size=BATCH, num_workers=workers)

    whole = loader_of()
    epochs = [[list(batch) for batch in whole] for _ in range(2)]
    first = loader_of()
    list(first)
    after = loader_of()
    after.load_state_dict(through_json(first.state_dict()))
    assert [list(batch) for batch in after] == epochs[1]


def test_a_position_at_the_end_is_the_start_of_the_next_epoch(urls, table):
    stream = make(urls, table)
    first = list(stream)
    second = list(stream)
    stream.set_epoch(0)
    assert list(stream) == first
    for end in (DRAWS, DRAWS + 3):
        after = make(urls, table)
        stream.set_epoch(0)
        next(iter(stream))
        after.load_state_dict(stream.state_dict(position=end))
        assert after.epoch == 1
        assert list(after) == second


def test_naming_another_epoch_gives_up_the_loaded_position(urls, table):
    stream = make(urls, table)
    epochs = [list(stream) for _ in range(3)]
    after = make(urls, table)
    after.load_state_dict(position_state(urls, table, 1, 8))
    after.set_epoch(2)
    assert list(after) == epochs[2]


def test_states_of_other_streams_are_refused(urls, table, tmp_path):
    state = make(urls, table).state_dict()
    for options in ({"window": 8}, {"shards_open": 3}, {"epoch_size": DRAWS + 1}, {"alpha": 0.5}):
        with pytest.raises(MismatchError, match=f"{next(iter(options))}="):
            make(urls, table, **options).load_state_dict(state)
    weights = np.ones(len(table))
    with pytest.raises(MismatchError, match="weights="):
        make(urls, table.index, weights=weights).load_state_dict(state)
    other = write_shards(tmp_path, (20, 3, 31, 1, 8))
    with pytest.raises(MismatchError, match="shards="):
        make(other, make_table(other)).load_state_dict(state)
    for wrong in (None, {}, {**state, "stretches": [{"ranks": 1}]}, {**state, "stretches": [3]}):
        with pytest.raises(MismatchError, match="not a FlowShards state"):
            make(urls, table).load_state_dict(wrong)


def test_a_position_that_no_loop_can_be_at_is_refused(urls, table):
    stream = make(urls, table, num_replicas=2, rank=0)
    first_batches([stream], 2, 1)
    with pytest.raises(ValueError, match="not between two batches"):
        stream.state_dict(position=2 * BATCH + 1)
    with pytest.raises(ValueError, match="not between two batches"):
        stream.state_dict(position=2 * BATCH + 2)
    with pytest.raises(ValueError, match="give position="):
        stream.state_dict()
    unknown = make(urls, table, batch_size=None)
    first_batches([unknown], 2, 1)
    with pytest.raises(ValueError, match="batch_size of the DataLoader"):
        unknown.state_dict(position=8)


def test_the_state_of_a_worker_needs_the_same_workers(urls, table):
    loader = StatefulDataLoader(make(urls, table), batch_size=BATCH, num_workers=2)
    next(iter(loader))
    snapshot = loader.state_dict()["_snapshot"]["_worker_snapshots"]["worker_0"]
    stream = make(urls, table)
    stream.load_state_dict(snapshot["dataset_state"])
    with pytest.raises(MismatchError, match="of one DataLoader worker"):
        list(stream)


@pytest.mark.parametrize("wrong", [{"epoch": 1 << 32}, {"seed": 1 << 63}])
def test_a_state_that_shared_memory_cannot_hold_changes_nothing(urls, table, wrong):
    stream = make(urls, table)
    before = stream.state_dict()
    with pytest.raises(ValueError, match="must be below 2"):
        stream.load_state_dict(before | {"seed": 5} | wrong)
    assert stream.state_dict() == before


# Draws that are dropped


ignoring_drops = pytest.mark.filterwarnings(
    "ignore:.*draws were dropped in epoch:flowdata.FlowDataWarning"
)


def kept(name):
    """Two of three names."""
    if int(name.split("/")[1]) % 3 == 0:
        raise ValueError(name)
    return name


def dropping(urls, table, state=None, **options):
    stream = make(urls, table, **options).map(kept, handler=wds.ignore_and_continue)
    if state is not None:
        stream.load_state_dict(through_json(state))
    return stream


@ignoring_drops
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_at_every_batch_after_drops(urls, table, workers):
    def loader_of():
        return StatefulDataLoader(dropping(urls, table), batch_size=BATCH, num_workers=workers)

    whole = loader_of()
    epochs = [[list(batch) for batch in whole] for _ in range(2)]
    assert sum(map(len, epochs[0])) == DRAWS
    for _, done, state in states_of(loader_of(), 1):
        after = loader_of()
        after.load_state_dict(state)
        assert done + [list(batch) for batch in after] == epochs[0]
    assert [list(batch) for batch in after] == epochs[1]


@ignoring_drops
def test_ranks_go_on_at_every_draw_after_drops(urls, table):
    whole = [list(dropping(urls, table, num_replicas=2, rank=rank)) for rank in range(2)]
    assert [len(names) for names in whole] == [DRAWS // 2] * 2
    for done in range(1, DRAWS // 2):
        for rank in range(2):
            place = {"num_replicas": 2, "rank": rank}
            drawing = dropping(urls, table, **place)
            first = list(islice(drawing, done))
            for position in (None, 2 * done):
                state = drawing.state_dict(position=position)
                assert first + list(dropping(urls, table, state, **place)) == whole[rank]


@ignoring_drops
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_other_ranks_go_on_with_equal_lengths_after_drops_and_are_warned(urls, table, ranks):
    drawing = dropping(urls, table, num_replicas=2, rank=0)
    given = list(islice(drawing, 8))
    state = drawing.state_dict()
    dropped = state["drawn"] - len(given)
    assert dropped > 0
    place = {"num_replicas": ranks, "rank": ranks - 1}
    with pytest.warns(FlowDataWarning, match=f"{dropped} draws had been dropped .* may repeat"):
        rest = list(dropping(urls, table, state, **place))
    assert len(rest) == -(-(DRAWS - 16) // ranks)


@ignoring_drops
def test_a_position_after_drops_in_workers_warns_and_keeps_the_length(urls, table):
    stream = dropping(urls, table)
    first_batches([stream], 2, 4)
    with pytest.warns(FlowDataWarning, match="draws were dropped in epoch 0, .* may repeat"):
        state = stream.state_dict(position=4 * BATCH)
    after = dropping(urls, table, state)
    assert sum(map(len, batches_of(after, 2))) == DRAWS - 4 * BATCH


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("set_before", [0, 1, 7])
def test_a_state_that_a_stateful_loader_loads_outweighs_an_epoch_set_before(
    urls, table, workers, set_before
):
    def loader_of(stream):
        return StatefulDataLoader(stream, batch_size=BATCH, num_workers=workers)

    first = loader_of(make(urls, table))
    running = iter(first)
    list(islice(running, 3))
    state = through_json(first.state_dict())
    expected = [list(running), list(first), list(first)]
    stream = make(urls, table)
    # Another loader, with other workers, has gone through epochs before.
    for _ in range(2):
        list(DataLoader(stream, BATCH, num_workers=1))
    stream.set_epoch(set_before)
    after = loader_of(stream)
    after.load_state_dict(state)
    assert [list(after) for _ in range(3)] == expected
    assert stream.epoch == 3
