"""Checkpoints under Lightning: saved in any hook, before our callback or after, of any loader."""

import pytest
from lightning.pytorch import Callback
from lightning_runs import (
    BATCH,
    BATCHES,
    DATA,
    ROWS,
    Reading,
    fit,
    make_trainer,
    planned,
    sampler,
)
from torch.utils.data import BatchSampler, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import BatchSampler as StatefulBatchSampler

from flowdata.frameworks.lightning import FlowCallback

pytestmark = pytest.mark.slow

EPOCH, INSIDE = 1, 2
# How many batches of epoch 1 were trained on where each hook of its third batch, or of the epoch,
# saves.
HOOKS = {
    "on_train_epoch_start": 0,
    "on_train_batch_start": 2,
    "on_before_backward": 2,
    "on_after_backward": 2,
    "on_before_optimizer_step": 2,
    "on_before_zero_grad": 2,
    "on_exception": 2,
    "on_train_batch_end": 3,
    "on_validation_start": BATCHES,
    "on_validation_end": BATCHES,
    "on_train_epoch_end": BATCHES,
    "on_train_end": BATCHES,
}


class Save(Callback):
    """Saves once, in a hook of epoch 1, in its third batch if there are several."""

    def __init__(self, hook, path):
        self.path, self.saved = path, False
        self.batches = {"on_train_batch_start", "on_train_batch_end"}
        self.batches |= {name for name in HOOKS if "before" in name or "after" in name}
        self.of_a_batch = hook in self.batches
        setattr(self, hook, self.save)

    def save(self, trainer, *args):
        is_there = trainer.current_epoch >= EPOCH and not self.saved
        if self.of_a_batch:
            is_there &= trainer.fit_loop.epoch_loop.batch_idx == INSIDE
        if is_there:
            self.saved = True
            trainer.save_checkpoint(self.path)


class Validated(Reading):
    def __init__(self, *args, fails=False):
        super().__init__(*args)
        self.fails = fails

    def val_dataloader(self):
        return DataLoader(DATA, BATCH)

    def validation_step(self, batch, batch_idx):
        pass

    def training_step(self, batch, batch_idx):
        if self.fails and (self.trainer.current_epoch, batch_idx) == (EPOCH, INSIDE):
            raise InterruptedError
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("order", ["before ours", "after ours"])
@pytest.mark.parametrize(("hook", "trained"), HOOKS.items(), ids=HOOKS)
def test_a_checkpoint_of_any_hook_leads_to_the_batches_that_were_not_trained_on(
    tmp_path, hook, trained, order
):
    save = Save(hook, tmp_path / "a.ckpt")
    callbacks = [save, FlowCallback()] if order == "before ours" else [FlowCallback(), save]
    module = Validated(fails=hook == "on_exception")
    if module.fails:
        with pytest.raises(InterruptedError):
            fit(*callbacks, module=module)
    else:
        fit(*callbacks, module=module)
    assert save.saved
    drawn = fit(module=Validated(), ckpt_path=save.path, max_epochs=3).epochs()
    left = planned(EPOCH)[trained * BATCH :]
    assert drawn == ({EPOCH: left} if left else {}) | {2: planned(2)}


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
def test_a_checkpoint_of_a_validation_between_batches_leads_to_those_after_it(tmp_path, hook):
    save = Save(hook, tmp_path / "a.ckpt")
    fit(save, FlowCallback(), module=Validated(), val_check_interval=2)
    drawn = fit(module=Validated(), ckpt_path=save.path, val_check_interval=2).epochs()
    assert drawn == {EPOCH: planned(EPOCH)[2 * BATCH :]}


def test_a_checkpoint_that_is_saved_after_training_leads_to_the_next_epoch(tmp_path):
    trainer, module = make_trainer(FlowCallback()), Reading()
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert fit(ckpt_path=tmp_path / "a.ckpt", max_epochs=3).epochs() == {2: planned(2)}


def bulk():
    return DataLoader(DATA, sampler=BatchSampler(sampler(), BATCH, False), batch_size=None)


