"""DatasetGuard: advice to the user of a FlowDataset, from who reads it."""

from typing import Protocol

from flowdata.errors import warn
from flowdata.guards.detection import Caller, find_caller
from flowdata.guards.epochs import UNKNOWN, SetEpochs, advise_even_batches
from flowdata.guards.ranks import run_size
from flowdata.guards.switch import enabled


class Epochs(Protocol):
    """What all processes of a data set share about its epochs."""

    advised: bool
    """Whether advice about `set_epoch` was given, or is not needed."""

    @property
    def epoch_was_set(self) -> bool:
        """Whether `set_epoch` was called."""


class DatasetGuard:
    """Warns where a FlowDataset cannot tell by itself which epoch is meant."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._set_epochs = SetEpochs()
        self._has_looked = False

    def on_set_epoch(self, epoch: int) -> None:
        """An epoch is set, which is to be drawn from now on."""
        self._set_epochs.add(epoch, drawn=UNKNOWN)

    def on_len(self, draws: int) -> None:
        """Somebody asks for the length: perhaps a sampler, at the beginning of a pass."""
        if not enabled():
            return
        caller = find_caller()
        if caller.sampler_iterates and not caller.accelerate_builds_loader:
            advise_even_batches(caller, draws)
            self._advise_setting(caller)

    def on_items(self) -> None:
        """Items are served; who asks for them is found out once."""
        if not self._has_looked:
            self._has_looked = True
            if enabled():
                self._advise_setting(find_caller())

    def on_iter(self) -> None:
        """Somebody goes through all items.

        Raises:
            ValueError: where transformers reads their lengths, to group them.
        """
        if find_caller().reads_lengths:
            raise ValueError(
                "the lengths of the draws of one epoch say nothing about the next: FlowDataset "
                "cannot be grouped by length. Use "
                'TrainingArguments(train_sampling_strategy="sequential"): the draws are shuffled '
                "already"
            )

    def _advise_setting(self, caller: Caller) -> None:
        """Warn, once in all processes, where epochs cannot be told apart unless they are set."""
        if self._epochs.epoch_was_set or self._epochs.advised:
            return
        if caller.callback_sets_epoch:
            # Workers are not to warn either; they may be ahead of the callback.
            self._epochs.advised = True
        elif text := _why_to_set(caller):
            self._epochs.advised = True
            warn(text)


def _why_to_set(caller: Caller) -> str:
    if caller.lightning_fits:
        return (
            "Lightning names the epoch to samplers only: give its Trainer "
            "callbacks=[flowdata.frameworks.lightning.FlowCallback(dataset)], where dataset "
            "is this FlowDataset"
        )
    if caller.accelerate_iterates:
        return (
            "accelerate names the epoch to its sampler, or to a data set around this one, and "
            "thereby hides it from FlowDataset: use shuffle=False, as the draws are shuffled "
            'already (under the transformers Trainer: train_sampling_strategy="sequential"), '
            "and nothing around FlowDataset; or call its set_epoch(epoch) before every epoch "
            "(the Trainer: add flowdata.frameworks.trainer.FlowCallback to the callbacks)"
        )
    if run_size() > 1:
        return (
            "FlowDataset cannot tell by itself when an epoch begins on several ranks, as "
            "each serves a part of it: call its set_epoch(epoch) before every epoch"
        )
    return ""
