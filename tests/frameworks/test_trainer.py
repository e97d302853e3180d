"""The transformers Trainer, on one process and on two under torchrun."""

import frameworks_trainer
import numpy as np
import pytest
from framework_runs import by_step, dealt, flat, planned, same_rows, torchrun
from frameworks_common import Rows, logged, plain_loop
from long_run import LONG
from transformers import Trainer, TrainingArguments

from flowdata import FlowDataset

pytestmark = pytest.mark.slow

DRAWS, RAGGED, BATCH, EPOCHS = 24, 22, 4, 3
SAMPLER = {"door": "sampler", "strategy": "random", "callback": True}
SHUFFLED = {"strategy": "random", "callback": True}
DOORS = {
    "sequential": {},
    "sequential, inside a transform": {"callback": True, "transform": True},
    "sequential, datasets": {"rows": "hugging face"},
    "sequential, workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    "sequential, split_batches": {
        "accelerator": {"split_batches": True},
        "per_device_train_batch_size": 4,
    },
    "random": SHUFFLED,
    "random, workers": SHUFFLED | {"dataloader_num_workers": 2},
    "random, not seedable": SHUFFLED | {"accelerator": {"use_seedable_sampler": False}},
    "sampler": SAMPLER,
    "sampler, workers": SAMPLER | {"dataloader_num_workers": 2},
}
# Without a seedable sampler, transformers itself does not resume in the order it had shuffled.
RESUMABLE = [door for door in DOORS if door != "random, not seedable"]
MISUSED = {
    "random, nobody names": {"strategy": "random"},
    "sampler, nobody names": SAMPLER | {"callback": False},
    "rank sampler": SAMPLER | {"door": "rank sampler"},
    "no door": {"door": "none", "callback": True},
}
OTHERS = {
    "ragged": {"draws": RAGGED},
    "dropped": {"draws": RAGGED, "dataloader_drop_last": True},
    "accumulated": SHUFFLED | {"gradient_accumulation_steps": 2},
    "epochs cut short": {"epoch_stop": 2, "callback": True},
    "epochs cut short, random": SHUFFLED | {"epoch_stop": 2},
}


# What two processes do not change, but in a long run.
ALONE = ("sequential, inside a transform", "sequential, datasets", "random, workers")


def is_for_two(run):
    return LONG or run.rpartition(".")[0] not in ALONE


