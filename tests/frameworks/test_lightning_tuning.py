"""Lightning's tuners, and the trainer's settings for short runs, beside FlowCallback."""

import warnings

import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from lightning_runs import (
    BATCH,
    DATA,
    WEIGHTS,
    Reading,
    fit,
    make_trainer,
    plain_loader,
    planned,
    sampler,
)
from torch.utils.data import BatchSampler, DataLoader

from flowdata import FlowDataset, FlowDataWarning
from flowdata.frameworks.lightning import FlowCallback

pytestmark = pytest.mark.slow

PLANS = {epoch: planned(epoch) for epoch in range(4)}
TWO = {epoch: PLANS[epoch] for epoch in range(2)}


def find_rate(trainer, module, **data):
    Tuner(trainer).lr_find(module, num_training=8, **data)


def scale_batches(trainer, module, **data):
    Tuner(trainer).scale_batch_size(module, max_trials=1, steps_per_trial=2, **data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    # The tuners save and restore a checkpoint where they are.
    monkeypatch.chdir(tmp_path)


TUNED = {
    "learning rate": (find_rate, None),
    # Lightning changes batch sizes of a module's loaders only.
    "batch size": (scale_batches, None),
    "learning rate, one loader": (find_rate, plain_loader),
    "learning rate, workers": (find_rate, lambda: plain_loader(num_workers=1)),
    "learning rate, persistent workers": (
        find_rate,
        lambda: plain_loader(num_workers=1, persistent_workers=True),
    ),
    "learning rate, data set": (
        find_rate,
        lambda: DataLoader(FlowDataset(DATA, WEIGHTS, seed=5), BATCH),
    ),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("tune", "make_loader"), TUNED.values(), ids=TUNED)
def test_a_run_after_a_tuner_draws_as_one_without(tune, make_loader):
    module = Reading(lambda: plain_loader(module.batch_size))
    data = {} if make_loader is None else {"train_dataloaders": make_loader()}
    trainer = make_trainer(FlowCallback())
    tune(trainer, module, **data)
    module.batches.clear()
    trainer.fit(module, **data)
    assert module.epochs() == TWO


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("order", [1, -1], ids=["finder first", "finder last"])
@pytest.mark.parametrize(
    "make_finder",
    [
        lambda: LearningRateFinder(num_training_steps=8),
        lambda: BatchSizeFinder(max_trials=1, steps_per_trial=2),
    ],
    ids=["LearningRateFinder", "BatchSizeFinder"],
)
def test_a_finder_among_the_callbacks_changes_no_draws(make_finder, order, tmp_path):
    trained = []

    class Started(Callback):
        def on_train_start(self, trainer, module):
            # What the finder has trained on does not count.
            trained.append(len(module.batches))

    callbacks = [make_finder(), FlowCallback()][::order]
    module = Reading(lambda: plain_loader(module.batch_size))
    fit(*callbacks, Started(), module=module)
    del module.batches[: trained[-1]]
    assert module.epochs() == TWO


class FineTuning(LearningRateFinder):
    """As the documentation of LearningRateFinder has it: once more at a later epoch."""

    def on_fit_start(self, *args):
        return

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            before = len(module.batches)
            self.lr_find(trainer, module)
            del module.batches[before:]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("order", [1, -1], ids=["finder first", "finder last"])
@pytest.mark.parametrize("given", [False, True], ids=["loaders of the module", "one loader"])
def test_a_finder_in_a_later_epoch_changes_no_draws(given, order):
    callbacks = [FineTuning(num_training_steps=8), FlowCallback()][::order]
    module = fit(*callbacks, loader=plain_loader() if given else None)
    assert module.epochs() == TWO


class Reloading(Callback):
    """Has Lightning ask for its loaders, as its tuners do."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            vars(trainer.fit_loop)["_combined_loader"] = None
            trainer.fit_loop.setup_data()


def test_loaders_that_are_replaced_after_their_epoch_was_set_are_refused():
    assert fit(Reloading(), FlowCallback()).epochs() == TWO
    with pytest.raises(RuntimeError, match="name FlowCallback after it"):
        fit(FlowCallback(), Reloading())


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("order", [1, -1], ids=["finder first", "finder last"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_resumed_run_with_a_finder_by_which_lightning_forgets_where_it_was_is_refused(
    tmp_path, epoch, order
):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) == (epoch, 2):
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    fit(FlowCallback(), Save())
    callbacks = [LearningRateFinder(num_training_steps=8), FlowCallback()][::order]
    with pytest.raises(RuntimeError, match=f"after batch 3 of epoch {epoch}, and Lightning goes"):
        fit(*callbacks, ckpt_path=tmp_path / "a.ckpt")


OVERFIT = {
    "sampler": plain_loader,
    "batch sampler": lambda: DataLoader(DATA, batch_sampler=BatchSampler(sampler(), BATCH, False)),
    "data set": lambda: DataLoader(FlowDataset(DATA, WEIGHTS, seed=5), BATCH),
}


@pytest.mark.parametrize("make_loader", OVERFIT.values(), ids=OVERFIT)
def test_overfitting_goes_over_the_same_batches_and_says_where_weights_do_not_count(make_loader):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        module = fit(module=Reading(make_loader), overfit_batches=2, max_epochs=3)
    drawn = module.epochs()
    texts = [str(warning.message) for warning in caught]
    ours = [text for text in texts if "no weights count" in text]
    if make_loader is plain_loader:
        assert len(ours) == 1
        assert drawn[0] == list(range(2 * BATCH))
    else:
        assert ours == []
        assert drawn[0] == PLANS[0][: 2 * BATCH]
    assert drawn == dict.fromkeys(range(3), drawn[0])


def test_overfitting_says_so_too_where_the_callback_was_given_what_is_drawn_from():
    draws = sampler()
    loader = DataLoader(DATA, BATCH, sampler=draws)
    with pytest.warns(FlowDataWarning, match="no weights count"):
        fit(FlowCallback(draws), loader=loader, overfit_batches=1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fast_dev_run": True}, {0: PLANS[0][:BATCH]}),
        ({"limit_train_batches": 2}, {epoch: PLANS[epoch][: 2 * BATCH] for epoch in range(2)}),
        ({"num_sanity_val_steps": 2}, TWO),
        ({"reload_dataloaders_every_n_epochs": 1}, TWO),
        ({"max_steps": 8, "max_epochs": -1}, {0: PLANS[0], 1: PLANS[1][: 2 * BATCH]}),
    ],
    ids=str,
)
def test_short_runs_draw_what_comes_first_in_each_epoch(options, expected):
    class Validated(Reading):
        def val_dataloader(self):
            return plain_loader()

        def validation_step(self, batch, batch_idx):
            pass

    assert fit(module=Validated(), **options).epochs() == expected


def test_a_second_fit_of_the_same_loader_begins_where_its_trainer_does():
    loader = plain_loader()
    assert [fit(loader=loader).epochs() for _ in range(2)] == [TWO, TWO]
    trainer = make_trainer(FlowCallback())
    module = Reading()
    trainer.fit(module, loader)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader)
    assert module.epochs() == PLANS


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_is_cycled_through_draws_an_epoch_each_time(workers):
    def loaders():
        short = DataLoader(DATA, 11, sampler=sampler(), num_workers=workers)
        return CombinedLoader({"long": plain_loader(), "short": short}, "max_size_cycle")

    drawn = fit(module=Reading(loaders)).epochs("short")
    assert drawn == {0: PLANS[0] + PLANS[1] + PLANS[2], 1: PLANS[3] + planned(4) + planned(5)}


@pytest.mark.guard
def test_a_loader_that_is_cycled_through_without_the_callback_warns():
    def loaders():
        return {"long": plain_loader(), "short": DataLoader(DATA, 11, sampler=sampler())}

    with pytest.warns(FlowDataWarning, match="Lightning draws epoch 1 a second time"):
        fit(Callback(), module=Reading(loaders))


@pytest.mark.guard
def test_workers_that_began_with_a_loaded_state_before_lightning_named_its_epoch_warn():
    loader = plain_loader(num_workers=1)
    loader.sampler.load_state_dict(sampler().state_dict(position=4) | {"epoch": 3})
    with pytest.warns(FlowDataWarning, match="started on epoch 3 before Lightning"):
        fit(Callback(), loader=loader)


def test_a_state_that_was_loaded_is_drawn_by_lightning_without_the_callback_too():
    loader = plain_loader()
    loader.sampler.load_state_dict(sampler().state_dict(position=8) | {"epoch": 1})
    assert fit(Callback(), loader=loader).epochs() == {0: PLANS[1][8:], 1: PLANS[2]}


def test_a_data_set_that_is_cycled_through_warns():
    def loaders():
        short = DataLoader(FlowDataset(DATA, WEIGHTS, seed=5), 11)
        return {"long": plain_loader(), "short": short}

    with pytest.warns(FlowDataWarning, match="serves the same draws again"):
        fit(module=Reading(loaders))


def test_what_stands_in_a_wrapper_of_ones_own_can_be_named():
    draws = sampler()

    class Hidden:
        """It holds no sampler, but has one in a closure."""

        def __iter__(self):
            return iter(draws)

        def __len__(self):
            return len(draws)

    loader = DataLoader(DATA, BATCH, sampler=Hidden())
    with pytest.raises(ValueError, match=r"FlowCallback\(sampler\)"):
        fit(loader=loader)
    for _ in range(2):
        assert fit(FlowCallback(draws), loader=loader).epochs() == TWO
