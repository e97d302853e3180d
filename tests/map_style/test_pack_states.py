"""Packs that are stopped anywhere go on with exactly those that were left."""

import json
from itertools import islice

import numpy as np
import pytest
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from packed_samples import as_samples, samples_of, token_rows
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from flowdata import (
    EpochPlan,
    FlowPacks,
    FlowPackSampler,
    MismatchError,
    PackCollator,
    PackPlan,
    Strata,
    pack_rows,
)

LENGTHS = np.random.default_rng(0).integers(1, 30, 60)
ROWS = token_rows(LENGTHS)
WEIGHTS = np.random.default_rng(1).random(60)
MAX_LENGTH, SEED, OTHER_SEED = 64, 3, 99
RANKS = [1, 2, 3, 8]
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}
LOADERS = [
    pytest.param({}, id="one process"),
    pytest.param(WORKERS, id="workers"),
    pytest.param(
        WORKERS | {"persistent_workers": True, "snapshot_every_n_steps": 3},
        id="persistent workers",
        marks=pytest.mark.slow,
    ),
]
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


def sampler(seed=SEED, **options):
    return FlowPackSampler(WEIGHTS, LENGTHS, MAX_LENGTH, batch_size=4, seed=seed, **options)


def packs(seed=SEED, **options):
    return FlowPacks(ROWS, WEIGHTS, LENGTHS, MAX_LENGTH, batch_size=4, seed=seed, **options)


def planned(epoch):
    return [pack.tolist() for pack in sampler().plan.at_epoch(epoch)]


def samples(rows_of_packs):
    return [as_samples([ROWS[row] for row in rows]) for rows in rows_of_packs]


def stored(state):
    return json.loads(json.dumps(state))