def lives(folder, steps_in_epoch):
    """Each door: a run to its end, one that stops inside epoch 1, and one that goes on."""
    runs = {}
    stop = steps_in_epoch + 2
    checkpoint = {"save_steps": steps_in_epoch + 1}
    for name, options in (DOORS | OTHERS | MISUSED).items():
        where = {"folder": str(folder / name), "log": str(folder / f"{name}.whole")}
        runs[f"{name}.whole"] = options | where | {"save_strategy": "no"}
    for name in [*RESUMABLE, "accumulated", "random, nobody names", "sampler, nobody names"]:
        options = (DOORS | OTHERS | MISUSED)[name]
        if name == "accumulated":
            options = options | {"save_steps": steps_in_epoch // 2 + 2}
        for life, ends in (("stopped", {"stop": stop}), ("resumed", {"resume": True})):
            where = {"folder": str(folder / name), "log": str(folder / f"{name}.{life}")}
            runs[f"{name}.{life}"] = checkpoint | options | where | ends
    where = {"folder": str(folder / "random"), "log": str(folder / "larger.resumed")}
    runs["larger.resumed"] = SHUFFLED | where | {"resume": True, "gradient_accumulation_steps": 2}
    for life, ends in (("stopped", {"stop": stop}), ("resumed", {"resume": True})):
        where = {"folder": str(folder / "between"), "log": str(folder / f"between.{life}")}
        runs[f"between.{life}"] = where | SHUFFLED | ends | {"save_steps": steps_in_epoch}
    return runs


class Outcomes:
    def __init__(self, folder, ranks, outcomes):
        self.folder, self.ranks, self._outcomes = folder, ranks, outcomes

    def __getitem__(self, name):
        if self.ranks > 1 and not is_for_two(name):
            pytest.skip("one process is enough")
        return self._outcomes(name)

    def sound(self, name):
        assert [(rank["error"], rank["warnings"]) for rank in self[name]] == [(None, [])] * (
            self.ranks
        )
        return logged(self.folder / name, self.ranks)

    def batches(self, name):
        by_rank = [rank["rows"] for rank in self.sound(name)]
        assert len({len(batches) for batches in by_rank}) == 1
        return by_rank

    def epochs(self, by_rank):
        """What all ranks drew in each epoch."""
        steps = len(by_rank[0]) // EPOCHS
        return [
            flat(flat(batches[e * steps : (e + 1) * steps]) for batches in by_rank)
            for e in range(EPOCHS)
        ]

    def life(self, name, kept):
        """Batches up to the checkpoint after ``kept`` of them, and those of the resumed run."""
        first, second = self.batches(f"{name}.stopped"), self.batches(f"{name}.resumed")
        return [before[:kept] + after for before, after in zip(first, second, strict=True)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("one"), {}
    runs = lives(folder, DRAWS // BATCH)

    def outcome(name):
        if name not in done:
            if name.endswith("resumed"):
                outcome(name.replace("larger", "random").replace("resumed", "stopped"))
            done[name] = [frameworks_trainer.run(**runs[name])]
        return done[name]

    return Outcomes(folder, 1, outcome)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    runs = lives(folder, DRAWS // BATCH // 2)
    runs = {name: run for name, run in runs.items() if is_for_two(name)}
    outcomes = torchrun("frameworks_trainer.py", runs, folder)
    return Outcomes(folder, 2, outcomes.__getitem__)


@pytest.fixture(params=["one process", "two processes"])
def outcomes(request):
    return request.getfixturevalue(request.param.replace(" ", "_"))


PLANS = [planned(epoch, DRAWS) for epoch in range(EPOCHS)]


@pytest.mark.parametrize("door", DOORS)
def test_each_epoch_draws_its_plan(outcomes, door):
    drawn = outcomes.epochs(outcomes.batches(f"{door}.whole"))
    assert all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))


@pytest.mark.parametrize("door", ["sequential", "sampler"])
def test_the_losses_are_those_of_a_plain_loop_over_the_plan(outcomes, door):
    steps = [step for plan in PLANS for step in by_step(dealt(plan, BATCH, outcomes.ranks))]
    trained = outcomes.sound(f"{door}.whole")
    assert by_step([rank["rows"] for rank in trained]) == steps
    losses = by_step([rank["losses"] for rank in trained])
    np.testing.assert_allclose(losses, plain_loop(steps), rtol=1e-9)


@pytest.mark.parametrize("door", RESUMABLE)
def test_a_resumed_run_repeats_and_misses_nothing(outcomes, door):
    kept = len(outcomes.batches(f"{door}.whole")[0]) // EPOCHS + 1
    if door == "sequential, split_batches" and outcomes.ranks == 2:
        kept = DRAWS // BATCH // 2 + 1
    life = outcomes.life(door, kept)
    drawn = outcomes.epochs(life)
    assert all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))
    if door != "sequential, split_batches":
        assert life == outcomes.batches(f"{door}.whole")


@pytest.mark.parametrize("door", ["sequential", "random", "sampler"])
def test_a_resumed_run_has_the_losses_of_one_that_was_not_interrupted(outcomes, door):
    whole, first, second = (
        [rank["losses"] for rank in outcomes.sound(f"{door}.{life}")]
        for life in ("whole", "stopped", "resumed")
    )
    kept = DRAWS // BATCH // outcomes.ranks + 1
    life = [before[:kept] + after for before, after in zip(first, second, strict=True)]
    np.testing.assert_allclose(life, whole, rtol=1e-9)


def test_a_run_resumed_between_two_epochs_begins_the_next_one(outcomes):
    life = outcomes.life("between", DRAWS // BATCH // outcomes.ranks)
    drawn = outcomes.epochs(life)
    assert all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))


def test_a_run_with_another_number_of_draws_a_step_does_not_go_on(outcomes):
    draws = BATCH * outcomes.ranks
    for rank in outcomes["larger.resumed"]:
        assert f"{draws} draws a step, this one has {2 * draws}" in rank["error"]