def of_batches(kind, batches, **options):
    return lambda: kind(DATA, batch_sampler=batches(sampler(), BATCH, False), **options)


class Repeated:
    """A sampler of one's own around ours."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        return (row for row in self.sampler for _ in range(2))

    def __len__(self):
        return 2 * len(self.sampler)


class Doubled(BatchSampler):
    """Batches of twice as many draws as it says."""

    def __init__(self):
        super().__init__(sampler(), BATCH, False)

    def __iter__(self):
        return iter(BatchSampler(self.sampler, 2 * BATCH, False))

    def __len__(self):
        return -(-ROWS // (2 * BATCH))


LOADERS = {
    "bulk loading": bulk,
    "a batch sampler": of_batches(DataLoader, BatchSampler),
    "a batch sampler, workers": of_batches(DataLoader, BatchSampler, num_workers=1),
    "a stateful loader": lambda: StatefulDataLoader(DATA, BATCH, sampler=sampler()),
    "a stateful loader of batches": of_batches(StatefulDataLoader, StatefulBatchSampler),
    "row by row": lambda: DataLoader(DATA, sampler=sampler(), batch_size=None),
}


@pytest.mark.parametrize("make_loader", LOADERS.values(), ids=LOADERS)
def test_each_kind_of_loader_goes_on_inside_an_epoch(tmp_path, make_loader):
    save = Save("on_train_batch_end", tmp_path / "a.ckpt")

    class OneByOne(Reading):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0].reshape(-1)], batch_idx)

    whole = fit(save, FlowCallback(), module=OneByOne(make_loader)).epochs()
    assert whole == {epoch: planned(epoch) for epoch in range(2)}
    resumed = fit(module=OneByOne(make_loader), ckpt_path=save.path).epochs()
    size = 1 if make_loader is LOADERS["row by row"] else BATCH
    assert resumed == {EPOCH: planned(EPOCH)[(INSIDE + 1) * size :]}


UNKNOWN = {
    "batches of another size than said": lambda: DataLoader(DATA, batch_sampler=Doubled()),
    "a sampler that repeats draws": lambda: DataLoader(DATA, BATCH, sampler=Repeated(sampler())),
    "bulk loading without a size": lambda: DataLoader(
        DATA, sampler=Repeated(BatchSampler(sampler(), BATCH, False)), batch_size=None
    ),
}


@pytest.mark.parametrize("make_loader", UNKNOWN.values(), ids=UNKNOWN)
def test_loaders_that_take_an_unknown_number_of_draws_are_refused_inside_an_epoch(
    tmp_path, make_loader
):
    save = Save("on_train_batch_end", tmp_path / "a.ckpt")
    save.of_a_batch = False
    fit(save, FlowCallback(), module=Reading(make_loader))
    with pytest.raises(RuntimeError, match="how many draws a batch takes is not known"):
        fit(module=Reading(make_loader), ckpt_path=save.path)


@pytest.mark.guard
def test_a_stateful_loader_of_batches_that_have_no_state_is_refused_inside_an_epoch(tmp_path):
    save = Save("on_train_batch_end", tmp_path / "a.ckpt")
    make_loader = of_batches(StatefulDataLoader, BatchSampler)
    fit(save, FlowCallback(), module=Reading(make_loader))
    with pytest.raises(RuntimeError, match=r"left out twice|BatchSampler has no state_dict"):
        fit(module=Reading(make_loader), ckpt_path=save.path)


@pytest.mark.parametrize(
    "options",
    [{"limit_train_batches": 4}, {"accumulate_grad_batches": 2}, {"val_check_interval": 2}],
    ids=str,
)
def test_settings_of_the_trainer_leave_the_count_of_draws_as_it_is(tmp_path, options):
    save = Save("on_train_batch_end", tmp_path / "a.ckpt")
    whole = fit(save, FlowCallback(), module=Validated(), **options).epochs()
    resumed = fit(module=Validated(), ckpt_path=save.path, **options).epochs()
    assert whole[EPOCH] == planned(EPOCH)[: len(whole[EPOCH])]
    assert resumed == {EPOCH: whole[EPOCH][(INSIDE + 1) * BATCH :]}
