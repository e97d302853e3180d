"""FlowPacks: the samples of each epoch's draws, whole, in packs that a model reads one by one."""

import re
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from packed_samples import as_samples, joined, samples_of, token_rows
from torch.utils.data import DataLoader, Dataset, default_collate

from flowdata import (
    FlowDataset,
    FlowPacks,
    InvalidLossError,
    LossTable,
    MismatchError,
    PackCollator,
    Strata,
)

LENGTHS = np.random.default_rng(0).integers(1, 30, 60)
ROWS = token_rows(LENGTHS)
WEIGHTS = np.random.default_rng(1).random(60)
MAX_LENGTH = 64
WORKERS = {"num_workers": 2, "multiprocessing_context": "fork"}
LOADERS = [
    pytest.param({}, id="one process"),
    pytest.param(WORKERS, id="workers"),
    pytest.param(WORKERS | {"persistent_workers": True}, id="persistent workers"),
    pytest.param(
        {"num_workers": 2, "multiprocessing_context": "spawn", "persistent_workers": True},
        id="spawned workers",
        marks=pytest.mark.slow,
    ),
]


def make(rows=ROWS, weights=WEIGHTS, lengths=LENGTHS, max_length=MAX_LENGTH, **options):
    return FlowPacks(rows, weights, lengths, max_length, **{"seed": 3} | options)


def expected(packs, epoch, rows=ROWS):
    """The samples of each pack of an epoch, as its plan says."""
    return [as_samples([rows[row] for row in pack]) for pack in packs.plan.at_epoch(epoch)]


@examples(40)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=12, max_size=30),
    batch_size=st.sampled_from([1, 3]),
    epoch_size=st.sampled_from(["full", 2.0]),
    kind=st.sampled_from(["systematic", "strata", "multinomial"]),
    data=st.data(),
)
def test_packs_are_whole_samples_as_often_as_the_plan_draws_them(
    lengths, batch_size, epoch_size, kind, data
):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(lengths), max_size=len(lengths)))
    options = {
        "systematic": {"batch_size": batch_size},
        "strata": {"batch_size": batch_size, "arrange": Strata(np.arange(len(lengths)) % 2, 4)},
        "multinomial": {"scheme": "multinomial"},
    }[kind]
    rows = token_rows(lengths)
    packs = make(rows, weights, lengths, 24, epoch_size=epoch_size, **options)
    count = len(packs)
    assert count % options.get("batch_size", 1) == 0
    for epoch in range(3):
        packs.set_epoch(epoch)
        made = [packs[place] for place in range(len(packs))]
        assert len(made) == count
        assert max(len(pack["input_ids"]) for pack in made) <= 24
        assert [samples_of(pack) for pack in made] == expected(packs, epoch, rows)
        assert {tensor.dtype for pack in made for tensor in pack.values()} == {torch.int64}
        drawn = Counter(row for pack in packs.plan for row in pack.tolist())
        counts = packs.plan.plan.counts()
        assert [drawn[row] for row in range(len(rows))] == counts.tolist()


@pytest.mark.parametrize("options", LOADERS)
def test_each_pass_of_a_loader_is_an_epoch_of_its_own(options):
    torch.manual_seed(0)
    packs = make(batch_size=4)
    collate = PackCollator(flatten=True)
    loaders = [
        DataLoader(packs, 4, shuffle=mixed, collate_fn=collate, **options) for mixed in (0, 1)
    ]
    for epoch in range(4):
        found = joined(map(samples_of, loaders[epoch % 2]))
        planned = joined(expected(packs, epoch))
        assert sorted(found) == sorted(planned)
        assert epoch % 2 or found == planned
    packs.set_epoch(7)
    assert joined(map(samples_of, loaders[0])) == joined(expected(packs, 7))


def test_a_list_a_slice_and_an_array_of_numbers_give_lists_of_packs():
    packs = make()
    packs.set_epoch(1)
    every = expected(packs, 1)
    for numbers in (slice(2, 5), [2, 3, 4], np.array([2, 3, 4]), torch.tensor([2, 3, 4])):
        assert [samples_of(pack) for pack in packs[numbers]] == every[2:5]
    assert packs[:0] == packs[[]] == []
    assert samples_of(packs[-1]) == every[-1]
    with pytest.raises(IndexError, match=f"pack {len(packs)} is outside an epoch of"):
        packs[len(packs)]
    with pytest.raises(TypeError, match="items are packs, by number"):
        packs["input_ids"]


class CountingRows(Dataset):
    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]

    def __getitems__(self, rows):
        self.asked.append(list(rows))
        return [self.rows[row] for row in rows]


