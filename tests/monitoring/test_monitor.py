"""Figures of a Monitor against what plain loops really saw."""

import json

import numpy as np
import pytest
import torch
from shard_files import make_table, names, write_shards
from shard_streams import loader_over, make
from torch.utils.data import DataLoader, Dataset

import flowdata
from flowdata import FlowDataset, FlowPacks, FlowPackSampler, FlowSampler, FlowWeights, Monitor

ROWS, BATCH, EPOCHS = 100, 8, 3
LOSSES = np.random.default_rng(1).exponential(size=ROWS)
GROUPS = np.random.default_rng(2).choice(["maths", "code", "chat"], ROWS)
WEIGHTS = FlowWeights.from_losses(LOSSES)
TENTHS = np.empty(ROWS, dtype=int)
TENTHS[LOSSES.argsort()] = np.arange(ROWS) * 10 // ROWS


class Numbers(Dataset):
    """Rows that are their own number."""

    def __len__(self):
        return ROWS

    def __getitem__(self, row):
        return row


def counted(rows, groups=GROUPS, tenths=TENTHS, drawable=ROWS):
    """The figures of draws, counted row by row."""
    rows = list(rows)
    figures = {"flowdata/coverage": len(set(rows)) / drawable}
    for tenth in range(10):
        share = sum(tenths[row] == tenth for row in rows) / len(rows)
        figures[f"flowdata/draws/decile_{tenth + 1}"] = share
    for group in sorted(set(groups)):
        share = sum(groups[row] == group for row in rows) / len(rows)
        figures[f"flowdata/draws/group_{group}"] = share
    return figures


def monitor_of(drawn, **options):
    return Monitor(drawn, groups=GROUPS, **options)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_with_a_sampler_has_the_figures_of_what_it_saw_at_each_step(workers):
    sampler = FlowSampler(WEIGHTS, seed=1, epoch_size=90)
    monitor, seen = monitor_of(sampler), []
    loader = DataLoader(Numbers(), BATCH, sampler=sampler, num_workers=workers)
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        for batch in loader:
            seen += batch.tolist()
            assert monitor.step(len(batch)).tolist() == batch.tolist()
            assert monitor.figures() == pytest.approx(counted(seen))
            if epoch == 1 and len(seen) > 140:
                # An epoch that is left early; workers have fetched ahead.
                break


@pytest.mark.parametrize("drop_last", [False, True])
def test_each_of_several_ranks_has_the_figures_of_all(drop_last):
    options = {"num_replicas": 3, "seed": 2, "drop_last": drop_last}
    samplers = [FlowSampler(WEIGHTS, rank=rank, **options) for rank in range(3)]
    monitors, seen = [monitor_of(sampler) for sampler in samplers], []
    for _ in range(2):
        loaders = [DataLoader(Numbers(), BATCH, sampler=sampler) for sampler in samplers]
        for batches in zip(*loaders, strict=True):
            seen += torch.cat(batches).tolist()
            for monitor, batch in zip(monitors, batches, strict=True):
                assert monitor.step(len(batch)).tolist() == batch.tolist()
                assert monitor.figures() == pytest.approx(counted(seen))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_run_that_resumes_inside_an_epoch_goes_on_from_its_state(is_told):
    sampler = FlowSampler(WEIGHTS, seed=1)
    monitor, seen = monitor_of(sampler), []
    for _ in range(2):
        for batch in DataLoader(Numbers(), BATCH, sampler=sampler):
            seen += batch.tolist()
            monitor.step(len(batch))
            if len(seen) > 150:
                break
    state = json.loads(json.dumps([sampler.state_dict(len(seen) - ROWS), monitor.state_dict()]))
    # On two ranks now.
    samplers = [FlowSampler(WEIGHTS, rank=rank, num_replicas=2) for rank in range(2)]
    monitor = monitor_of(samplers[1])
    if is_told:
        monitor.load_state_dict(state[1])
        assert monitor.figures() == pytest.approx(counted(seen))
    else:
        seen = []
    for sampler in samplers:
        sampler.load_state_dict(state[0])
    loaders = [DataLoader(Numbers(), BATCH, sampler=sampler) for sampler in samplers]
    for _ in range(2):
        for batches in zip(*loaders, strict=True):
            seen += torch.cat(batches).tolist()
            assert monitor.step(len(batches[1])).tolist() == batches[1].tolist()
            assert monitor.figures() == pytest.approx(counted(seen))


def test_a_data_set_that_is_read_in_order_has_figures_at_each_step():
    dataset = FlowDataset(Numbers(), WEIGHTS, seed=4)
    monitor, seen = monitor_of(dataset, in_order=True), []
    for epoch in (0, 1, 300, 300):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, BATCH):
            seen += batch.tolist()
            assert monitor.step(len(batch)).tolist() == batch.tolist()
            assert monitor.figures() == pytest.approx(counted(seen))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_data_set_that_is_shuffled_has_the_figures_of_whole_epochs(drop_last):
    dataset = FlowDataset(Numbers(), WEIGHTS, seed=4)
    monitor, drawn = monitor_of(dataset), []
    for epoch in range(EPOCHS):
        dataset.set_epoch(epoch)
        before = monitor.figures()
        loader = DataLoader(dataset, BATCH, shuffle=True, drop_last=drop_last)
        for number, batch in enumerate(loader):
            assert monitor.step(len(batch)) is None
            if number < 11:
                assert monitor.figures() == before
        drawn += dataset.plan[:].tolist()
        assert monitor.figures() == pytest.approx(counted(drawn))
    again = monitor_of(dataset)
    again.load_state_dict(monitor.state_dict())
    assert again.figures() == monitor.figures()


