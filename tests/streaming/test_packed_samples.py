"""Samples of streams of packs: dropped, weighted, refused; and states that are refused."""

from itertools import chain

import numpy as np
import pytest
import webdataset as wds
from pack_streams import BATCH, SIZES, make, packs_of
from token_shards import (
    MAX_LENGTH,
    as_tokens,
    lengths_of,
    make_token_table,
    rows_in,
    write_token_shards,
)
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from flowdata import (
    FlowDataWarning,
    FlowShards,
    MismatchError,
    PackCollator,
    Strata,
)
from flowdata.core import shard_packs
from flowdata.reweight import reweight

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