def test_the_rows_of_a_batch_of_packs_are_fetched_at_once():
    rows = CountingRows(ROWS)
    packs = make(rows)
    list(DataLoader(packs, 3, collate_fn=PackCollator()))
    planned = [pack.tolist() for pack in packs.plan.at_epoch(0)]
    assert rows.asked == [joined(planned[start : start + 3]) for start in range(0, len(packs), 3)]


def test_rows_of_any_kind_make_the_same_packs():
    table = datasets.Dataset.from_list(ROWS)
    texts = [f"text {row}" for row in range(len(ROWS))]
    kinds = [
        [{name: np.array(value) for name, value in row.items()} for row in ROWS],
        [{name: torch.tensor(value) for name, value in row.items()} for row in ROWS],
        [{name: tuple(value) for name, value in row.items()} for row in ROWS],
        table,
        table.with_format("torch"),
        table.with_format("numpy"),
        table.add_column("text", texts).add_column("number", list(range(len(ROWS)))),
        [row | {"attention_mask": [1] * len(row["input_ids"])} for row in ROWS],
        [row | {"token_type_ids": [0] * len(row["input_ids"])} for row in ROWS],
        [row | {"position_ids": list(range(len(row["input_ids"])))} for row in ROWS],
        [row | {"turns": [{"role": "user"}], "seen": True, "nothing": None} for row in ROWS],
    ]
    for rows in kinds:
        packs = make(rows)
        assert [samples_of(packs[place]) for place in range(3)] == expected(packs, 0)[:3]


@pytest.mark.parametrize(
    "mask", ["completion_mask", "assistant_masks", "assistant_mask", "loss_mask"]
)
def test_masks_of_trl_say_which_tokens_are_learned(mask):
    masked = [
        {"input_ids": row["input_ids"], mask: [int(label >= 0) for label in row["labels"]]}
        for row in ROWS
    ]
    packs = make(masked)
    assert samples_of(packs[0]) == expected(packs, 0)[0]
    both = [row | {"labels": given["labels"]} for row, given in zip(masked, ROWS, strict=True)]
    assert samples_of(make(both)[0]) == expected(packs, 0)[0]
    packs = make([{"input_ids": row["input_ids"]} for row in ROWS])
    whole = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in ROWS]
    assert samples_of(packs[0]) == expected(packs, 0, whole)[0]


def test_lengths_may_be_those_of_a_table():
    table = LossTable.from_losses(np.ones(len(ROWS)), lengths=LENGTHS)
    given = make(weights=np.ones(len(ROWS)))
    for packs in (
        FlowPacks(ROWS, table, max_length=MAX_LENGTH, seed=3),
        make(weights=np.ones(len(ROWS)), lengths=table),
    ):
        assert [pack.tolist() for pack in packs.plan] == [pack.tolist() for pack in given.plan]
        assert packs.plan.identity()["packs"] == given.plan.identity()["packs"]


def test_a_table_with_rows_that_have_no_loss_says_how_the_others_are_drawn():
    losses = np.where(np.arange(len(ROWS)) == 2, np.nan, 1.0)
    table = LossTable.from_losses(losses, lengths=LENGTHS)
    advice = 'table.weights(on_invalid="drop")'
    with pytest.raises(InvalidLossError, match=re.escape(advice)):
        FlowPacks(ROWS, table, max_length=MAX_LENGTH)
    packs = FlowPacks(ROWS, table.weights(on_invalid="drop"), table, max_length=MAX_LENGTH)
    drawn = np.concatenate(list(packs.plan))
    assert 2 not in drawn
    assert drawn.size == len(ROWS)


def test_rows_that_are_too_long_are_refused_or_cut():
    with pytest.raises(ValueError, match=r"packs hold 20 tokens: .* longer"):
        make(max_length=20)
    packs = make(max_length=20, too_long="truncate")
    cut = [{name: value[:20] for name, value in row.items()} for row in ROWS]
    assert [samples_of(packs[place]) for place in range(5)] == expected(packs, 0, cut)[:5]
    # Lengths of rows that scoring has cut.
    clipped = make(max_length=20, lengths=np.minimum(LENGTHS, 20), too_long="truncate")
    assert clipped.plan.plan.counts().tolist() == packs.plan.plan.counts().tolist()
    assert len(clipped[0]["input_ids"]) <= 20


def changed(**columns):
    """Rows of which all have something wrong."""
    return [row | {name: make(row) for name, make in columns.items()} for row in ROWS]


