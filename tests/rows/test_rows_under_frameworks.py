"""The Trainer draws the plan of each epoch from a stream, and after a checkpoint its rest."""

from collections import Counter

import datasets
import pytest
from keyed_streams import KEYS, ROWS, SEED, make_table, planned
from torch import nn
from transformers import Trainer, TrainingArguments

import flowdata

BATCH = 10


class Seeing(nn.Module):
    """A model that keeps the numbers of the rows it has seen."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def forward(self, number, labels=None):
        self.seen += number.tolist()
        return {"loss": self.layer(number[:, None].float() / ROWS).square().mean()}


def stream():
    rows = {"id": KEYS, "number": [int(key[1:]) for key in KEYS]}
    made = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=4)
    drawn = flowdata.resample_rows(made, make_table(), key="id", seed=SEED)
    return drawn.remove_columns("id").shuffle(seed=1, buffer_size=20)


def train(folder, steps, workers=0, **resume):
    model = Seeing()
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        dataloader_num_workers=workers,
        save_steps=steps,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    Trainer(model, arguments, train_dataset=stream()).train(**resume)
    return model.seen


def numbers(epoch):
    planned_of = planned(make_table(), epoch)
    return Counter({int(key[1:]): times for key, times in planned_of.items()})


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_of_the_trainer_is_that_of_the_plan(tmp_path, workers):
    steps = 3 * ROWS // BATCH
    seen = train(str(tmp_path), steps, workers)
    # With workers some batches are not full, so that the third epoch does not come to its end.
    for epoch in range(2 if workers else 3):
        assert Counter(seen[epoch * ROWS : (epoch + 1) * ROWS]) == numbers(epoch)


@pytest.mark.slow
def test_the_trainer_goes_on_inside_an_epoch(tmp_path):
    """In the first: transformers 5.23 takes all steps of a stream for one epoch."""
    whole = train(str(tmp_path / "whole"), 2 * ROWS // BATCH)
    begun = train(str(tmp_path / "resumed"), 15)
    rest = train(str(tmp_path / "resumed"), 2 * ROWS // BATCH, resume_from_checkpoint=True)
    assert begun + rest == whole
