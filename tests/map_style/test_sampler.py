"""FlowSampler and DistributedFlowSampler in a real DataLoader."""

import copy
import pickle
import random
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

from flowdata import DistributedFlowSampler, EpochPlan, FlowSampler, FlowWeights, LossTable
from flowdata.core.permutation import CHUNK
from flowdata.errors import InvalidLossError

ROWS, DRAWS, SEED = 23, 30, 3
WEIGHTS = np.random.default_rng(7).random(ROWS)
WORKERS = [
    pytest.param({"num_workers": 0}, id="no workers"),
    pytest.param({"num_workers": 2}, id="2 workers"),
    pytest.param({"num_workers": 2, "persistent_workers": True}, id="2 persistent workers"),
]


def planned(epoch, draws=DRAWS, **options):
    return EpochPlan(WEIGHTS, seed=SEED, epoch=epoch, epoch_size=draws, **options)[:].tolist()


def make(draws=DRAWS, kind=FlowSampler, **options):
    return kind(WEIGHTS, **({"seed": SEED, "epoch_size": draws} | options))


def one_epoch(loader):
    return torch.cat(list(loader)).tolist()


def rank_draws(replicas, draws=DRAWS, epoch=0, **options):
    samplers = [
        make(draws, num_replicas=replicas, rank=rank, **options) for rank in range(replicas)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    return [list(sampler) for sampler in samplers]


def interleaved(by_rank):
    return list(chain.from_iterable(zip(*by_rank, strict=True)))


@pytest.mark.parametrize("workers", WORKERS)
def test_each_pass_of_a_loader_is_the_next_epoch_of_the_plan_in_order(workers):
    loader = DataLoader(range(ROWS), batch_size=4, sampler=make(), **workers)
    assert [one_epoch(loader) for _ in range(3)] == [planned(epoch) for epoch in range(3)]


@pytest.mark.parametrize("workers", WORKERS)
def test_set_epoch_before_a_pass_names_the_epoch_a_loader_draws(workers):
    sampler = make()
    loader = DataLoader(range(ROWS), batch_size=7, sampler=sampler, **workers)
    for epoch in (4, 0, 0, 9):
        sampler.set_epoch(epoch)
        assert sampler.epoch == epoch
        assert one_epoch(loader) == planned(epoch)
    assert one_epoch(loader) == planned(10)


@pytest.mark.parametrize("workers", WORKERS)
def test_breaking_out_of_a_loader_makes_the_next_pass_the_next_epoch_from_its_start(workers):
    loader = DataLoader(range(ROWS), batch_size=5, sampler=make(), **workers)
    for _ in loader:
        break
    assert one_epoch(loader) == planned(1)
    assert one_epoch(loader) == planned(2)


def test_a_loader_that_drops_its_last_batch_draws_the_head_of_each_epoch():
    loader = DataLoader(range(ROWS), batch_size=8, sampler=make(), drop_last=True)
    assert len(loader) == 3
    assert [one_epoch(loader) for _ in range(2)] == [planned(0)[:24], planned(1)[:24]]


def test_the_scheme_and_alpha_given_are_those_of_the_plan():
    options = {"scheme": "multinomial", "alpha": 0.5}
    assert list(make(**options)) == planned(0, **options)
    assert planned(0, **options) != planned(0)


@pytest.mark.parametrize(
    "size", [1, ROWS, 400, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 5]
)
def test_an_epoch_of_any_size_around_a_chunk_is_the_plan(size):
    sampler = make(size)
    assert [list(sampler), list(sampler)] == [planned(0, size), planned(1, size)]


def test_weights_may_be_an_array_flow_weights_or_a_loss_table():
    losses = np.linspace(0.1, 2.0, ROWS)
    table = LossTable.from_losses(losses)
    weights = table.weights()
    draws = list(FlowSampler(table, seed=SEED))
    assert draws == list(FlowSampler(weights, seed=SEED))
    assert draws == EpochPlan(weights, seed=SEED)[:].tolist()
    assert sorted(draws) == sorted(FlowSampler(FlowWeights.from_losses(table.losses), seed=SEED))


def test_asking_for_an_iterator_without_drawing_does_not_advance_the_epoch():
    sampler = make()
    for _ in range(3):
        iter(sampler)
    assert sampler.epoch == 0
    assert list(sampler) == planned(0)


def test_two_live_iterators_are_two_epochs_in_the_order_of_their_first_draws():
    sampler = make()
    first, second = iter(sampler), iter(sampler)
    drawn_second, drawn_first = zip(*zip(second, first, strict=True), strict=True)
    assert list(drawn_second) == planned(0)
    assert list(drawn_first) == planned(1)
    assert list(sampler) == planned(2)


def test_set_epoch_leaves_a_live_iterator_alone():
    sampler = make()
    live = iter(sampler)
    head = list(islice(live, 4))
    sampler.set_epoch(6)
    assert head + list(live) == planned(0)
    assert list(sampler) == planned(6)


def test_set_epoch_to_the_epoch_just_left_in_the_middle_starts_it_again():
    sampler = make()
    list(islice(iter(sampler), 4))
    sampler.set_epoch(0)
    assert list(sampler) == planned(0)


def test_set_epoch_to_the_epoch_of_a_loaded_state_keeps_its_position():
    interrupted = make()
    list(islice(iter(interrupted), 11))
    sampler = make()
    sampler.load_state_dict(interrupted.state_dict())
    sampler.set_epoch(0)
    sampler.set_epoch(0)
    assert list(sampler) == planned(0)[11:]


def test_set_epoch_to_another_epoch_than_the_loaded_one_starts_at_its_first_draw():
    interrupted = make()
    list(islice(iter(interrupted), 11))
    sampler = make()
    sampler.load_state_dict(interrupted.state_dict())
    sampler.set_epoch(5)
    assert list(sampler) == planned(5)


@pytest.mark.parametrize("draws", [24, 25, 5, 1])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_ranks_take_the_draws_at_the_positions_torch_distributed_sampler_takes(replicas, draws):
    plan = planned(2, draws)
    for rank, drawn in enumerate(rank_draws(replicas, draws, epoch=2)):
        positions = DistributedSampler(range(draws), replicas, rank, shuffle=False)
        assert drawn == [plan[position] for position in positions]


@pytest.mark.parametrize("draws", [24, 25, 31])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_ranks_that_drop_the_last_round_take_the_positions_torch_takes(replicas, draws):
    plan = planned(2, draws)
    for rank, drawn in enumerate(rank_draws(replicas, draws, epoch=2, drop_last=True)):
        positions = DistributedSampler(range(draws), replicas, rank, shuffle=False, drop_last=True)
        assert drawn == [plan[position] for position in positions]


@pytest.mark.parametrize("draws", [24, 25, 5])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_the_union_of_all_ranks_is_the_plan_padded_with_its_first_draws(replicas, draws):
    plan = planned(1, draws)
    padding = -draws % replicas
    assert interleaved(rank_draws(replicas, draws, epoch=1)) == plan + plan[:padding]


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_the_union_of_ranks_that_drop_is_the_plan_without_its_last_draws(replicas):
    kept = DRAWS // replicas * replicas
    drawn = interleaved(rank_draws(replicas, drop_last=True))
    assert drawn == planned(0)[:kept]


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_global_batches_do_not_depend_on_the_number_of_ranks(replicas):
    samplers = [make(48, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    loaders = [DataLoader(range(ROWS), 24 // replicas, sampler=sampler) for sampler in samplers]
    steps = [sorted(torch.cat(batches).tolist()) for batches in zip(*loaders, strict=True)]
    assert steps == [sorted(planned(0, 48)[:24]), sorted(planned(0, 48)[24:])]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_len_is_the_number_of_draws_of_each_rank(replicas, drop_last):
    for rank in range(replicas):
        sampler = make(num_replicas=replicas, rank=rank, drop_last=drop_last)
        assert len(sampler) == sampler.num_samples == len(list(sampler)) == len(list(sampler))


def test_draws_do_not_depend_on_global_random_state():
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        drawn.append([list(make()), list(make(scheme="multinomial"))])
    assert drawn[0] == drawn[1]


def test_drawing_consumes_no_global_random_state():
    def states():
        numpy_state = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate()

    before = states()
    for scheme in ("systematic", "multinomial"):
        sampler = make(scheme=scheme)
        list(sampler)
        sampler.load_state_dict(sampler.state_dict())
        list(sampler)
    assert states() == before


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy])
def test_a_copy_goes_on_with_the_epochs_of_the_original_and_leaves_it_alone(copied):
    original = make(num_replicas=2, rank=1)
    list(original)
    twin = copied(original)
    assert list(twin) == planned(1)[1::2]
    assert original.epoch == 1
    assert list(original) == planned(1)[1::2]


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy])
def test_a_copy_made_in_the_middle_of_an_epoch_has_the_state_of_the_original(copied):
    original = make()
    live = iter(original)
    list(islice(live, 9))
    twin = copied(original)
    next(live)
    assert twin.state_dict()["position"] == 9
    assert original.state_dict()["position"] == 10


def test_a_pickle_made_in_the_middle_of_a_large_epoch_does_not_hold_its_draws():
    sampler = make(200_000)
    list(islice(iter(sampler), 3))
    assert len(pickle.dumps(sampler)) < 100_000


@pytest.mark.parametrize("rank", [-1, 2, 3])
def test_a_rank_outside_the_replicas_is_refused_with_both_numbers(rank):
    with pytest.raises(ValueError, match=rf"rank={rank}, num_replicas=2"):
        make(num_replicas=2, rank=rank)


@pytest.mark.parametrize("replicas", [0, -1])
def test_no_replicas_are_refused(replicas):
    with pytest.raises(ValueError, match="num_replicas"):
        make(num_replicas=replicas)


def test_dropping_every_draw_is_refused():
    with pytest.raises(ValueError, match="5 draws for 8 replicas"):
        make(5, num_replicas=8, drop_last=True)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, np.nan], [1.0, -1.0], [np.inf]])