WRONG = {
    "no input_ids": ([{"text": "a"}] * 60, TypeError, r"has no input_ids \(keys \['text'\]\)"),
    "no dict": ([(1, 2)] * 60, TypeError, r"has no input_ids \(tuple\)"),
    "two axes": (
        changed(input_ids=lambda row: [row["input_ids"]]), ValueError, "whole numbers of shape"
    ),
    "floats": (changed(input_ids=lambda row: [0.5]), ValueError, "whole numbers of shape"),
    "other length": (
        changed(input_ids=lambda row: [*row["input_ids"], 1]),
        MismatchError,
        r"row \d+ has \d+ tokens, but a length of \d+ was given for it",
    ),
    "few labels": (changed(labels=lambda _: []), ValueError, "input_ids, but 0 labels"),
    "padded": (
        changed(attention_mask=lambda row: [0] * len(row["input_ids"])), ValueError, "is padded"
    ),
    "a pack": (
        changed(position_ids=lambda row: [1] * len(row["input_ids"])), ValueError, "a pack already"
    ),
    "a pack of TRL": (changed(seq_lengths=lambda _: [1]), ValueError, "it is a pack of several"),
    "an image": (
        changed(pixel_values=lambda _: np.ones((2, 2))), ValueError, "has 'pixel_values', an array"
    ),
    "segments": (
        changed(token_type_ids=lambda row: [1] * len(row["input_ids"])),
        ValueError,
        "has 'token_type_ids', an array",
    ),
    "bad mask": (changed(completion_mask=lambda _: [2]), ValueError, "must be a 0 or 1 for each"),
    "mask against labels": (
        changed(
            labels=lambda row: row["input_ids"],
            completion_mask=lambda row: [0] * len(row["input_ids"]),
        ),
        ValueError,
        "has labels of tokens that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_rows_that_cannot_be_packed_are_named(wrong):
    rows, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message) as error:
        make(rows)[0]
    assert "row " in str(error.value)


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="packs need lengths"):
        FlowPacks(ROWS, WEIGHTS, max_length=MAX_LENGTH)
    with pytest.raises(TypeError, match="max_length= is needed"):
        FlowPacks(ROWS, WEIGHTS, LENGTHS)
    with pytest.raises(ValueError, match="has no lengths of its rows"):
        FlowPacks(ROWS, LossTable.from_losses(np.ones(60)), max_length=MAX_LENGTH)
    with pytest.raises(MismatchError, match="lengths are of 59 rows"):
        make(lengths=LENGTHS[:-1])
    with pytest.raises(MismatchError, match="the data set has 59 rows"):
        make(ROWS[:-1])
    with pytest.raises(TypeError, match="a FlowPacks has draws, which are no rows"):
        FlowPacks(make(), np.ones(len(make())), max_length=MAX_LENGTH)
    with pytest.raises(TypeError, match="a FlowPacks has draws, which are no rows"):
        FlowDataset(make(), np.ones(len(make())))


def test_padded_packs_are_filled_by_samples_of_one_token_that_is_not_learned():
    packs = make()
    items = packs[:3]
    batch = PackCollator(pad_token_id=49)(items)
    assert (PackCollator(None)(items)["input_ids"] == 0).any()
    width = max(len(item["input_ids"]) for item in items)
    for row, item in enumerate(items):
        size = len(item["input_ids"])
        for name, fill in (("input_ids", 49), ("labels", -100), ("position_ids", 0)):
            assert batch[name].shape == (3, width)
            assert batch[name][row, :size].equal(item[name])
            assert (batch[name][row, size:] == fill).all()
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    single = next(iter(DataLoader(packs, collate_fn=PackCollator())))
    plain = next(iter(DataLoader(make(), collate_fn=default_collate)))
    assert {name: value.tolist() for name, value in single.items()} == {
        name: value.tolist() for name, value in plain.items()
    }


@pytest.mark.parametrize("wrong", ["<pad>", [{"input_ids": [1]}], 0.0, True])
def test_a_collator_is_made_with_the_number_of_a_token(wrong):
    with pytest.raises(TypeError, match=r"collate_fn=PackCollator\(tokenizer.pad_token_id\)"):
        PackCollator(wrong)
    [pack] = make(weights=np.eye(len(ROWS))[0], epoch_size=1)[:]
    assert PackCollator(np.int64(7))([pack])["input_ids"].tolist() == [pack["input_ids"].tolist()]


def test_a_collator_is_given_packs_with_their_positions():
    with pytest.raises(TypeError, match="these packs have no position_ids"):
        PackCollator()(ROWS[:2])
    with pytest.raises(TypeError, match="the packs of FlowPacks, got int"):
        PackCollator()([1, 2])
