"""TRL's SFTTrainer and LoRA models, on one process and on two under torchrun."""

import datasets
import frameworks_language
import numpy as np
import pytest
from framework_runs import by_step, dealt, flat, planned, same_rows, torchrun
from frameworks_common import WEIGHTS, logged

pytestmark = pytest.mark.slow

DRAWS, BATCH, EPOCHS = 24, 4, 3
PLANS = [planned(epoch, DRAWS) for epoch in range(EPOCHS)]
RUNS = {
    "SFTTrainer": {},
    "SFTTrainer, LoRA": {"lora": True},
    "SFTTrainer, random": {"train_sampling_strategy": "random", "callback": True},
    "Trainer, LoRA": {"kind": "transformers", "lora": True},
}
WEIGHTED = {"weighted": {"weighted": True}, "weighted, LoRA": {"weighted": True, "lora": True}}


def lives(folder, steps):
    runs = {}
    for name, options in RUNS.items():
        where = {"folder": f"{folder}/{name}"}
        for life, ends in (
            ("whole", {"save_strategy": "no"}),
            ("stopped", {"stop": steps + 2, "save_steps": steps + 1}),
            ("resumed", {"resume": True}),
        ):
            runs[f"{name}.{life}"] = options | where | ends | {"log": f"{folder}/{name}.{life}"}
    for name, options in WEIGHTED.items():
        where = {"folder": f"{folder}/{name}", "log": f"{folder}/{name}.whole"}
        runs[f"{name}.whole"] = options | where | {"save_strategy": "no", "num_train_epochs": 1}
    return runs


class Outcomes:
    def __init__(self, folder, ranks, outcomes):
        self.folder, self.ranks, self.outcomes = folder, ranks, outcomes

    def batches(self, name):
        states = [(rank["error"], rank["warnings"]) for rank in self.outcomes[name]]
        assert states == [(None, [])] * self.ranks
        return [rank["rows"] for rank in logged(self.folder / name, self.ranks)]

    def epochs(self, by_rank):
        steps = len(by_rank[0]) // EPOCHS
        return [
            flat(flat(batches[e * steps : (e + 1) * steps]) for batches in by_rank)
            for e in range(EPOCHS)
        ]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def outcomes(request, tmp_path_factory):
    ranks, folder = request.param, tmp_path_factory.mktemp("language")
    runs = lives(folder, DRAWS // BATCH // ranks)
    if ranks == 1:
        done = {name: [frameworks_language.run(**options)] for name, options in runs.items()}
        return Outcomes(folder, 1, done)
    return Outcomes(folder, 2, torchrun("frameworks_language.py", runs, folder))


@pytest.mark.parametrize("name", RUNS)
def test_each_epoch_draws_its_plan(outcomes, name):
    drawn = outcomes.epochs(outcomes.batches(f"{name}.whole"))
    assert all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_repeats_and_misses_nothing(outcomes, name):
    kept = DRAWS // BATCH // outcomes.ranks + 1
    lives = outcomes.batches(f"{name}.stopped"), outcomes.batches(f"{name}.resumed")
    life = [before[:kept] + after for before, after in zip(*lives, strict=True)]
    assert all(same_rows(*pair) for pair in zip(outcomes.epochs(life), PLANS, strict=True))


def test_the_losses_are_those_of_a_plain_loop_over_the_plan(outcomes):
    steps = [step for plan in PLANS for step in by_step(dealt(plan, BATCH, outcomes.ranks))]
    assert by_step(outcomes.batches("SFTTrainer.whole")) == steps
    expected = frameworks_language.plain_loop(map(flat, steps))
    losses = outcomes.outcomes["SFTTrainer.whole"][0]["losses"]
    # The Trainer adds up what it logs in single precision.
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_losses_are_those_of_a_hand_written_loop(outcomes, name):
    by_rank = outcomes.batches(f"{name}.whole")
    # The model runs twice a step: for the loss and for what TRL logs.
    steps = by_step([batches[::2] for batches in by_rank])
    expected = frameworks_language.plain_loop(
        map(flat, steps), weights=WEIGHTS, lora="LoRA" in name
    )
    losses = outcomes.outcomes[f"{name}.whole"][0]["losses"]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_a_run_whose_data_set_is_not_set_says_how(tmp_path):
    where = {"folder": str(tmp_path / "run"), "log": str(tmp_path / "log")}
    outcome = frameworks_language.run(**where, door=False, callback=True)
    assert "under TRL set trainer.train_dataset" in outcome["error"]


def test_trl_refuses_a_data_set_of_another_kind_itself(tmp_path):
    from trl import SFTConfig, SFTTrainer

    from flowdata import FlowDataset

    rows = datasets.Dataset.from_dict({"text": ["a"] * len(WEIGHTS)})
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match="FlowDataset"):
        SFTTrainer("none", args, train_dataset=FlowDataset(rows, WEIGHTS))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"packing": True, "max_length": 32}, "packing=True makes other rows"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True puts the rows into another order"),
    ],
)
def test_rows_that_are_not_those_that_were_scored_are_refused(tmp_path, options, reason):
    where = {"folder": str(tmp_path / "run"), "log": str(tmp_path / "log")}
    outcome = frameworks_language.run(**where, **options)
    assert reason in outcome["error"]
