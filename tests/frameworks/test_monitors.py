"""Monitors under the Trainer, on one process and on two, and under Lightning."""

import csv
from collections import Counter
from pathlib import Path

import frameworks_monitor
import lightning_runs
import numpy as np
import pytest
from framework_runs import flat, torchrun
from frameworks_common import ROWS, logged
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_runs import DATA, Reading, make_trainer
from long_run import LONG
from torch.utils.data import DataLoader

from flowdata import FlowDataset, FlowSampler, FlowWeights, MismatchError, Monitor
from flowdata.frameworks.lightning import FlowCallback, MonitorCallback

pytestmark = pytest.mark.slow

EPOCHS, KEPT_STEPS = 3, 7
DOORS = {
    "random": {},
    "ragged, accumulated": {"draws": 21, "gradient_accumulation_steps": 2},
    "ragged sampler": {"door": "sampler", "draws": 21},
}
if LONG:
    DOORS |= {
        "sequential": {"train_sampling_strategy": "sequential"},
        "sampler": {"door": "sampler"},
        "split batches": {"accelerator_config": {"split_batches": True}},
        "dropped": {"draws": 21, "dataloader_drop_last": True},
        "workers": {"dataloader_num_workers": 2},
    }
# Of an order that cannot be known.
UNKNOWN = {"accelerator_config": {"use_seedable_sampler": False}}


def figures_of(batches, groups=3, rows=ROWS):
    """Coverage and the share of group 0 after each batch of all ranks."""
    seen, counts = set(), Counter()
    for batch in batches:
        seen.update(batch)
        counts.update(row % groups for row in batch)
        yield len(seen) / rows, counts[0] / counts.total()


def ends_of_steps(batches, an_epoch, accumulated):
    """Which batches are the last of a step."""
    return [
        number
        for number in range(batches)
        if (number % an_epoch + 1) % accumulated == 0 or number % an_epoch + 1 == an_epoch
    ]


def lives(folder):
    """Of each door a run that stops inside epoch 1, one that goes on, and, if LONG, a whole one."""
    runs = {}
    for name, options in DOORS.items():
        stopped = {"stop": KEPT_STEPS + 1, "save_steps": KEPT_STEPS}
        ways = {"stopped": stopped, "resumed": {"resume": True, "save_steps": KEPT_STEPS}}
        if LONG:
            ways["whole"] = {"save_strategy": "no"}
        for way, more in ways.items():
            where = {"folder": str(folder / name), "log": str(folder / f"{name}.{way}")}
            runs[f"{name}.{way}"] = where | options | more
    return runs


def found_by(outcome):
    figures = outcome["figures"]
    return [(entry["flowdata/coverage"], entry["flowdata/draws/group_g0"]) for entry in figures]


def all_rise_by(number, figures):
    found = [value for name, value in figures.items() if "/loss_change/" in name]
    return bool(found) and found == pytest.approx([number] * len(found))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_trainer_logs_the_figures_of_what_all_processes_were_trained_on(tmp_path, ranks):
    runs = lives(tmp_path)
    where = {"folder": str(tmp_path / "alone"), "log": str(tmp_path / "alone.log")}
    alone = where | {"alone": True, "save_strategy": "no", "num_train_epochs": 1}
    runs["logged on rank 0 alone"] = alone
    if ranks == 1:
        outcomes = {name: [frameworks_monitor.run(**options)] for name, options in runs.items()}
    else:
        outcomes = torchrun("frameworks_monitor.py", runs, tmp_path)

    def batches(name):
        by_rank = [rank["rows"] for rank in logged(tmp_path / name, ranks)]
        return [flat(parts) for parts in zip(*by_rank, strict=True)]

    for name, options in DOORS.items():
        accumulated = options.get("gradient_accumulation_steps", 1)
        draws, share = options.get("draws", 24), 2 if "split" in name else 2 * ranks
        an_epoch = draws // share if name == "dropped" else -(-draws // share)
        ends = ends_of_steps(an_epoch * EPOCHS, an_epoch, accumulated)
        kept = ends[KEPT_STEPS - 1] + 1
        life = batches(f"{name}.stopped")[:kept] + batches(f"{name}.resumed")
        expected = np.array(list(figures_of(life)))[ends]
        for rank in range(ranks):
            # The history has the figures before the checkpoint too.
            assert found_by(outcomes[f"{name}.resumed"][rank]) == pytest.approx(expected), name
            # By 1 on rank 0, and by 3 on rank 1.
            for entry in outcomes[f"{name}.stopped"][rank]["figures"]:
                assert all_rise_by(ranks, entry), name
        if LONG:
            expected = np.array(list(figures_of(batches(f"{name}.whole"))))[ends]
            assert found_by(outcomes[f"{name}.whole"][0]) == pytest.approx(expected), name
    first = outcomes["logged on rank 0 alone"][0]["figures"]
    assert len(first) == 2 * 24 // (2 * ranks) - 1
    assert all_rise_by(ranks, first[-1])