@pytest.mark.parametrize("kind", ["sampler", "data set"])
def test_packs_are_counted_by_the_rows_in_them(kind):
    lengths = np.random.default_rng(3).integers(1, 20, ROWS)
    rows = [{"input_ids": [row] * length} for row, length in enumerate(lengths.tolist())]
    options = {"max_length": 40, "batch_size": 4, "seed": 1}
    if kind == "sampler":
        drawn = FlowPackSampler(WEIGHTS, lengths, **options)
        loader = DataLoader(rows, batch_sampler=drawn, collate_fn=flowdata.pack_rows)
    else:
        drawn = FlowPacks(rows, WEIGHTS, lengths, **options)
        loader = DataLoader(drawn, batch_size=None)
    monitor, seen = monitor_of(drawn, in_order=True), []
    for epoch in range(2):
        drawn.set_epoch(epoch)
        for pack in loader:
            starts = pack["position_ids"].flatten() == 0
            rows_in_it = pack["input_ids"].flatten()[starts].tolist()
            seen += rows_in_it
            assert sorted(monitor.step(1)) == sorted(rows_in_it)
            assert monitor.figures() == pytest.approx(counted(seen))


def test_a_stream_has_the_figures_of_whole_epochs(tmp_path):
    urls = write_shards(tmp_path)
    table = make_table(urls)
    stream = make(urls, table, batch_size=8)
    rows = {name: row for row, name in enumerate(names(table))}
    tenths = np.empty(len(table), dtype=int)
    tenths[table.losses.argsort(kind="stable")] = np.arange(len(table)) * 10 // len(table)
    groups = np.arange(len(table)) % 3
    monitor, seen = Monitor(stream, groups=groups), []
    for epoch in range(2):
        stream.set_epoch(epoch)
        for batch in loader_over(stream, workers=2):
            seen += [rows[name] for name in batch]
            monitor.step(len(batch))
        assert monitor.figures() == pytest.approx(counted(seen, groups, tenths, len(table)))


def test_rows_of_weight_0_and_rows_without_a_loss_do_not_count_against_coverage():
    losses = LOSSES.copy()
    losses[:20] = np.nan
    sampler = FlowSampler(FlowWeights.from_losses(losses, on_invalid="drop"), seed=1)
    monitor = Monitor(sampler)
    seen = list(sampler)
    monitor.step(len(seen))
    figures = monitor.figures()
    assert figures["flowdata/coverage"] == len(set(seen)) / 80
    shares = [figures[f"flowdata/draws/decile_{tenth}"] for tenth in range(1, 11)]
    assert sum(shares) == pytest.approx(1.0)


def test_weights_of_ones_own_have_no_deciles_but_by_losses_that_are_given():
    sampler = FlowSampler(WEIGHTS.values)
    rows = list(sampler)
    plain, told = Monitor(sampler), Monitor(sampler, losses=LOSSES)
    for monitor in (plain, told):
        monitor.step(len(rows))
    assert set(plain.figures()) == {"flowdata/coverage"}
    assert len(told.figures()) == 11
    with pytest.raises(ValueError, match="no scored losses"):
        plain.log_losses([0], [1.0])
    with pytest.raises(ValueError, match="no deciles"):
        plain.plot()
    with pytest.raises(flowdata.MismatchError, match="99 losses for 100 rows"):
        Monitor(sampler, losses=LOSSES[1:])


def test_the_groups_that_weights_were_made_by_are_those_of_the_figures():
    weights = FlowWeights.from_losses(LOSSES, groups=GROUPS, shares="equal")
    sampler = FlowSampler(weights, epoch_size=99)
    monitor, _ = Monitor(sampler), list(sampler)
    monitor.step(99)
    shares = [monitor.figures()[f"flowdata/draws/group_{name}"] for name in set(GROUPS)]
    assert shares == pytest.approx([1 / 3] * 3)


def test_of_very_many_groups_the_smallest_are_taken_together():
    sampler = FlowSampler(WEIGHTS)
    monitor, rows = Monitor(sampler, groups=range(ROWS)), list(sampler)
    monitor.step(ROWS)
    of_groups = {name: v for name, v in monitor.figures().items() if "group_" in name}
    assert len(of_groups) == 51
    assert sum(of_groups.values()) == pytest.approx(1.0)
    assert of_groups["flowdata/draws/group_7"] == rows.count(7) / ROWS


def test_a_state_of_other_draws_is_refused_and_changes_nothing():
    sampler = FlowSampler(WEIGHTS)
    monitor, _ = monitor_of(sampler), list(sampler)
    monitor.step(30)
    before, other = monitor.figures(), Monitor(FlowSampler(WEIGHTS, epoch_size=50)).state_dict()
    good = monitor.state_dict()
    for state in (
        other,
        [],
        good | {"stretches": [[0, 0, "plan", 0]]},
        good | {"stretches": [[0, 0, "sideways", 0, 3]]},
        good | {"losses": {"sums": [1.0], "given": 1, "left_out": 0}},
        good | {"version": 9},
    ):
        with pytest.raises(flowdata.MismatchError):
            monitor.load_state_dict(state)
    assert monitor.figures() == before


def test_a_monitor_of_weights_alone_says_that_it_knows_no_draws():
    monitor = Monitor(WEIGHTS)
    monitor.log_losses([1, 2], [0.5, 0.5])
    assert len(monitor.figures()) == 4
    with pytest.raises(ValueError, match=r"make it of the sampler or data set, Monitor\(sampler\)"):
        monitor.step(8)
    again = Monitor(WEIGHTS)
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert again.figures() == monitor.figures()


def test_a_sampler_of_torch_is_none_of_ours():
    with pytest.raises(TypeError, match=r"of flowdata, or of weights, got RandomSampler"):
        Monitor(torch.utils.data.RandomSampler(Numbers()))
