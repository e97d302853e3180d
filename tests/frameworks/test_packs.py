"""SFTTrainer and Trainer on packs and on batches of like length, on one process and on two."""

from collections import Counter

import frameworks_packs
import numpy as np
import pytest
from framework_runs import by_step, flat, torchrun
from frameworks_common import logged
from frameworks_language import plain_loop
from frameworks_packs import DRAWS, TOGETHER, draws_of, lengths, plan_of
from long_run import some

pytestmark = pytest.mark.slow

EPOCHS = 3
RUNS = {
    "SFTTrainer": {"train_sampling_strategy": "sequential"},
    "SFTTrainer, random, accumulated": {"accumulate": 2},
    "SFTTrainer, workers": {"dataloader_num_workers": 2},
    "Trainer": {"kind": "packs", "train_sampling_strategy": "sequential"},
    "Trainer, random": {"kind": "packs"},
    "Trainer, batch sampler": {"kind": "sampler"},
    "Trainer, batch sampler, workers": {"kind": "sampler", "dataloader_num_workers": 2},
    "Trainer, by length": {"kind": "by length", "train_sampling_strategy": "sequential"},
}
ORDERED = ("SFTTrainer", "Trainer", "Trainer, batch sampler", "Trainer, by length")
ALONE = some(RUNS, *ORDERED, "SFTTrainer, random, accumulated", "Trainer, random")
PAIR = some(RUNS, "SFTTrainer", "Trainer, batch sampler", "Trainer, by length")


def packs_of(name, epoch):
    """What an epoch has, in its order: packs, or draws by length."""
    if "by length" in name:
        return [[row] for row in draws_of(epoch)]
    return [pack.tolist() for pack in plan_of(epoch)]


def steps_in_epoch(name):
    return len(packs_of(name, 0)) // TOGETHER


def lives(folder, names):
    """Each run to its end; one that stops inside epoch 1, and one that goes on."""
    runs = {}
    for name in names:
        steps = steps_in_epoch(name)
        for life, ends in (
            ("whole", {"save_strategy": "no"}),
            ("stopped", {"stop": steps + 3, "save_steps": steps + 2}),
            ("resumed", {"resume": True, "save_strategy": "no"}),
        ):
            where = {"folder": f"{folder}/{name}", "log": f"{folder}/{name}.{life}"}
            runs[f"{name}.{life}"] = RUNS[name] | ends | where
    return runs


