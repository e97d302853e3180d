"""PacksGuard: collate functions that would let the samples of a pack see each other."""

import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DefaultDataCollator,
    default_data_collator,
)
from transformers.trainer_utils import RemoveColumnsCollator

from flowdata import FlowDataset, FlowDataWarning, FlowPacks, FlowPackSampler, PackCollator
from flowdata.reweight import reweight

pytestmark = pytest.mark.guard
ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5]}]


def first_batch(collate, rows=ROWS, **options):
    packs = FlowPacks(rows, [1.0, 1.0], [3, 2], 6)
    return next(iter(DataLoader(packs, collate_fn=collate, **options)))


REFUSED = r"takes each pack for one sample.*PackCollator"


@pytest.mark.parametrize(
    "collate",
    [
        DataCollatorWithFlattening(),
        DataCollatorForSeq2Seq(None),
        RemoveColumnsCollator(
            DataCollatorWithFlattening(), ["input_ids", "labels", "position_ids"]
        ),
    ],
    ids=lambda collate: type(collate).__name__,
)
def test_a_collator_that_takes_packs_for_samples_is_refused(collate):
    with pytest.raises(ValueError, match=REFUSED):
        first_batch(collate)


@pytest.mark.slow
def test_it_is_refused_in_a_worker_too():
    with pytest.raises(ValueError, match=REFUSED):
        first_batch(DataCollatorWithFlattening(), num_workers=1, multiprocessing_context="fork")


@pytest.mark.slow
@pytest.mark.parametrize("padding_free", [False, True])
def test_those_of_trl_are_refused(padding_free):
    # It takes seconds to import.
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    with pytest.raises(ValueError, match=REFUSED):
        first_batch(DataCollatorForLanguageModeling(0, padding_free=padding_free))


def test_columns_that_are_taken_out_are_missed():
    collate = RemoveColumnsCollator(default_data_collator, ["input_ids", "labels"])
    with pytest.raises(ValueError, match=r"takes position_ids out of the packs.*=False"):
        first_batch(collate)


@pytest.mark.parametrize(
    "collate",
    [
        default_collate,
        default_data_collator,
        DefaultDataCollator(),
        PackCollator(),
        RemoveColumnsCollator(PackCollator(), ["input_ids", "labels", "position_ids"]),
    ],
)
def test_a_collator_that_keeps_positions_is_not(collate):
    batch = first_batch(collate)
    assert sorted(batch["position_ids"].tolist()[0]) == [0, 0, 1, 1, 2]
    assert batch["input_ids"].shape == torch.Size([1, 5])


@pytest.mark.parametrize("collate", [None, default_data_collator, DefaultDataCollator()])
def test_packs_of_different_lengths_are_not_stacked(collate):
    packs = FlowPacks(ROWS, [1.0, 1.0], [3, 2], 3)
    with pytest.raises(ValueError, match="batches of 2 cannot be stacked: give the loader"):
        next(iter(DataLoader(packs, 2, collate_fn=collate)))


@pytest.mark.parametrize("kind", [FlowPacks, FlowDataset])
def test_a_sampler_of_rows_over_draws_is_warned_of(kind):
    packing = {"lengths": [3, 2], "max_length": 3} if kind is FlowPacks else {}
    drawn = kind(ROWS, [1.0, 1.0], **packing)
    sampler = FlowPackSampler([1.0, 1.0], [3, 2], 3)
    loader = DataLoader(drawn, batch_sampler=sampler, collate_fn=list)
    with pytest.warns(FlowDataWarning, match=f"the items of the {kind.__name__} .* draws already"):
        next(iter(loader))


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
def test_a_sampler_of_packs_that_is_given_as_one_of_rows_is_refused(kind):
    sampler = FlowPackSampler([1.0, 1.0], [3, 2], 3)
    with pytest.raises(TypeError, match=r"lists of rows.*use DataLoader\(data, batch_sampler="):
        next(iter(kind(ROWS, batch_size=2, sampler=sampler, collate_fn=list)))
    batches = [*kind(ROWS, batch_sampler=sampler, collate_fn=list)]
    assert sorted(batches, key=str) == [[row] for row in ROWS]


def test_of_what_is_weighted_columns_are_taken_out_too():
    data, collate = reweight(ROWS, [1.0, 3.0], collate_fn=PackCollator())
    with pytest.raises(ValueError, match=r"takes position_ids out of the packs.*=False"):
        first_batch(RemoveColumnsCollator(collate, ["input_ids", "labels"]), data)
    kept = RemoveColumnsCollator(collate, ["input_ids", "labels", "position_ids"])
    assert set(first_batch(kept, data)) == {"input_ids", "labels", "position_ids"}
    data, collate = reweight(ROWS, [1.0, 3.0], collate_fn=DataCollatorWithFlattening())
    with pytest.raises(ValueError, match="takes each pack for one sample"):
        first_batch(collate, data)