def test_gradient_accumulation_changes_no_draw_and_resumes(outcomes):
    steps = -(-DRAWS // BATCH // outcomes.ranks // 2)
    batches = outcomes.batches("accumulated.whole")
    assert all(same_rows(*pair) for pair in zip(outcomes.epochs(batches), PLANS, strict=True))
    kept = DRAWS // BATCH // outcomes.ranks // 2 + 2
    in_epochs, rest = divmod(kept, steps)
    kept_batches = in_epochs * (DRAWS // BATCH // outcomes.ranks) + 2 * rest
    life = outcomes.life("accumulated", kept_batches)
    assert all(same_rows(*pair) for pair in zip(outcomes.epochs(life), PLANS, strict=True))


def test_a_ragged_epoch_is_padded_with_its_own_first_draws(outcomes):
    drawn = outcomes.epochs(outcomes.batches("ragged.whole"))
    for epoch, rows in enumerate(drawn):
        plan = planned(epoch, RAGGED)
        assert same_rows(rows, plan + plan[: 2 * (outcomes.ranks - 1)])


def test_drop_last_leaves_out_the_last_draws(outcomes):
    drawn = outcomes.epochs(outcomes.batches("dropped.whole"))
    kept = RAGGED // (BATCH * outcomes.ranks) * BATCH * outcomes.ranks
    for epoch, rows in enumerate(drawn):
        assert same_rows(rows, planned(epoch, RAGGED)[:kept])


@pytest.mark.parametrize("name", ["epochs cut short", "epochs cut short, random"])
def test_an_epoch_that_was_cut_short_is_followed_by_the_next_one(outcomes, name):
    batches = outcomes.batches(f"{name}.whole")
    for epoch, plan in enumerate(PLANS):
        rows = flat(flat(of_rank[2 * epoch : 2 * epoch + 2]) for of_rank in batches)
        if name == "epochs cut short":
            assert same_rows(rows, plan[: 2 * BATCH * outcomes.ranks])
        assert not set(rows) - set(plan)


@pytest.mark.guard
def test_a_shuffling_trainer_without_the_callback_is_right_until_it_resumes(one_process):
    drawn = one_process.epochs(one_process.batches("random, nobody names.whole"))
    assert all(same_rows(*pair) for pair in zip(drawn, PLANS, strict=True))
    (warning,) = one_process["random, nobody names.resumed"][0]["warnings"]
    assert 'train_sampling_strategy="sequential"' in warning


@pytest.mark.guard
def test_a_shuffling_trainer_without_the_callback_warns_on_several_ranks(two_processes):
    for rank in two_processes["random, nobody names.whole"]:
        (warning,) = rank["warnings"]
        assert "flowdata.frameworks.trainer.FlowCallback" in warning


@pytest.mark.guard
def test_a_sampler_that_resumes_without_the_callback_warns(two_processes):
    assert two_processes["sampler, nobody names.whole"][0]["warnings"] == []
    for rank in two_processes["sampler, nobody names.resumed"]:
        (warning,) = rank["warnings"]
        assert "flowdata.frameworks.trainer.FlowCallback" in warning


@pytest.mark.guard
def test_a_rank_sampler_is_refused_on_several_ranks(two_processes):
    for rank in two_processes["rank sampler.whole"]:
        assert "use FlowSampler(weights)" in rank["error"]


def test_a_callback_without_a_door_says_how_to_draw(one_process):
    assert "train_dataset=FlowDataset" in one_process["no door.whole"][0]["error"]


@pytest.mark.guard
@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_grouping_by_length_is_refused(tmp_path, strategy):
    rows = [{"input_ids": [0] * (1 + row % 5)} for row in range(len(Rows()))]
    args = TrainingArguments(str(tmp_path), use_cpu=True, train_sampling_strategy=strategy)
    data = FlowDataset(rows, frameworks_trainer.WEIGHTS)
    trainer = Trainer(frameworks_trainer.Regression(), args, train_dataset=data)
    with pytest.raises(ValueError, match="cannot be grouped by length"):
        trainer.get_train_dataloader()


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    run = {"folder": str(tmp_path / "run"), "log": str(tmp_path / "killed"), "save_steps": 2}
    torchrun("frameworks_trainer.py", {"killed": run | {"kill": 5}}, tmp_path, fails=True)
    resumed = run | {"log": str(tmp_path / "resumed"), "resume": True}
    outcome = torchrun("frameworks_trainer.py", {"resumed": resumed}, tmp_path)
    assert [rank["warnings"] for rank in outcome["resumed"]] == [[], []]
    first, second = (logged(tmp_path / name, 2) for name in ("killed", "resumed"))
    life = [a["rows"][:4] + b["rows"] for a, b in zip(first, second, strict=True)]
    steps = [step for plan in PLANS for step in by_step(dealt(plan, BATCH, 2))]
    assert by_step(life) == steps
    losses = [a["losses"][:4] + b["losses"] for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(by_step(losses), plain_loop(steps), rtol=1e-9)
