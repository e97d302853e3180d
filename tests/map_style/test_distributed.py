"""DistributedFlowSampler in real processes, started by torchrun, with gloo."""

from itertools import chain

import numpy as np
import pytest
import torch
from launching import torchrun
from long_run import LONG

from flowdata import DistributedFlowSampler, EpochPlan

pytestmark = pytest.mark.slow

ROWS, DRAWS, SEED, EPOCHS = 17, 25, 6, 3
WEIGHTS = np.random.default_rng(4).random(ROWS)
RUNS = {
    "padded": {"drop_last": False},
    "dropped": {"drop_last": True},
    "equal weights": {"weights": [1.0] * 24, "epoch_size": 24},
}


def planned(epoch, weights=WEIGHTS, epoch_size=DRAWS):
    return EpochPlan(weights, seed=SEED, epoch=epoch, epoch_size=epoch_size)[:].tolist()


def padded(draws, left, replicas):
    return left + [draws[place % len(draws)] for place in range(-len(left) % replicas)]


@pytest.fixture(scope="module", params=[2, 3], ids=lambda processes: f"{processes} processes")
def ranks(request, tmp_path_factory):
    """What the ranks of each of RUNS drew, in rank order."""
    common = {"weights": WEIGHTS.tolist(), "epoch_size": DRAWS, "seed": SEED}
    config = {
        "epochs": EPOCHS,
        "runs": {name: common | options for name, options in RUNS.items()},
    }
    folder = tmp_path_factory.mktemp("draws")
    # By torchrun itself, once in an ordinary run.
    itself = LONG or request.param == 2
    outcome = torchrun(
        "distributed_draws.py", config, folder, processes=request.param, itself=itself
    )
    assert all(len(by_rank) == request.param for by_rank in outcome.values())
    return outcome


def union(by_rank, epoch):
    return list(chain.from_iterable(zip(*(rank["epochs"][epoch] for rank in by_rank), strict=True)))


def test_rank_and_number_of_replicas_are_those_of_the_process_group(ranks):
    for by_rank in ranks.values():
        assert [rank["rank"] for rank in by_rank] == list(range(len(by_rank)))
        assert {rank["num_replicas"] for rank in by_rank} == {len(by_rank)}


def test_every_rank_draws_as_many_as_len_says_and_all_the_same(ranks):
    for by_rank in ranks.values():
        lengths = {len(drawn) for rank in by_rank for drawn in rank["epochs"]}
        assert lengths == {by_rank[0]["len"]} == {rank["len"] for rank in by_rank}
        assert {rank["total_size"] for rank in by_rank} == {by_rank[0]["len"] * len(by_rank)}


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_all_ranks_together_draw_the_plan_and_its_first_draws_again(ranks, epoch):
    plan = planned(epoch)
    assert union(ranks["padded"], epoch) == padded(plan, plan, len(ranks["padded"]))


@pytest.mark.parametrize("epoch", range(EPOCHS))
def test_all_ranks_together_draw_the_plan_without_the_last_round_when_they_drop(ranks, epoch):
    assert union(ranks["dropped"], epoch) == planned(epoch)[:24]


def test_ranks_draw_disjoint_positions_of_the_plan(ranks):
    for epoch in range(EPOCHS):
        shares = [set(rank["epochs"][epoch]) for rank in ranks["equal weights"]]
        assert sum(map(len, shares)) == len(set.union(*shares)) == 24


def test_each_epoch_is_drawn_differently(ranks):
    for by_rank in ranks.values():
        for rank in by_rank:
            assert len({tuple(drawn) for drawn in rank["epochs"]}) == EPOCHS


GLOBAL_BATCH, TRAINED_DRAWS, TRAINED_EPOCHS, STOP = 12, 67, 3, (1, 2)
RATE = 0.05


def regression_problem():
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(ROWS, 3, generator=generator, dtype=torch.float64)
    return features, features.sin().sum(dim=1, keepdim=True)


def train_in_one_process(epochs_of_draws):
    """The loop torchrun's ranks share, over the global batches: losses and parameters."""
    features, targets = regression_problem()
    torch.manual_seed(0)
    layers = torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    model = torch.nn.Sequential(*layers).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for draws in epochs_of_draws:
        for batch in torch.tensor(draws).split(GLOBAL_BATCH):
            loss = torch.nn.functional.mse_loss(model(features[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, [parameter.tolist() for parameter in model.parameters()]


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Two processes train until STOP, then three take over: the outcomes of both."""
    folder = tmp_path_factory.mktemp("training")
    features, targets = regression_problem()
    sampler = {"weights": WEIGHTS.tolist(), "epoch_size": TRAINED_DRAWS, "seed": SEED}
    config = {
        "features": features.tolist(),
        "targets": targets.tolist(),
        "lr": RATE,
        "epochs": TRAINED_EPOCHS,
        "saved": str(folder / "saved.pt"),
    }
    first = config | {"sampler": sampler, "batch_size": GLOBAL_BATCH // 2, "stop": STOP}
    other_seed = sampler | {"seed": SEED + 1}
    second = config | {"sampler": other_seed, "batch_size": GLOBAL_BATCH // 3, "stop": None}
    return (
        torchrun("ddp_training.py", first, folder),
        torchrun("ddp_training.py", second, folder, processes=3),
    )


def epochs_trained_on():
    """Epoch by epoch: on 2 ranks, on 2 ranks up to STOP and 3 from there, on 3 ranks."""
    first, second, third = (planned(epoch, epoch_size=TRAINED_DRAWS) for epoch in range(3))
    done = STOP[1] * GLOBAL_BATCH
    return [
        padded(first, first, 2),
        second[:done] + padded(second, second[done:], 3),
        padded(third, third, 3),
    ]


def test_ddp_training_has_the_losses_and_parameters_of_one_process(training):
    first, second, _ = epochs_trained_on()
    losses, parameters = train_in_one_process([first, second[: STOP[1] * GLOBAL_BATCH]])
    np.testing.assert_allclose(training[0]["losses"], losses, rtol=1e-9)
    for ddp, single in zip(training[0]["parameters"], parameters, strict=True):
        np.testing.assert_allclose(ddp, single, rtol=1e-9)


def test_ddp_training_resumed_on_more_processes_ends_as_if_never_interrupted(training):
    losses, parameters = train_in_one_process(epochs_trained_on())
    np.testing.assert_allclose(training[0]["losses"] + training[1]["losses"], losses, rtol=1e-9)
    for ddp, single in zip(training[1]["parameters"], parameters, strict=True):
        np.testing.assert_allclose(ddp, single, rtol=1e-9)


@pytest.fixture
def group_of_one():
    torch.distributed.init_process_group(
        "gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_rank_and_replicas_that_are_given_go_before_those_of_the_process_group(group_of_one):
    sampler = DistributedFlowSampler(WEIGHTS, num_replicas=4, rank=3, seed=SEED, epoch_size=DRAWS)
    assert list(sampler) == padded(planned(0), planned(0), 4)[3::4]
    alone = DistributedFlowSampler(WEIGHTS, seed=SEED, epoch_size=DRAWS)
    assert list(alone) == planned(0)
