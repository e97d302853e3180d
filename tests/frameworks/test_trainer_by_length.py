"""Batches of like length under the transformers Trainer."""

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from flowdata import ByLength, FlowDataset
from flowdata.errors import FlowDataWarning

LENGTHS = 1 + np.random.default_rng(0).permutation(48)
ROWS = [{"input_ids": [row] * int(length)} for row, length in enumerate(LENGTHS)]


def batches_of(items, folder, strategy):
    arguments = TrainingArguments(
        str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        remove_unused_columns=False,
        train_sampling_strategy=strategy,
    )
    trainer = Trainer(
        torch.nn.Linear(1, 1), arguments, train_dataset=items, data_collator=lambda rows: rows
    )
    loader = trainer.get_train_dataloader()
    return [[row["input_ids"][0] for row in batch] for batch in loader]


def make():
    return FlowDataset(ROWS, np.ones(48), arrange=ByLength(LENGTHS, 4, window=6), seed=1)


def test_read_in_order_the_batches_are_those_of_the_plan(tmp_path):
    items = make()
    batches = batches_of(items, tmp_path, "sequential")
    assert np.array_equal(batches, items.plan.at_epoch(0)[:].reshape(-1, 4))
    # In a window of 24 of 48 lengths, four neighbours are about 8 apart.
    assert np.ptp(LENGTHS[np.array(batches)], axis=1).mean() < 16


@pytest.mark.guard
def test_shuffled_they_are_taken_apart_with_a_warning(tmp_path):
    with pytest.warns(FlowDataWarning, match='train_sampling_strategy="sequential"'):
        batches_of(make(), tmp_path, "random")


@pytest.mark.guard
def test_grouping_by_the_trainer_is_refused_and_by_length_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"arrange=flowdata.ByLength\(lengths, batch_size=...\)"):
        batches_of(make(), tmp_path, "group_by_length")
