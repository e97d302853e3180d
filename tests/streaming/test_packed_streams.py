"""Streams of packs, from shards: what comes out, on any ranks and workers, and after any stop."""

import pickle
from itertools import chain, islice, product

import numpy as np
import pytest
from long_run import some
from pack_streams import BATCH, SIZES, counted, make, packs_of, planned, ranks_of
from token_shards import (
    MAX_LENGTH,
    as_tokens,
    lengths_of,
    make_token_table,
    rows_in,
    write_token_shards,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import (
    FlowShards,
    LossTable,
    MismatchError,
)
from flowdata.core import shard_packs

both_places = pytest.mark.parametrize("place", ["local", "single ranges"], scope="module")

pytestmark = [
    pytest.mark.usefixtures("small_clusters"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


@pytest.fixture(scope="module")
def small_clusters():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_packs, "_LEAST_PACKS", 6)
        yield


@pytest.fixture(scope="module")
def local_urls(folder):
    return write_token_shards(folder, SIZES)


@pytest.fixture(scope="module")
def table(urls):
    return make_token_table(urls)


@both_places
@pytest.mark.parametrize(
    ("ranks", "workers"), some(list(product((1, 2, 3), (0, 2))), (1, 2), (3, 0))
)
def test_ranks_and_workers_have_the_packs_of_each_epoch(urls, table, ranks, workers):
    streams = ranks_of(urls, table, ranks)
    number = len(streams[0].packs)
    assert number > 40
    assert {len(stream) for stream in streams} == {-(-number // ranks)}
    for epoch in range(2):
        expected = planned(streams[0].packs.at_epoch(epoch))
        assert expected.total() == number
        by_rank = [packs_of(stream, workers) for stream in streams]
        assert [len(own) for own in by_rank] == [len(stream) for stream in streams]
        found = counted(chain.from_iterable(by_rank))
        assert not expected - found
        assert (found - expected).total() == -number % ranks


def test_every_draw_of_the_plan_is_in_a_pack_once(urls, table):
    stream = make(urls, table)
    for epoch in range(3):
        counts = stream.packs.at_epoch(epoch).plan.counts()
        found = np.bincount(list(chain.from_iterable(packs_of(stream))), minlength=counts.size)
        assert found.tolist() == counts.tolist()


def test_a_loop_goes_on_at_every_pack(urls, table):
    whole = packs_of(make(urls, table))
    running = make(urls, table)
    for step, pack in enumerate(running):
        assert rows_in(pack) == whole[step]
        if step % 19 == 0:
            after = make(urls, table, seed=99, state=running.state_dict())
            assert packs_of(after) == whole[step + 1 :]


@both_places
@pytest.mark.parametrize("steps", some((1, 7), 7))
@pytest.mark.parametrize(
    ("before", "after"),
    some(
        [((2, 0), (1, 2)), ((1, 2), (3, 0)), ((3, 2), (2, 2)), ((2, 2), (1, 0)), ((2, 0), (1, 0))],
        ((1, 2), (3, 0)),
        ((2, 0), (1, 0)),
    ),
)
def test_what_is_left_goes_on_on_other_ranks_and_workers(urls, table, before, after, steps):
    streams = ranks_of(urls, table, before[0], epoch_size=300)
    expected = planned(streams[0].packs)
    done = counted(chain.from_iterable(packs_of(own, before[1], steps) for own in streams))
    position = steps * BATCH * before[0]
    assert done.total() == position
    state = streams[0].state_dict(position=position)
    others = ranks_of(urls, table, after[0], epoch_size=300, state=state)
    rest = [packs_of(own, after[1]) for own in others]
    assert len({len(own) for own in rest}) == 1
    found = done + counted(chain.from_iterable(rest))
    assert not expected - found
    assert (found - expected).total() <= after[0] - 1
    # The next epoch is whole.
    again = counted(chain.from_iterable(packs_of(own, after[1]) for own in others))
    assert not planned(streams[0].packs.at_epoch(1)) - again


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_where_it_was(urls, table, workers):
    def loader():
        return StatefulDataLoader(make(urls, table), BATCH, num_workers=workers, collate_fn=list)

    whole = [[rows_in(pack) for pack in batch] for batch in loader()]
    running = loader()
    before = [[rows_in(pack) for pack in batch] for batch in islice(running, 5)]
    after = loader()
    after.load_state_dict(running.state_dict())
    assert before + [[rows_in(pack) for pack in batch] for batch in after] == whole


def test_batches_of_all_ranks_divide_an_epoch(urls, table):
    streams = ranks_of(urls, table, 3, packed={"batch_size": 3 * BATCH})
    packs = streams[0].packs
    assert len(packs) % (3 * BATCH) == 0
    assert counted(chain.from_iterable(map(packs_of, streams))) == planned(packs)


def test_a_stream_that_is_sent_to_another_process_gives_the_same(urls, table):
    stream = make(urls, table)
    again = pickle.loads(pickle.dumps(stream))
    assert packs_of(again) == packs_of(stream)


def test_packs_may_be_made_into_batches_and_changed(urls, table):
    stream = make(urls, table).map(rows_in).batched(4, collation_fn=list)
    assert list(chain.from_iterable(stream)) == packs_of(make(urls, table))
    assert len(stream) == -(-len(stream.packs) // 4)


def test_a_set_epoch_is_that_of_the_plan(urls, table):
    stream = make(urls, table)
    stream.set_epoch(5)
    assert stream.epoch == stream.packs.epoch == stream.plan.epoch == 5
    assert counted(packs_of(stream)) == planned(make(urls, table).packs.at_epoch(5))
    assert stream.epoch == 6


def test_packs_are_made_from_the_epoch_where_the_stream_is(urls, table):
    plain = FlowShards(urls, table, seed=3).map(as_tokens)
    plain.set_epoch(4)
    assert plain.packed(MAX_LENGTH).epoch == 4
    next(iter(plain))
    state = plain.state_dict()
    other = FlowShards(urls, table, seed=3).map(as_tokens)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"inside an epoch of draws.* first, by .packed"):
        other.packed(MAX_LENGTH)


def test_packs_of_gzip_shards_are_read_once(tmp_path, table):
    urls = write_token_shards(tmp_path, SIZES, mode="w:gz", suffix="tar.gz")
    zipped = make_token_table(urls)
    stream, plain = make(urls, zipped), make(urls, zipped)
    assert counted(packs_of(stream)) == planned(plain.packs)
    # One request to open each shard: none is read again from its start.
    assert stream.stats().requests == len(SIZES)


def test_lengths_may_be_given(urls, table):
    bare = LossTable.from_losses(table.losses, index=table.index)
    with pytest.raises(ValueError, match="no lengths of its rows"):
        make(urls, bare)
    with pytest.raises(TypeError, match="an index of shards knows no lengths"):
        FlowShards(urls, table.index, table.weights()).packed(MAX_LENGTH)
    given = make(urls, table.index, lengths=lengths_of(sum(SIZES)), weights=table.weights())
    assert packs_of(given) == packs_of(make(urls, table))


def test_the_lengths_of_a_file_are_known(urls, table, tmp_path):
    table.save(tmp_path / "losses.parquet")
    made = make(urls, tmp_path / "losses.parquet", weights=table.weights())
    assert packs_of(made) == packs_of(make(urls, table))


def test_samples_of_another_length_are_refused_by_name(urls, table):
    wrong = lengths_of(sum(SIZES))
    wrong[100] += 1
    stream = make(urls, table, lengths=wrong, epoch_size=3000)
    with pytest.raises(MismatchError, match=r"'k0007' of .*t-2.tar has .* tokens, but a length of"):
        packs_of(stream)


def test_rows_that_are_too_long_are_cut_if_asked(urls, table):
    def longer(sample):
        ids = as_tokens(sample)["input_ids"]
        return {"input_ids": ids * 30 if ids[0] == 7 else ids}

    lengths = lengths_of(sum(SIZES))
    lengths[7] *= 30
    stream = FlowShards(urls, table, seed=3).map(longer)
    with pytest.raises(ValueError, match="longer"):
        stream.packed(MAX_LENGTH, lengths)
    stream = stream.packed(MAX_LENGTH, lengths, too_long="truncate")
    ids = [pack["input_ids"].numpy() for pack in stream]
    assert max(map(len, ids)) <= MAX_LENGTH
    whole = [found for found in ids if (found == 7).any()]
    assert [(found == 7).sum() for found in whole] == [MAX_LENGTH] * len(whole)
    assert whole
