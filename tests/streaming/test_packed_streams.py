"""Streams of packs, from shards: what comes out, on any ranks and workers, and after any stop."""

import json
import pickle
from collections import Counter
from itertools import chain, islice, product

import numpy as np
import pytest
import webdataset as wds
from long_run import some
from token_shards import (
    MAX_LENGTH,
    as_tokens,
    lengths_of,
    make_token_table,
    rows_in,
    write_token_shards,
)
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import DataCollatorWithFlattening

from flowdata import (
    FlowDataWarning,
    FlowShards,
    LossTable,
    MismatchError,
    PackCollator,
    Strata,
)
from flowdata.core import shard_packs
from flowdata.reweight import reweight

SIZES = (90, 3, 160, 1, 77)
BATCH = 2
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


def make(urls, table, *, state=None, lengths=None, packed=None, **options):
    options = {"seed": 3, "shards_open": 2, "batch_size": BATCH} | options
    stream = FlowShards(urls, table, **options).map(as_tokens)
    stream = stream.packed(MAX_LENGTH, lengths, **packed or {})
    if state is not None:
        stream.load_state_dict(json.loads(json.dumps(state)))
    return stream


def ranks_of(urls, table, ranks, **options):
    return [make(urls, table, num_replicas=ranks, rank=rank, **options) for rank in range(ranks)]


def packs_of(stream, workers=0, steps=None):
    loader = DataLoader(stream, BATCH, num_workers=workers, collate_fn=list)
    return [rows_in(pack) for batch in islice(loader, steps) for pack in batch]


def planned(packs):
    """The packs of an epoch, each with its rows in any order."""
    return Counter(tuple(sorted(pack.tolist())) for pack in packs.of(np.arange(len(packs))))


def counted(packs):
    return Counter(tuple(sorted(pack)) for pack in packs)


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


def dropping(names):
    def kept(sample):
        if sample["__key__"] in names:
            raise ValueError(sample["__key__"])
        return sample

    return kept


