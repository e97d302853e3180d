"""DatasetGuard: advice to the user of a FlowDataset, or of FlowPacks, from who reads it."""

from typing import Any, Protocol
from weakref import WeakKeyDictionary

from flowdata.errors import warn
from flowdata.guards.detection import Caller, find_caller
from flowdata.guards.epochs import UNKNOWN, SetEpochs, advise_even_batches
from flowdata.guards.fetching import find_sampler, part_of_draws
from flowdata.guards.ranks import data_ranks, run_size
from flowdata.guards.switch import enabled


class Epochs(Protocol):
    """What all processes of a data set share about its epochs."""

    advised: bool
    """Whether advice about `set_epoch` was given, or is not needed."""
    advised_of_part: bool
    """Whether advice about a part of the draws was given."""
    was_read: bool
    """Whether any process has read draws since this was made False."""

    @property
    def epoch(self) -> int:
        """The running epoch."""

    @property
    def is_kept_loaded(self) -> bool:
        """Whether draws were read of an epoch that was loaded, and none was set since."""

    @property
    def epoch_was_set(self) -> bool:
        """Whether `set_epoch` was called."""


class DatasetGuard:
    """Warns where a data set of draws cannot tell by itself which epoch is meant.

    Args:
        epochs: of the data set.
        owner: the name of its class.
    """

    def __init__(self, epochs: Epochs, *, owner: str = "FlowDataset") -> None:
        self._epochs = epochs
        self._owner = owner
        self._set_epochs = SetEpochs()
        self._has_looked = self._has_advised_of_order = False
        self._looks = _Looks()
        self._passes = _Passes()

    def on_set_epoch(self, epoch: int) -> None:
        """An epoch is set, which is to be drawn from now on."""
        self._set_epochs.add(epoch, drawn=UNKNOWN)

    def on_load(self, epoch: int) -> None:
        """A state is loaded, from whose epoch draws come from now on."""
        self._set_epochs.last = epoch

    def on_len(self, draws: int) -> None:
        """Somebody asks for the length: perhaps a sampler, at the beginning of a pass."""
        if not enabled():
            return
        caller = find_caller()
        if caller.sampler_iterates and (text := self._passes.go_by(self._epochs, self._owner)):
            warn(text)
        if caller.sampler_iterates and not caller.accelerate_builds_loader:
            advise_even_batches(caller, draws)
            self._advise_setting(caller)

    def on_len_of_arranged(self, arrangement: str) -> None:
        """As `on_len`, of draws whose batches are those of an arrangement, named by its class."""
        if enabled() and not self._has_advised_of_order and find_caller().sampler_shuffles:
            self._has_advised_of_order = True
            warn(
                f"the batches of this {self._owner} are those of {arrangement} only if its draws "
                "are read in order, and this loader shuffles them: leave shuffle=True out (under "
                'the transformers Trainer: train_sampling_strategy="sequential"), as the draws are '
                "shuffled already"
            )

    def on_items(self, draws: int) -> None:
        """Items are read; who asks for them is found out once."""
        if self._has_looked:
            return
        self._has_looked = True
        if enabled():
            self._advise_setting(find_caller())
            part = part_of_draws()
            if part not in (None, draws) and not self._epochs.advised_of_part:
                self._epochs.advised_of_part = True
                warn(_part(part, draws, self._owner))

    def on_look(self, items: int, epoch: int, draws: int) -> None:
        """Items are read that no DataLoader fetches, from the running epoch."""
        if not self._epochs.epoch_was_set and self._looks.are_passes(items, epoch, draws):
            warn(_looks(self._owner))

    def on_reads(self, times: int) -> None:
        """A pass has read an epoch so many times."""
        if times > _MOST_TIMES and not self._epochs.advised and enabled():
            self._epochs.advised = True
            warn(_endless(self._owner))

    def on_iter(self) -> None:
        """Somebody goes through all items.

        Raises:
            ValueError: where transformers reads their lengths, to group them.
        """
        if find_caller().reads_lengths:
            # Packs need no other rows beside them.
            packed = self._owner != "FlowDataset"
            grouped = "" if packed else "arrange=flowdata.ByLength(lengths, batch_size=...) and "
            raise ValueError(
                "the lengths of the draws of one epoch say nothing about the next: "
                f"{self._owner} cannot be grouped by length by the Trainer. Use {grouped}"
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
        elif text := _why_to_set(caller, self._owner):
            self._epochs.advised = True
            warn(text)
        elif run_size() > 1:
            # All ranks share one model, and to find that out takes a while.
            self._epochs.advised = True


class _Looks:
    """The items of an epoch that no DataLoader has read."""

    def __init__(self) -> None:
        self._epoch, self._items = 0, 0

    def are_passes(self, items: int, epoch: int, draws: int) -> bool:
        """Items were read; whether it is time to warn that they are passes over the epoch."""
        before = self._items if epoch == self._epoch else 0
        self._epoch, self._items = epoch, before + items
        # A framework may read all of them once, for their lengths, and a person too.
        return before <= 2 * draws < self._items and enabled()


class _Passes:
    """The passes of samplers, and whether the data set was read in them."""

    def __init__(self) -> None:
        # Of each sampler: how far it was when it asked last, and its passes without a read.
        self._samplers: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
        self._was_ever_read = False
        self._is_told_of_loaded = False

    def __reduce__(self) -> Any:
        # A copy has samplers of its own.
        return _Passes, ()

    def go_by(self, epochs: Epochs, owner: str) -> str:
        """A sampler asks for the length; what to warn of, if it is time."""
        call = find_sampler()
        if call is None:
            return ""
        before, unread = self._samplers.get(call.sampler, (call.place, 0))
        if call.place > before:
            # The same pass as before.
            self._samplers[call.sampler] = call.place, unread
            return ""
        if epochs.is_kept_loaded and not self._is_told_of_loaded:
            self._is_told_of_loaded = True
            return _loaded(epochs.epoch, owner)
        if epochs.was_read:
            self._was_ever_read, epochs.was_read = True, False
            self._samplers.clear()
            unread = 0
        unread += self._was_ever_read
        self._samplers[call.sampler] = call.place, unread
        is_time = unread == (_UNREAD_IN_STEP if call.in_step else _UNREAD_BY_WORKERS)
        return _kept(owner) if is_time else ""


# Frameworks begin a pass and leave it, and workers may be slow to read: but not so often in a row.
_UNREAD_IN_STEP, _UNREAD_BY_WORKERS = 5, 12
_MOST_TIMES = 3


def _kept(owner: str) -> str:
    return (
        f"passes over this {owner} begin, but nobody asks it for its draws: what stands around it "
        "keeps the items of an earlier epoch (a cache), and gives these again in every epoch. Put "
        f"the cache inside: {owner}(cache_of(data), weights)"
    )


def _endless(owner: str) -> str:
    return (
        f"one pass of a DataLoader has read the draws of an epoch of this {owner} more than three "
        "times over: if it is to go on for ever, call set_epoch(epoch) now and then, for new draws"
    )


def _looks(owner: str) -> str:
    return (
        f"the items of this {owner} were read more than twice over, by no DataLoader of torch, and "
        "all of them in one epoch: call set_epoch(epoch) before every epoch, for new draws in each"
    )


def _loaded(epoch: int, owner: str) -> str:
    return (
        f"each pass over this {owner} draws epoch {epoch}, whose state was loaded, as nobody "
        "names another: call its set_epoch(epoch) before every epoch"
    )


def _part(part: int | None, draws: int, owner: str) -> str:
    return (
        f"a Subset gives {part:,} of the {draws:,} draws of each epoch of a {owner}: not an "
        "epoch of the plan, and not a part of the rows either, as any row may be among the draws "
        f"that are left. Split the data first: {owner}(Subset(data, rows), weights[rows])"
    )


def _why_to_set(caller: Caller, owner: str) -> str:
    if caller.lightning_fits:
        return (
            "Lightning names the epoch to samplers only: give its Trainer "
            "callbacks=[flowdata.frameworks.lightning.FlowCallback(dataset)], where dataset "
            f"is this {owner}"
        )
    if caller.accelerate_iterates:
        return (
            "accelerate names the epoch to its sampler, or to a data set around this one, and "
            f"thereby hides it from {owner}: use shuffle=False, as the draws are shuffled "
            'already (under the transformers Trainer: train_sampling_strategy="sequential"), '
            f"and nothing around {owner}; or call its set_epoch(epoch) before every epoch "
            "(the Trainer: add flowdata.frameworks.trainer.FlowCallback to the callbacks)"
        )
    if data_ranks(run_size()) > 1:
        return (
            f"{owner} cannot tell by itself when an epoch begins on several ranks, as "
            "each counts its own passes: call its set_epoch(epoch) before every epoch"
        )
    return ""
