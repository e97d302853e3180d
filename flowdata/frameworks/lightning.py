"""FlowCallback, and MonitorCallback, for Lightning's Trainer."""

# The arguments of a hook are Lightning's.
# ruff: noqa: ARG002

import math
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowdata.errors import MismatchError, warn
from flowdata.frameworks.lightning_loops import (
    begin_epoch,
    begins_shorter_loaders_again,
    check_count,
    check_saved,
    loaders,
    overfits,
    start_workers,
    starts_workers_itself,
    stop_workers,
    trained,
)
from flowdata.frameworks.lightning_monitor import MonitorCallback as MonitorCallback
from flowdata.frameworks.sources import Positioned, Source, is_stream, sources_of
from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.plan_sampler import PlanSampler

_EPOCH = "epoch"
_BATCHES = "batches"
_DOORS = "doors"
_POSITION = "position"
_STATE = "state"


@dataclass(frozen=True)
class _Feed:
    """What is drawn from, and the loader over it.

    Attributes:
        source: sampler, stream or data set.
        loader: None where the source was given, and no loader over it is found.
        draws: for a batch of every rank; None if that is not known.
        passes: of the loader in one epoch of Lightning, which begins a shorter one again.
    """

    source: Source
    loader: Any
    draws: int | None
    passes: int