def test_weights_that_cannot_be_sampled_are_refused(weights):
    with pytest.raises(InvalidLossError):
        FlowSampler(weights)


@pytest.mark.parametrize(
    "option",
    [{"seed": -1}, {"scheme": "sorted"}, {"epoch_size": 0}, {"epoch_size": "all"}, {"alpha": 2}],
)
def test_an_unknown_option_is_refused_by_name(option):
    name = next(iter(option))
    with pytest.raises(ValueError, match=name):
        make(**option)


@pytest.mark.parametrize("epoch", [-1, 1.5, "1"])
def test_an_epoch_that_is_no_count_is_refused_and_changes_nothing(epoch):
    sampler = make()
    with pytest.raises(ValueError, match="epoch"):
        sampler.set_epoch(epoch)
    assert list(sampler) == planned(0)


@pytest.mark.parametrize(
    "sampler", [make(), make(kind=DistributedFlowSampler, num_replicas=2, rank=0)]
)
def test_nothing_in_the_sampler_invites_a_framework_to_replace_or_seed_it(sampler):
    assert not hasattr(sampler, "generator")
    assert not isinstance(sampler, RandomSampler)


@pytest.mark.parametrize(
    ("draws", "replicas", "drop_last"),
    [(24, 2, False), (24, 2, True), (25, 3, False), (25, 3, True), (3, 8, False), (30, 8, True)],
)
def test_a_distributed_sampler_has_the_attributes_of_torchs(draws, replicas, drop_last):
    options = {"num_replicas": replicas, "rank": replicas - 1, "drop_last": drop_last}
    ours = make(draws, kind=DistributedFlowSampler, **options)
    torchs = DistributedSampler(range(draws), seed=SEED, **options)
    ours.set_epoch(4)
    torchs.set_epoch(4)
    assert isinstance(ours, DistributedSampler)
    assert len(ours.dataset) == len(torchs.dataset)
    shared = ["total_size", "num_samples", "num_replicas", "rank"]
    for name in [*shared, "drop_last", "shuffle", "seed", "epoch"]:
        assert getattr(ours, name) == getattr(torchs, name), name
    assert len(ours) == len(torchs) == len(list(ours))


def test_a_distributed_sampler_draws_what_a_flow_sampler_of_its_rank_draws():
    for rank in range(3):
        ours = make(kind=DistributedFlowSampler, num_replicas=3, rank=rank)
        assert [list(ours), list(ours)] == [
            drawn[rank] for drawn in (rank_draws(3), rank_draws(3, epoch=1))
        ]


@pytest.mark.parametrize("given", [{}, {"rank": 0}, {"num_replicas": 2}])
def test_a_distributed_sampler_needs_a_process_group_or_both_numbers(given):
    with pytest.raises(RuntimeError, match="init_process_group"):
        make(kind=DistributedFlowSampler, **given)
