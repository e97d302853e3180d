"""DatasetGuard: advice to the user of a FlowDataset, from who reads it."""

from typing import Protocol

from flowdata.errors import warn
from flowdata.guards.callers import Caller, find_caller
from flowdata.guards.epochs import UNKNOWN, EpochNames, advise_even_batches
from flowdata.guards.ranks import run_size
from flowdata.guards.switch import enabled


class Epochs(Protocol):
    """What all processes of a data set share about its epochs."""

    advised: bool
    """Whether advice about naming was given, or is not needed."""

    @property
    def named(self) -> bool:
        """Whether the running epoch was named."""


class DatasetGuard:
    """Warns where a FlowDataset cannot tell by itself which epoch is meant."""

    def __init__(self, epochs: Epochs) -> None:
        self._epochs = epochs
        self._names = EpochNames()
        self._has_looked = False

    def name_epoch(self, epoch: int) -> None:
        """An epoch is named, which is to be drawn from now on."""
        self._names.add(epoch, drawn=UNKNOWN)

    def length_is_read(self, draws: int) -> None:
        """Somebody asks for the length: perhaps a sampler, at the beginning of a pass."""
        if not enabled():
            return
        caller = find_caller()
        if caller.sampler_iterates and not caller.accelerate_prepares:
            advise_even_batches(caller, draws)
            self._advise_naming(caller)

    def items_are_read(self) -> None:
        """Items are served; who asks for them is found out once."""
        if not self._has_looked:
            self._has_looked = True
            if enabled():
                self._advise_naming(find_caller())

    def iterate(self) -> None:
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

    def _advise_naming(self, caller: Caller) -> None:
        """Warn, once in all processes, where epochs cannot be told apart unless they are named."""
        if self._epochs.named or self._epochs.advised:
            return
        if caller.callback_names:
            # Workers are not to warn either; they may be ahead of the callback.
            self._epochs.advised = True
        elif text := _why_to_name(caller):
            self._epochs.advised = True
            warn(text)


def _why_to_name(caller: Caller) -> str:
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