class Outcomes:
    def __init__(self, folder, ranks, outcomes):
        self.folder, self.ranks, self.outcomes = folder, ranks, outcomes

    def batches(self, name):
        """What each rank was trained on: the rows of each batch, in their order."""
        states = [(rank["error"], rank["warnings"]) for rank in self.outcomes[name]]
        assert states == [(None, [])] * self.ranks
        return [rank["rows"] for rank in logged(self.folder / name, self.ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    runs = lives(folder, ALONE)
    done = {name: [frameworks_packs.run(**options)] for name, options in runs.items()}
    return Outcomes(folder, 1, done)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return Outcomes(folder, 2, torchrun("frameworks_packs.py", lives(folder, PAIR), folder))


@pytest.fixture
def outcomes(request):
    return request.getfixturevalue(request.param)


EACH = [("alone", name) for name in ALONE] + [("pair", name) for name in PAIR]
IN_ORDER = [(ranks, name) for ranks, name in EACH if name in ORDERED]
every_run = pytest.mark.parametrize(("outcomes", "name"), EACH, indirect=["outcomes"])
runs_in_order = pytest.mark.parametrize(("outcomes", "name"), IN_ORDER, indirect=["outcomes"])


def is_made_of(batches, packs):
    """Whether batches have exactly these packs, each once, in whatever order."""
    left = Counter(map(tuple, packs))
    for batch in batches:
        rows = tuple(batch)
        while rows:
            # Packs in a batch follow one another: the longest that fits is the one, or its
            # beginning would be a pack too.
            fitting = [pack for pack in left if left[pack] and rows[: len(pack)] == pack]
            if not fitting:
                return False
            pack = max(fitting, key=len)
            left[pack] -= 1
            rows = rows[len(pack) :]
    return not +left


def epochs_of(by_rank):
    each = len(by_rank[0]) // EPOCHS
    return [
        flat(batches[epoch * each : (epoch + 1) * each] for batches in by_rank)
        for epoch in range(EPOCHS)
    ]


def steps_of(name, by_rank):
    """The rows of each step, of all ranks in turn."""
    each = len(by_rank[0]) // (EPOCHS * steps_in_epoch(name))
    turns = [flat(batches) for batches in by_step(by_rank)]
    return [flat(turns[start : start + each]) for start in range(0, len(turns), each)]


@every_run
def test_the_ranks_train_on_each_pack_of_an_epoch_once(outcomes, name):
    by_rank = outcomes.batches(f"{name}.whole")
    assert len({len(batches) for batches in by_rank}) == 1
    for epoch, batches in enumerate(epochs_of(by_rank)):
        assert is_made_of(batches, packs_of(name, epoch))
        assert sum(map(len, batches)) == DRAWS


@runs_in_order
def test_a_step_trains_on_packs_that_follow_one_another(outcomes, name):
    packs = flat(packs_of(name, epoch) for epoch in range(EPOCHS))
    steps = [flat(packs[at : at + TOGETHER]) for at in range(0, len(packs), TOGETHER)]
    found = steps_of(name, outcomes.batches(f"{name}.whole"))
    assert list(map(sorted, found)) == list(map(sorted, steps))


@pytest.mark.parametrize("outcomes", ["alone", "pair"], indirect=True)
def test_batches_by_length_are_of_rows_that_are_about_as_long(outcomes):
    by_rank = outcomes.batches("Trainer, by length.whole")
    padded = sum(lengths()[step].max() * len(step) for step in flat(by_rank))
    # In a random order it is a fourth.
    assert 1 - sum(lengths()[step].sum() for step in flat(by_rank)) / padded < 0.06


@every_run
def test_a_resumed_run_trains_on_the_packs_that_were_left(outcomes, name):
    stopped, resumed, whole = (
        outcomes.batches(f"{name}.{life}") for life in ("stopped", "resumed", "whole")
    )
    steps = steps_in_epoch(name)
    kept = len(whole[0]) // (EPOCHS * steps) * (steps + 2)
    assert [batches[:kept] for batches in whole] == [batches[:kept] for batches in stopped]
    assert [batches[kept:] for batches in whole] == resumed


@every_run
def test_losses_are_those_of_the_samples_one_by_one(outcomes, name):
    """Summed over the packs of a step, on all ranks, and divided by their tokens."""
    losses = outcomes.outcomes[f"{name}.whole"][0]["losses"]
    steps = steps_of(name, outcomes.batches(f"{name}.whole"))
    # The Trainer adds up what it logs in single precision.
    np.testing.assert_allclose(losses, plain_loop(steps), rtol=1e-5)


@pytest.mark.parametrize("name", PAIR)
def test_a_run_of_two_processes_goes_on_with_one(pair, name, tmp_path):
    ends = {"resume": True, "save_strategy": "no", "folder": f"{pair.folder}/{name}"}
    assert frameworks_packs.run(**RUNS[name], **ends, log=f"{tmp_path}/log")["error"] is None
    [after] = [rank["rows"] for rank in logged(tmp_path / "log", 1)]
    whole = steps_of(name, pair.batches(f"{name}.whole"))[steps_in_epoch(name) + 2 :]
    each = len(after) // len(whole)
    steps = [flat(after[start : start + each]) for start in range(0, len(after), each)]
    assert list(map(sorted, steps)) == list(map(sorted, whole))


@pytest.mark.parametrize("name", some(ORDERED, "SFTTrainer"))
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, name):
    where = {"folder": str(tmp_path / "run"), "save_steps": 2}
    killed = RUNS[name] | where | {"kill": 5, "log": str(tmp_path / "killed")}
    torchrun("frameworks_packs.py", {"killed": killed}, tmp_path, fails=True)
    resumed = RUNS[name] | where | {"resume": True, "log": str(tmp_path / "resumed")}
    outcomes = torchrun("frameworks_packs.py", {"resumed": resumed}, tmp_path)
    assert [rank["error"] for rank in outcomes["resumed"]] == [None, None]
    first, second = (logged(tmp_path / life, 2) for life in ("killed", "resumed"))
    each = len(first[0]["rows"]) // 5
    life = [a["rows"][: 4 * each] + b["rows"] for a, b in zip(first, second, strict=True)]
    for epoch, batches in enumerate(epochs_of(life)):
        assert is_made_of(batches, packs_of(name, epoch))
