"""The transformers Trainer with a loader of one's own, trained more than once, or searching."""

import logging

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from flowdata import EpochPlan, FlowDataset, FlowSampler
from flowdata.frameworks.trainer import FlowCallback

pytestmark = pytest.mark.slow

ROWS, BATCH = 16, 4
WEIGHTS = np.arange(1, ROWS + 1.0)
DATA = [{"x": float(row), "labels": float(row)} for row in range(ROWS)]
DOORS = {
    "data set": lambda: FlowDataset(DATA, WEIGHTS, seed=3),
    "sampler": lambda: FlowSampler(WEIGHTS, seed=3),
}


def planned(epoch):
    return EpochPlan(WEIGHTS, seed=3).at_epoch(epoch)[:].tolist()


class Model(torch.nn.Module):
    """Notes the rows it is trained on; runs out of memory on more than some."""

    def __init__(self, most=ROWS):
        super().__init__()
        self.factor, self.seen, self.most = torch.nn.Parameter(torch.zeros(())), [], most

    def forward(self, x, labels):
        if self.training:
            if len(x) > self.most:
                raise RuntimeError("CUDA out of memory.")
            self.seen += [int(value) for value in x]
        return (((x * self.factor - labels) ** 2).mean(), x)

    def epochs(self):
        return [self.seen[start : start + ROWS] for start in range(0, len(self.seen), ROWS)]


class Loaders:
    """Several loaders, one after the other, as transformers' own test of loaders has it."""

    def __init__(self, *loaders):
        self.loaders = loaders

    def __len__(self):
        return sum(map(len, self.loaders))

    def __iter__(self):
        for loader in self.loaders:
            yield from loader


class Hidden:
    """A loader that shows nothing of what it draws from."""

    def __init__(self, loader):
        self.length, self.begin = len(loader), lambda: iter(loader)

    def __len__(self):
        return self.length

    def __iter__(self):
        return self.begin()


class Endless:
    """A loader that does not tell its length."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


def train(door, folder, wrap=None, told=True, most=ROWS, **options):
    """The trainer and its model, not trained yet."""

    class Own(Trainer):
        def get_train_dataloader(self):
            loader = super().get_train_dataloader()
            return loader if wrap is None else wrap(loader)

        def _get_train_sampler(self, *args):
            return door if isinstance(door, FlowSampler) else super()._get_train_sampler(*args)

    logging.getLogger("transformers").setLevel(logging.ERROR)
    settings = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "num_train_epochs": 2,
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "sequential",
    }
    model = Model(most)
    trainer = Own(
        model,
        TrainingArguments(str(folder), **settings | options),
        train_dataset=DATA if isinstance(door, FlowSampler) else door,
        eval_dataset=DATA[:BATCH],
        callbacks=[FlowCallback(door) if wrap and told else FlowCallback()],
    )
    return trainer, model


@pytest.mark.parametrize("wrap", [Loaders, Endless])
@pytest.mark.parametrize("make", DOORS.values(), ids=DOORS)
def test_a_loader_of_ones_own_draws_what_the_callback_is_told_of(tmp_path, make, wrap):
    steps = {"max_steps": 8} if wrap is Endless else {}
    trainer, model = train(make(), tmp_path, wrap, **steps)
    trainer.train()
    assert model.epochs() == [planned(0), planned(1)]


@pytest.mark.parametrize("make", DOORS.values(), ids=DOORS)
def test_a_loader_of_ones_own_goes_on_in_the_next_epoch(tmp_path, make):
    saved = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 3}
    train(make(), tmp_path, Loaders, **saved)[0].train()
    trainer, model = train(make(), tmp_path, Loaders, **saved)
    trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-4")
    assert model.epochs() == [planned(1), planned(2)]


@pytest.mark.parametrize("make", DOORS.values(), ids=DOORS)
def test_what_a_loader_of_ones_own_draws_from_is_found_where_it_keeps_it(tmp_path, make):
    trainer, model = train(make(), tmp_path, Loaders, told=False)
    trainer.train()
    assert model.epochs() == [planned(0), planned(1)]


def test_a_loader_in_which_nothing_is_found_asks_for_what_it_draws_from(tmp_path):
    trainer, _ = train(DOORS["sampler"](), tmp_path, Hidden, told=False)
    with pytest.raises(ValueError, match=r"loader of your own.*FlowCallback\(dataset\)"):
        trainer.train()


def test_a_callback_that_was_made_again_without_its_data_is_refused(tmp_path):
    saved = {"save_strategy": "steps", "save_steps": 4}
    train(DOORS["sampler"](), tmp_path, Loaders, **saved)[0].train()
    restoring = saved | {"restore_callback_states_from_checkpoint": True, "num_train_epochs": 3}
    trainer, _ = train(DOORS["sampler"](), tmp_path, Loaders, **restoring)
    with pytest.raises(RuntimeError, match="again without its data"):
        trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-4")


@pytest.mark.parametrize("make", DOORS.values(), ids=DOORS)
def test_training_once_more_begins_at_the_first_epoch_as_the_trainer_counts(tmp_path, make):
    trainer, model = train(make(), tmp_path)
    trainer.train()
    trainer.evaluate()
    trainer.train()
    assert model.epochs() == 2 * [planned(0), planned(1)]


@pytest.mark.parametrize("make", DOORS.values(), ids=DOORS)
def test_training_goes_on_from_a_checkpoint_in_the_process_that_saved_it(tmp_path, make):
    trainer, model = train(
        make(), tmp_path, save_strategy="steps", save_steps=6, num_train_epochs=3
    )
    trainer.train()
    model.seen.clear()
    trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-6")
    assert model.seen == planned(1)[2 * BATCH :] + planned(2)


def test_a_batch_size_that_is_found_draws_whole_epochs_and_is_known_on_resuming(tmp_path):
    found = {
        "auto_find_batch_size": True,
        "per_device_train_batch_size": BATCH + 1,
        "save_strategy": "steps",
        "save_steps": 6,
        "num_train_epochs": 3,
    }
    trainer, model = train(DOORS["sampler"](), tmp_path, most=BATCH, **found)
    trainer.train()
    assert model.epochs() == [planned(epoch) for epoch in range(3)]
    trainer, model = train(DOORS["sampler"](), tmp_path, most=BATCH, **found)
    trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-6")
    assert model.seen == planned(1)[2 * BATCH :] + planned(2)
    trainer, _ = train(DOORS["sampler"](), tmp_path, most=BATCH - 1, **found)
    with pytest.raises(RuntimeError, match="4 draws a step, this one has 3"):
        trainer.train(resume_from_checkpoint=f"{tmp_path}/checkpoint-6")