COUNT = len(planned(0))


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_take_the_packs_of_an_epoch_in_turn(ranks):
    shares = [sampler(num_replicas=ranks, rank=rank) for rank in range(ranks)]
    for epoch in range(3):
        lists = [list(share) for share in shares]
        assert {len(each) for each in lists} == {len(shares[0])} == {-(-COUNT // ranks)}
        taken = [pack for step in zip(*lists, strict=True) for pack in step]
        every = planned(epoch)
        assert taken == every + every[: len(taken) - COUNT]
    [share.set_epoch(9) for share in shares]
    assert next(iter(shares[0])) == planned(9)[0]


@examples(25)
@given(
    before=st.sampled_from(RANKS), after=st.sampled_from(RANKS), epoch=st.integers(0, 3),
    steps=st.integers(0, COUNT), drop_last=st.booleans(),
)  # fmt: skip
def test_any_number_of_ranks_goes_on_with_the_packs_that_are_left(
    before, after, epoch, steps, drop_last
):
    shares = [sampler(num_replicas=before, rank=rank) for rank in range(before)]
    steps = min(steps, COUNT // before)
    for share in shares:
        share.set_epoch(epoch)
        running = iter(share)
        done = list(islice(running, steps))
        assert share.state_dict(position=steps * before) == share.state_dict()
    left = planned(epoch)[steps * before :]
    if len(left) == 0 or (drop_last and len(left) < after):
        return
    resumed = []
    for rank in range(after):
        share = sampler(OTHER_SEED, num_replicas=after, rank=rank, drop_last=drop_last)
        share.load_state_dict(stored(shares[0].state_dict()))
        resumed.append(list(share))
        assert next(iter(share)) == planned(epoch + 1)[rank]
    taken = [pack for step in zip(*resumed, strict=True) for pack in step]
    again = (left + planned(epoch))[: len(taken)]
    assert taken == again
    assert len(done) == steps
    assert len(taken) >= len(left) or drop_last


@pytest.mark.parametrize("options", LOADERS)
def test_a_stateful_loader_of_packs_of_rows_resumes_at_any_pack(options):
    def loader(seed):
        return StatefulDataLoader(
            ROWS, batch_sampler=sampler(seed), collate_fn=pack_rows, **options
        )

    running, states, seen = loader(SEED), [], []
    for batch in running:
        seen.append(samples_of(batch))
        states.append(stored(running.state_dict()))
    assert seen == samples(planned(0))
    for done in range(1, COUNT, 3 if "num_workers" in options else 1):
        again = loader(OTHER_SEED)
        again.load_state_dict(states[done - 1])
        assert list(map(samples_of, again)) == samples(planned(0))[done:]
        assert samples_of(next(iter(again))) == samples(planned(1))[0]
    # What is left after the last batch is nothing, and after the end the next epoch.
    for state, left in ((states[-1], [[], samples(planned(1))]), (running.state_dict(), [])):
        again = loader(OTHER_SEED)
        again.load_state_dict(stored(state))
        lives = left or [samples(planned(1)), samples(planned(2))]
        assert [list(map(samples_of, again)) for _ in lives] == lives


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["one process", "workers"])
def test_a_plain_loader_resumes_where_the_loop_says_that_it_was(options):
    running = sampler()
    loader = DataLoader(ROWS, batch_sampler=running, collate_fn=pack_rows, **options)
    assert len(loader) == COUNT
    batches = iter(loader)
    seen = [samples_of(next(batches)) for _ in range(5)]
    resumed = sampler(OTHER_SEED)
    resumed.load_state_dict(stored(running.state_dict(position=5)))
    rest = DataLoader(ROWS, batch_sampler=resumed, collate_fn=pack_rows, **options)
    assert seen + list(map(samples_of, rest)) == samples(planned(0))


@pytest.mark.parametrize("options", LOADERS)
def test_a_stateful_loader_of_packs_resumes_at_any_pack(options):
    def loader(seed):
        return StatefulDataLoader(
            packs(seed), 1, shuffle=False, collate_fn=PackCollator(), **options
        )

    running, states, seen = loader(SEED), [], []
    running.dataset.set_epoch(2)
    for batch in running:
        seen.append(samples_of(batch))
        states.append(stored(running.state_dict()) | {"data": running.dataset.state_dict()})
    assert seen == samples(planned(2))
    for done in range(1, COUNT, 3 if "num_workers" in options else 1):
        again = loader(OTHER_SEED)
        state = dict(states[done - 1])
        again.dataset.load_state_dict(state.pop("data"))
        again.load_state_dict(state)
        assert list(map(samples_of, again)) == samples(planned(2))[done:]


def test_a_state_of_other_packs_is_refused():
    saved, items = sampler().state_dict(), packs()
    items.set_epoch(1)
    others = {
        "lengths": {"lengths": LENGTHS + 1},
        "max_length": {"max_length": 63},
        "batch_size": {"batch_size": 2},
        "too_long": {"too_long": "truncate"},
    }
    given = {"lengths": LENGTHS, "max_length": MAX_LENGTH, "batch_size": 4}
    for name, options in others.items():
        other = FlowPackSampler(WEIGHTS, **given | options)
        with pytest.raises(MismatchError, match=f"it has {name}="):
            other.load_state_dict(saved)
        other = FlowPacks(ROWS, WEIGHTS, **given | options)
        with pytest.raises(MismatchError, match="the saved FlowPacks state does not belong"):
            other.load_state_dict(items.state_dict())
    with pytest.raises(MismatchError, match="not a FlowPackSampler state"):
        sampler().load_state_dict({})
    with pytest.raises(RuntimeError, match="or give the DataLoader a FlowPackSampler instead"):
        packs().load_state_dict(packs().state_dict())


def test_a_loaded_state_has_its_epoch_and_seed():
    before, after = packs(SEED), packs(OTHER_SEED)
    before.set_epoch(5)
    after.load_state_dict(stored(before.state_dict()))
    assert (after.epoch, after.plan.seed) == (5, SEED)
    assert [samples_of(after[place]) for place in range(COUNT)] == samples(planned(5))


OPTIONS = {
    "epoch_size": 2.0,
    "seed": 9,
    "scheme": "multinomial",
    "alpha": 0.5,
    "arrange": Strata(np.arange(60) % 3, batch_size=4),
    "strata": Strata(np.arange(60) % 3, batch_size=4),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_the_plan(name):
    option = {name: OPTIONS[name]}
    expected = PackPlan(EpochPlan(WEIGHTS, **option), LENGTHS, MAX_LENGTH)
    drawn = FlowPackSampler(WEIGHTS, LENGTHS, MAX_LENGTH, **option)
    served = FlowPacks(ROWS, WEIGHTS, LENGTHS, MAX_LENGTH, **option)
    rows = [pack.tolist() for pack in expected]
    assert list(drawn) == [pack.tolist() for pack in served.plan] == rows
    assert served.fill == expected.fill == drawn.fill
    assert rows != list(FlowPackSampler(WEIGHTS, LENGTHS, MAX_LENGTH))


def test_options_of_the_sampler_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rank must be in \[0, num_replicas\)"):
        sampler(num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="drop_last=True leaves no pack"):
        sampler(num_replicas=COUNT + 1, drop_last=True)
    with pytest.raises(MismatchError, match="the data set has 59 rows"):
        sampler(dataset=ROWS[:-1])
    with pytest.raises(TypeError, match="packs need lengths"):
        FlowPackSampler(WEIGHTS, max_length=8)
