"""Columns that a model does not take are taken out of weighted rows as out of plain ones."""

import sys
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import default_data_collator
from transformers.trainer_utils import RemoveColumnsCollator

from flowdata import FlowDataset, FlowPacks, PackCollator, WeightedTarget, guards
from flowdata.reweight import patches, reweight

pytestmark = pytest.mark.guard

ROWS = [
    {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "query": "some text", "number": 3},
    {"input_ids": [8, 9, 4], "labels": [-100, 9, 4], "query": "more", "number": 4},
]
WEIGHTS = [1.0, 3.0]
TAKEN = ["input_ids", "labels", "attention_mask"]


class Stream(IterableDataset):
    def __iter__(self):
        for row, weight in zip(ROWS, WEIGHTS, strict=True):
            yield row | {"__weight__": weight}


def rows_of(kind):
    if kind == "stream":
        return reweight(Stream(), collate_fn=default_data_collator)
    if kind == "tokens":
        weights = [[1.0, 1.0], [3.0, 3.0]]
        return reweight(ROWS, weights, level="token", collate_fn=default_data_collator)
    rows = datasets.Dataset.from_list(ROWS) if kind == "datasets" else ROWS
    data, collate = reweight(rows, WEIGHTS, collate_fn=default_data_collator)
    return (FlowDataset(data, [1.0, 1.0]) if kind == "draws" else data), collate


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["lists", "datasets", "draws", "tokens", "stream"])
def test_they_are_taken_out(kind, workers):
    data, collate = rows_of(kind)
    collate = RemoveColumnsCollator(collate, TAKEN)
    seen = {}
    for batch in DataLoader(data, 1, num_workers=workers, collate_fn=collate):
        assert set(batch) == {"input_ids", "labels"}
        assert isinstance(batch["labels"], WeightedTarget)
        seen[batch["input_ids"][0, 0].item()] = batch["labels"].weights.max().item()
    scale = 1.0 if kind == "stream" else 0.5
    assert seen == {5: scale, 8: 3 * scale}


def test_of_packs_too():
    data, collate = reweight(
        [{name: row[name] for name in TAKEN[:2]} for row in ROWS],
        WEIGHTS,
        collate_fn=PackCollator(),
    )
    packs = FlowPacks(data, [1.0, 1.0], [3, 3], max_length=6)
    kept = RemoveColumnsCollator(collate, [*TAKEN, "position_ids"])
    [batch] = DataLoader(packs, collate_fn=kept)
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert sorted(batch["labels"].weights.unique().tolist()) == [0.0, 0.5, 1.5]


def test_with_guards_off_they_are_left():
    def collate(rows):
        assert all("query" in row for row in rows)
        return {"labels": torch.tensor([row["labels"] for row in rows])}

    data, collate = reweight(ROWS, WEIGHTS, collate_fn=collate)
    loader = DataLoader(data, 2, collate_fn=RemoveColumnsCollator(collate, TAKEN))
    guards.off()
    try:
        [batch] = loader
    finally:
        guards.on()
    assert batch["labels"].weights.tolist() == [[0.5] * 3, [1.5] * 3]


class Other:
    def _remove_columns(self, feature, more):
        return feature


@pytest.mark.parametrize("module", [{}, {"RemoveColumnsCollator": Other}])
def test_a_release_that_is_not_as_expected_is_left_as_it_is(module, monkeypatch):
    before = dict(vars(Other))
    monkeypatch.setitem(sys.modules, "transformers.trainer_utils", SimpleNamespace(**module))
    monkeypatch.setattr(patches, "_done", set())
    data, _ = reweight(ROWS, WEIGHTS)
    assert data[0].item == ROWS[0]
    assert dict(vars(Other)) == before


def test_what_has_no_weight_is_pruned_as_ever():
    remover = RemoveColumnsCollator(list, TAKEN)
    reweight(ROWS, WEIGHTS)[0][0]
    plain, other = remover([ROWS[0], (1, 2)])
    assert set(plain) == {"input_ids", "labels"}
    assert other == (1, 2)