class FlowCallback(Callback):
    """Sets the epoch and, on resuming from a checkpoint, goes on at its next draw.

    Samplers, data sets and streams are told before the loader's workers are started on the wrong
    epoch, and a plain DataLoader resumes in the middle of an epoch as if it had never stopped.
    Which epoch, how many batches, and the states of samplers and streams are saved in the
    checkpoint, whoever saves it and when. Several loaders may be trained on at once; one that is
    gone through several times in an epoch of Lightning draws an epoch of its own each time.

    Args:
        data: what the trainer draws from, where the loader has workers: a FlowDataset or
            FlowShards that is not named here is found when training starts, and they are started
            a second time.

    Raises:
        ValueError: on training where there is nothing of flowdata.
        RuntimeError: on resuming in the middle of an epoch that has another number of draws a
            batch, or an unknown one, of which a shorter loader has come to its end, that a
            FlowDataset serves (what of it was served is not known), or that was saved without
            this callback; and where another callback has replaced the loaders after this one.
        MismatchError: on resuming with other weights or options.

    >>> from flowdata.frameworks.lightning import FlowCallback
    >>> callbacks = [FlowCallback()]  # lightning.Trainer(..., callbacks=callbacks)
    """

    sets_epochs_of_flowdata = True
    """By this guards know that epochs are set, see `flowdata.guards.detection`."""

    def __init__(self, *data: Source) -> None:
        self._given = data
        self._trainer: Trainer | None = None
        self._loaders: list[Any] = []
        self._datasets: list[_Feed] = []
        self._feeds: list[_Feed] = []
        self._has_begun = False
        self._is_checked = False
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the epoch of data sets, whose items workers may fetch before training starts."""
        if stage == "fit":
            self._trainer, self._loaded, self._has_begun = trainer, None, False
            for source in self._given:
                source.set_epoch(trainer.current_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from, and bring it to where the checkpoint was taken."""
        self._find(trainer)
        self._has_begun, self._is_checked = True, False
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._go_on(trainer, loaded)
            return
        check_saved(trainer)
        if not all(
            _begins(feed, trainer.current_epoch)
            for feed in self._drawn()
            if feed.source not in self._given
        ):
            stop_workers(trainer)
            self._set_epoch(trainer)
            start_workers(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from again, where Lightning has asked for other loaders."""
        self._is_checked = False
        changed = self._loaders_changed(trainer)
        if changed:
            stop_workers(trainer)
            self._find(trainer)
        if changed or trainer.current_epoch > 0:
            self._set_epoch(trainer)
        if changed and not starts_workers_itself(trainer):
            start_workers(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make sure, once an epoch, that what is trained on is what this callback has set."""
        if self._is_checked:
            return
        self._is_checked = True
        if self._loaders_changed(trainer):
            raise RuntimeError(
                "another callback has had Lightning ask for its loaders again after FlowCallback "
                "had set their epoch: name FlowCallback after it in the Trainer's callbacks"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the next epoch, to which a checkpoint of this one's end leads."""
        self._set_epoch(trainer, trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """What `on_train_start` of the next run needs; nothing before training has begun."""
        if self._loaded is not None:
            return self._loaded
        if self._trainer is None or not self._has_begun:
            return {}
        epoch, batches = trained(self._trainer)
        return {
            _EPOCH: epoch,
            _BATCHES: batches,
            _DOORS: [_saved(feed, batches) for feed in self._feeds],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the loaders are there."""
        self._loaded = state_dict

    def _loaders_changed(self, trainer: Trainer) -> bool:
        now = loaders(trainer)
        return any(old is not new for old, new in zip(self._loaders, now, strict=False))

    def _find(self, trainer: Trainer) -> None:
        self._loaders = loaders(trainer)
        found = {
            id(source): (source, loader)
            for loader in self._loaders
            for source in sources_of(loader)
        }
        if not found and overfits(trainer):
            warn(
                f"Trainer(overfit_batches={overfits(trainer)}) has replaced the sampler by one "
                "that reads rows in order: no weights count in this run"
            )
        elif not (found or self._given):
            raise ValueError(
                "the Trainer draws from no FlowSampler, FlowDataset or FlowShards that can be "
                "found: give its DataLoader sampler=DistributedFlowSampler(weights), or, where "
                "something of your own stands around what is drawn from, FlowCallback(sampler)"
            )
        found = {id(source): (source, None) for source in self._given} | found
        feeds = [_feed(trainer, source, loader) for source, loader in found.values()]
        self._datasets = [feed for feed in feeds if isinstance(feed.source, EpochItems)]
        self._feeds = [feed for feed in feeds if not isinstance(feed.source, EpochItems)]
        if any(feed.passes > 1 for feed in self._datasets):
            warn(
                "a loader over a FlowDataset is shorter than another, so Lightning goes through it "
                "again within an epoch, and it serves the same draws again: use "
                "sampler=DistributedFlowSampler(weights), whose passes all differ"
            )

    def _drawn(self) -> list[_Feed]:
        return [*self._datasets, *self._feeds]

    def _set_epoch(self, trainer: Trainer, epoch: int | None = None) -> None:
        epoch = trainer.current_epoch if epoch is None else epoch
        if overfits(trainer):
            # The same batches in each epoch, as Lightning sees to by reading rows in order.
            epoch = 0
        for feed in self._drawn():
            feed.source.set_epoch(_first_pass(feed, epoch))

    def _go_on(self, trainer: Trainer, loaded: dict[str, Any]) -> None:
        epoch, batches = saved = loaded[_EPOCH], loaded[_BATCHES]
        if batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        check_count(trainer, saved, (epoch, batches))
        begin_epoch(trainer)
        states = loaded.get(_DOORS, [])
        if len(states) != len(self._feeds):
            raise MismatchError(
                f"the checkpoint has {len(states)} samplers and streams, this run "
                f"{len(self._feeds)}"
            )
        if batches:
            self._check_middle(trainer, batches, [state[_POSITION] for state in states])
        # Lightning has called iter() already, and workers fetch from then on.
        kept = bool(batches) and all(_keeps_state(feed.loader) for feed in self._feeds)
        if not kept:
            stop_workers(trainer)
        for feed, state in zip(self._feeds, states, strict=True):
            if not (kept and is_stream(feed.source)):
                feed.source.load_state_dict(state[_STATE])
        if not batches:
            self._set_epoch(trainer, epoch)
        if not kept:
            start_workers(trainer)

    def _check_middle(self, trainer: Trainer, batches: int, positions: list[int | None]) -> None:
        where = f"the checkpoint was taken after batch {batches} of an epoch"
        between = "or checkpoints taken at the end of an epoch"
        if self._datasets:
            raise RuntimeError(
                f"{where}, and what a FlowDataset served until then is not known: use "
                "sampler=FlowSampler(weights) or, on several ranks, "
                "DistributedFlowSampler(weights), and for packs batch_sampler=FlowPackSampler(...)"
                f", {between}"
            )
        for feed, position in zip(self._feeds, positions, strict=True):
            if isinstance(feed.source, PlanSampler) and (
                feed.source.num_replicas != trainer.world_size
            ):
                raise RuntimeError(
                    "Lightning wrapped the FlowSampler in one that permutes whole epochs, so it "
                    f"cannot go on in the middle of one: use DistributedFlowSampler(weights), "
                    f"{between}"
                )
            if position is None or feed.draws is None:
                raise RuntimeError(
                    f"{where}, and how many draws a batch takes is not known, as its loader has no "
                    "batch_size, or another number of batches than follows from it: use one that "
                    f"has, {between}"
                )
            if position != batches * feed.draws:
                raise RuntimeError(
                    f"{where}, at draw {position}; this run draws {feed.draws} a batch over all "
                    "ranks, so Lightning's count of batches does not fit: resume with as many "
                    f"ranks and as large batches as before, {between}"
                )
            if batches >= len(feed.loader):
                raise RuntimeError(
                    f"{where}, of which one of the loaders has {len(feed.loader)} only: where it "
                    f"is to go on is not known. Use loaders of the same length, {between}"
                )
        if len({_keeps_state(feed.loader) for feed in self._feeds}) > 1:
            raise RuntimeError(
                f"{where}, and Lightning saves the state of some of its loaders only: use "
                f"StatefulDataLoader for all or for none of them, {between}"
            )


def _saved(feed: _Feed, batches: int) -> dict[str, Any]:
    position = None if feed.draws is None else batches * feed.draws
    # A loader that is gone through again is refused on resuming, by its position.
    over = position is None or 0 < _length(feed.loader) < batches
    source: Any = feed.source
    return {_POSITION: position, _STATE: source.state_dict(position=0 if over else position)}


def _first_pass(feed: _Feed, epoch: int) -> int:
    """The epoch of flowdata that is drawn first in an epoch of Lightning."""
    return epoch * feed.passes


def _begins(feed: _Feed, epoch: int) -> bool:
    """Whether a loader whose workers were started already draws that epoch."""
    if not isinstance(feed.source, PlanSampler) or not getattr(feed.loader, "num_workers", 0):
        return False
    return bool(feed.source.state_dict(position=0)[_EPOCH] == _first_pass(feed, epoch))


def _feed(trainer: Trainer, source: Source, loader: Any) -> _Feed:
    batches, length = trainer.num_training_batches, _length(loader)
    is_cycled = begins_shorter_loaders_again(trainer) and 0 < length < batches < math.inf
    passes = math.ceil(batches / length) if is_cycled else 1
    draws = None if isinstance(source, EpochItems) else _draws_a_batch(source, loader)
    return _Feed(source, loader, draws, passes)


def _length(loader: Any) -> int:
    """Batches of a loader; 0 if it does not tell."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return 0


def _draws_a_batch(source: Positioned, loader: Any) -> int | None:
    """Draws of all ranks for a batch of each; None if the loader does not tell."""
    batches = getattr(loader, "batch_sampler", None)
    if batches is None and isinstance(source, PlanSampler):
        # Batches are not made by the loader: its sampler makes them, or each draw is one.
        batches = getattr(loader, "sampler", None)
    if batches is not None:
        # What a FlowPackSampler draws are packs, each of them a batch.
        size = 1 if batches is source else getattr(batches, "batch_size", None)
    else:
        size = loader.batch_size or 1 if hasattr(loader, "batch_size") else None
    if not isinstance(size, int) or size < 1:
        return None
    if isinstance(source, PlanSampler):
        whole, rest = divmod(len(source), size)
        # What stands between them leaves out draws, or repeats some, if it is neither.
        return (
            size * source.num_replicas if _length(loader) in (whole, whole + (rest > 0)) else None
        )
    return size * source.num_replicas * source.draws_an_item


def _keeps_state(loader: Any) -> bool:
    """Whether Lightning saves and loads the loader's own state (torchdata's has one)."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")