def test_lightning_counts_the_draws_of_all_ranks(tmp_path):
    doors = ["rank sampler", "sampler", "shuffled"]
    runs = {door: {"framework": "lightning", "door": door} for door in doors}
    for door, ranks in torchrun("frameworks_monitor.py", runs, tmp_path).items():
        batches = [flat(parts) for parts in zip(*(rank["rows"] for rank in ranks), strict=True)]
        assert len(batches) == 6
        expected = [coverage for coverage, _ in figures_of(batches, rows=lightning_runs.ROWS)]
        for rank in ranks:
            found = [figures["flowdata/coverage"] for figures in rank["figures"]]
            assert found == pytest.approx(expected), door
            eighth = [sum(batch.count(row) for row in (16, 17)) for batch in batches]
            shares = np.cumsum(eighth) / np.cumsum([len(batch) for batch in batches])
            found = [figures["flowdata/draws/decile_8"] for figures in rank["figures"]]
            assert found == pytest.approx(shares), door
        first, second = ranks
        assert all_rise_by(1, first["figures"][-1])
        assert all_rise_by(3, second["figures"][-1])
        assert all_rise_by(2, first["logged"]), door
        assert all_rise_by(2, first["gathered"]), door
        assert first["gathered"] == second["gathered"]


def run(folder, name, **options):
    return frameworks_monitor.run(str(folder / "run"), str(folder / name), **options)


def test_without_a_known_order_the_trainer_logs_the_figures_of_whole_epochs(tmp_path):
    figures = run(tmp_path, "log", save_strategy="no", **UNKNOWN)["figures"]
    [rank] = logged(tmp_path / "log", 1)
    expected = list(figures_of(rank["rows"]))
    assert [entry["step"] for entry in figures] == list(range(12, 37))
    assert [entry["flowdata/coverage"] for entry in figures[::12]] == [
        coverage for coverage, _ in expected[11::12]
    ]
    assert figures[0]["flowdata/draws/group_g0"] == pytest.approx(expected[11][1])
    first, last = (
        {name: value for name, value in figures[number].items() if "/draws/" in name}
        for number in (0, 11)
    )
    assert len(first) == 13
    assert first == last


def test_a_checkpoint_of_a_run_without_monitor_counts_what_was_trained_on_before(tmp_path):
    options = {"save_steps": 14, "monitored": False, "stop": 14}
    run(tmp_path, "log", **options)
    outcome = run(tmp_path, "log", resume=True, save_strategy="no")
    [rank] = logged(tmp_path / "log", 1)
    expected = list(figures_of(rank["rows"]))[14:]
    assert found_by(outcome) == pytest.approx(np.array(expected))


WEIGHTS = FlowWeights.from_losses(-np.log(lightning_runs.WEIGHTS / 30))
GROUPS = [row % 3 for row in range(lightning_runs.ROWS)]


def sampled(**options):
    return DataLoader(DATA, batch_size=4, sampler=FlowSampler(WEIGHTS, seed=5), **options)


def served():
    return DataLoader(FlowDataset(DATA, WEIGHTS, seed=5), batch_size=4)


def fit(folder, make_loader, *callbacks, **options):
    """The module, and what was logged at each step."""
    module = Reading(make_loader)
    monitor = MonitorCallback(Monitor(WEIGHTS, groups=GROUPS))
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 3, "log_every_n_steps": 1, "logger": CSVLogger(folder)} | options
    trainer = make_trainer(FlowCallback(), monitor, *callbacks, **settings)
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=False)
    [path] = Path(folder).rglob("metrics.csv")
    names = "flowdata/coverage", "flowdata/draws/group_0"
    with path.open() as file:
        lines = [[line[name] for name in names] for line in csv.DictReader(file)]
    return module, np.array([line for line in lines if line[0]], dtype=float)


def expected_of(*modules):
    batches = [rows[""] for module in modules for _, rows in module.batches]
    return np.array(list(figures_of(batches, rows=lightning_runs.ROWS)))


@pytest.mark.parametrize("make_loader", [sampled, served])
def test_lightning_logs_the_figures_of_what_was_trained_on(tmp_path, make_loader):
    module, found = fit(tmp_path, make_loader)
    assert len(found) == 18
    assert found == pytest.approx(expected_of(module))


def test_lightning_logs_when_it_logs_its_own_with_gradients_added_up(tmp_path):
    module, found = fit(tmp_path, sampled, accumulate_grad_batches=2, log_every_n_steps=3)
    assert found == pytest.approx(expected_of(module)[[5, 11, 17]])


@pytest.mark.parametrize("was_monitored", [True, False])
def test_lightning_goes_on_inside_an_epoch(tmp_path, was_monitored):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1)
    if was_monitored:
        first, _ = fit(tmp_path / "first", sampled, saving, enable_checkpointing=True)
    else:
        first = Reading(sampled)
        make_trainer(FlowCallback(), saving, max_epochs=3, enable_checkpointing=True).fit(first)
    [checkpoint] = tmp_path.glob("*step=8.ckpt")
    second, found = fit(tmp_path / "second", sampled, ckpt_path=str(checkpoint))
    first.batches = first.batches[:8]
    assert found == pytest.approx(expected_of(first, second)[8:])


def test_a_monitor_that_cannot_know_says_so(tmp_path):
    def two_loaders():
        return {"a": sampled(), "b": sampled()}

    with pytest.raises(ValueError, match="draws from several of them"):
        fit(tmp_path, two_loaders)
    other = MonitorCallback(Monitor(np.ones(9)))
    with pytest.raises(MismatchError, match="is of 9 rows, and the FlowSampler"):
        make_trainer(FlowCallback(), other).fit(Reading(sampled))