@pytest.mark.filterwarnings("ignore:.*were dropped:flowdata.FlowDataWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_packs_whose_samples_are_dropped_are_shorter_or_replaced(urls, table, workers):
    names = {f"k{number:04d}" for number in range(0, 160, 3)}
    stream = FlowShards(urls, table, seed=3, batch_size=BATCH)
    stream = stream.map(dropping(names), handler=wds.ignore_and_continue).map(as_tokens)
    stream = stream.packed(MAX_LENGTH)
    number, draws = len(stream.packs), len(stream.plan)
    found = packs_of(stream, workers)
    assert len(found) == number == len(stream)
    keys = [f"k{place:04d}" for size in SIZES for place in range(size)]
    rows = list(chain.from_iterable(found))
    assert not names & {keys[row] for row in rows}
    assert draws / 2 < len(rows) < draws


def test_what_was_dropped_of_packs_is_warned_of_and_counted(urls, table):
    stream = FlowShards(urls, table, seed=3)
    # Short ones, which do not have a pack for themselves.
    short = {f"k{row:04d}" for row in np.flatnonzero(lengths_of(90) == 3)}
    stream = stream.map(dropping(short), handler=wds.ignore_and_continue).map(as_tokens)
    stream = stream.packed(MAX_LENGTH)
    with pytest.warns(FlowDataWarning, match=r"draws were dropped.* their packs are shorter"):
        found = [rows_in(pack) for pack in stream]
    stats = stream.stats()
    draws = len(stream.plan)
    assert stats.dropped == draws - sum(map(len, found)) > 0
    assert stats.samples == draws - stats.dropped


def test_a_pack_of_which_nothing_is_left_is_replaced(urls, table):
    """Where packs have one sample each, they are dropped as samples are elsewhere."""
    lengths = np.full(sum(SIZES), 4)
    stream = FlowShards(urls, table, seed=3, epoch_size="distinct")
    stream = stream.map(dropping({"k0005", "k0006"}), handler=wds.ignore_and_continue)
    stream = stream.map(lambda sample: {"input_ids": [1, 2, 3, 4]}).packed(4, lengths)
    stream.set_epoch(1)
    with pytest.warns(FlowDataWarning, match="packs were dropped in epoch 1.* replaced by others"):
        found = list(stream)
    assert len(found) == len(stream) == len(stream.plan)


def test_stages_that_make_several_samples_of_one_are_refused(urls, table):
    def twice(samples):
        for sample in samples:
            yield from (sample, sample)

    stream = FlowShards(urls, table).map(as_tokens).compose(twice).packed(MAX_LENGTH)
    with pytest.raises(ValueError, match="each must make one of one, or none"):
        next(iter(stream))


def test_samples_without_tokens_are_refused(urls, table):
    with pytest.raises(TypeError, match=r"row 'k.*' of .*t-.*has no input_ids") as error:
        next(iter(FlowShards(urls, table).packed(MAX_LENGTH)))
    assert "the stages before .packed() are to make them" in str(error.value)


def with_weight(sample):
    return as_tokens(sample) | {"__weight__": sample["__weight__"]}


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_weights_of_samples_are_those_of_their_labels(urls, table, alpha):
    plain = FlowShards(urls, table, seed=3, mode="reweight", alpha=alpha)
    weights = {as_tokens(sample)["input_ids"][0]: sample["__weight__"] for sample in plain}
    packs = FlowShards(urls, table, seed=3, mode="reweight", alpha=alpha, batch_size=BATCH)
    stream, collate = reweight(
        packs.map(with_weight).packed(MAX_LENGTH), entry="weights", collate_fn=PackCollator(0)
    )
    for batch in DataLoader(stream, BATCH, collate_fn=collate):
        learned = batch["labels"] >= 0
        expected = [weights[row] for row in batch["labels"][learned].tolist() if row in weights]
        known = [row in weights for row in batch["labels"][learned].tolist()]
        found = batch["weights"][learned].numpy()[known]
        assert found == pytest.approx(expected, rel=1e-6)
        assert expected


def test_a_weight_that_a_stage_has_lost_is_missed(urls, table):
    packs = FlowShards(urls, table, mode="reweight").map(as_tokens).packed(MAX_LENGTH)
    with pytest.raises(TypeError, match=r"row 'k.* has no __weight__ after the stages before"):
        next(iter(packs))


def test_packs_are_made_once_of_samples_in_their_order(urls, table):
    plain = FlowShards(urls, table)
    with pytest.raises(TypeError, match="once, and first"):
        plain.packed(MAX_LENGTH).packed(MAX_LENGTH)
    with pytest.raises(TypeError, match="once, and first"):
        plain.batched(2).packed(MAX_LENGTH)
    with pytest.raises(ValueError, match="need scheme="):
        FlowShards(urls, table, scheme="multinomial").packed(MAX_LENGTH)
    arranged = FlowShards(urls, table, arrange=Strata(np.ones(sum(SIZES), int), batch_size=2))
    with pytest.raises(ValueError, match="by length alone"):
        arranged.packed(MAX_LENGTH)
    with pytest.raises(ValueError, match="drop_last=True leaves no pack: the epoch has 1 for 2"):
        FlowShards(urls, table, epoch_size=2, num_replicas=2, rank=0, drop_last=True).packed(
            MAX_LENGTH * 2
        )


@pytest.mark.guard
@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_that_make_no_batches_of_packs_are_refused(urls, table, workers):
    with pytest.raises(ValueError, match=r"packs are of different lengths.*PackCollator"):
        next(iter(DataLoader(make(urls, table), BATCH, num_workers=workers)))
    collate = DataCollatorWithFlattening(return_tensors="pt")
    loader = DataLoader(make(urls, table), BATCH, num_workers=workers, collate_fn=collate)
    with pytest.raises(ValueError, match="takes each pack for one sample"):
        next(iter(loader))


def test_packs_are_made_into_batches_by_the_collator(urls, table):
    loader = DataLoader(make(urls, table), BATCH, collate_fn=PackCollator(pad_token_id=0))
    packs = packs_of(make(urls, table))
    for batch, number in zip(loader, range(0, len(packs), BATCH), strict=True):
        starts = (batch["position_ids"] == 0) & (batch["labels"] == -100)
        rows = [row for pack in packs[number : number + BATCH] for row in pack]
        # What is filled begins a sample at each place.
        assert batch["input_ids"][starts].tolist()[: len(packs[number])] == list(packs[number])
        assert starts.sum() >= len(rows)


def test_states_of_draws_and_of_other_packs_are_refused(urls, table):
    plain = FlowShards(urls, table, seed=3, shards_open=2)
    next(iter(plain))
    stream = make(urls, table)
    with pytest.raises(MismatchError, match="it has packs='nothing'"):
        stream.load_state_dict(plain.state_dict())
    next(iter(stream))
    with pytest.raises(MismatchError, match="here it is 'nothing'"):
        plain.load_state_dict(stream.state_dict())
    others = [
        make(urls, table, packed={"batch_size": 5}),
        make(urls, table, lengths=lengths_of(sum(SIZES)).clip(1, 30)),
        make(urls, table, window=5000),
    ]
    for other in others:
        with pytest.raises(MismatchError, match="does not belong here"):
            other.load_state_dict(stream.state_dict())


def test_a_position_in_packs_is_named_so(urls, table):
    stream = make(urls, table)
    list(DataLoader(stream, BATCH, num_workers=2, collate_fn=list))
    with pytest.raises(ValueError, match=r"the packs trained on in this epoch over all ranks"):
        stream.state_dict()
    with pytest.raises(ValueError, match=r"is not between two batches: it counts packs"):
        stream.state_dict(position=3)
    with pytest.raises(ValueError, match=r"is beyond epoch 0, which has [0-9]+ packs"):
        stream.state_dict(position=len(stream.packs) + 2 * BATCH)
