"""accelerate, Lightning and a loop of one's own on packs: on one process and on two."""

from collections import Counter

import frameworks_pack_loops
import pytest
from framework_runs import flat, torchrun
from frameworks_common import logged
from frameworks_pack_loops import EPOCHS, LOOPS
from frameworks_packs import TOGETHER, plan_of

pytestmark = pytest.mark.slow

RESUMED = [loop for loop in LOOPS if loop != "Lightning"]


def lives(folder, ranks):
    """Each loop to its end; one that stops inside epoch 1, and one that goes on."""
    runs = {}
    for loop in LOOPS:
        # Packs a batch of each rank.
        size = 1 if loop == "plain" or "sampler" in loop else TOGETHER // ranks
        each = len(plan_of(0)) // (size * ranks)
        stop = {"stop": (1, each // 2, each)}
        for life, ends in (("whole", {}), ("stopped", stop), ("resumed", {"resume": True})):
            where = {"folder": f"{folder}/{loop}", "log": f"{folder}/{loop}.{life}"}
            runs[f"{loop}.{life}"] = {"loop": loop} | where | ends
    return runs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    runs = lives(folder, 1)
    return folder, 1, {name: [frameworks_pack_loops.run(**run)] for name, run in runs.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, 2, torchrun("frameworks_pack_loops.py", lives(folder, 2), folder)


@pytest.fixture(params=["alone", "pair"])
def outcomes(request):
    return request.getfixturevalue(request.param)


def batches_of(outcomes, name):
    folder, ranks, done = outcomes
    assert [(rank["error"], rank["warnings"]) for rank in done[name]] == [(None, [])] * ranks
    return [rank["rows"] for rank in logged(folder / name, ranks)]


def rows_of(by_rank, epoch):
    each = len(by_rank[0]) // EPOCHS
    return [batch for batches in by_rank for batch in batches[epoch * each : (epoch + 1) * each]]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_ranks_train_on_each_pack_of_an_epoch_once(outcomes, loop):
    by_rank = batches_of(outcomes, f"{loop}.whole")
    assert len({len(batches) for batches in by_rank}) == 1
    for epoch in range(EPOCHS):
        found, packs = rows_of(by_rank, epoch), [pack.tolist() for pack in plan_of(epoch)]
        if len(found) == len(packs):
            assert sorted(found) == sorted(packs)
        assert Counter(flat(found)) == Counter(flat(packs))
        # Each pack lies in a batch as a whole.
        assert all(
            any(pack == batch[at : at + len(pack)] for batch in found for at in range(len(batch)))
            for pack in packs
        )


@pytest.mark.parametrize("loop", RESUMED)
def test_a_resumed_run_trains_on_the_packs_that_were_left(outcomes, loop):
    whole, stopped, resumed = (
        batches_of(outcomes, f"{loop}.{life}") for life in ("whole", "stopped", "resumed")
    )
    assert [a + b for a, b in zip(stopped, resumed, strict=True)] == whole


def test_lightning_says_by_what_packs_resume_inside_an_epoch(outcomes):
    _, _, done = outcomes
    assert all(
        "batch_sampler=FlowPackSampler" in each["error"] for each in done["Lightning.resumed"]
    )
