"""FlowCallback for Lightning's Trainer."""

# The arguments of a hook are Lightning's.
# ruff: noqa: ARG002

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from flowdata.errors import MismatchError
from flowdata.frameworks.sources import Positioned, Source, is_stream, sources_of
from flowdata.map_style.dataset import FlowDataset
from flowdata.map_style.sampler import FlowSampler

_EPOCH = "epoch"
_BATCHES = "batches"
_DOORS = "doors"
_POSITION = "position"
_STATE = "state"


@dataclass(frozen=True)
class _Feed:
    """A sampler or stream, the loader over it, and its draws for a batch of every rank."""

    source: Positioned
    loader: Any
    draws: int | None


class FlowCallback(Callback):
    """Sets the epoch and, on resuming from a checkpoint, goes on at its next draw.

    Samplers, data sets and streams are told before the loader's workers are started on the wrong
    epoch, and a plain DataLoader resumes in the middle of an epoch as if it had never stopped.
    Which epoch, how many batches, and the states of samplers and streams are saved in the
    checkpoint. Several loaders may be trained on at once.

    Args:
        data: what the trainer draws from, where the loader has workers: a FlowDataset or
            FlowShards that is not named here is found when training starts, and they are started
            a second time.

    Raises:
        ValueError: on training where there is nothing of flowdata.
        RuntimeError: on resuming in the middle of an epoch that has another number of draws a
            batch, or an unknown one, of which a shorter loader has come to its end, that a
            FlowDataset serves (what of it was served is not known), or that was saved without
            this callback.
        MismatchError: on resuming with other weights or options.

    >>> from flowdata.frameworks.lightning import FlowCallback
    >>> callbacks = [FlowCallback()]  # lightning.Trainer(..., callbacks=callbacks)
    """

    sets_epochs_of_flowdata = True
    """By this guards know that epochs are set, see `flowdata.guards.detection`."""

    def __init__(self, *data: Source) -> None:
        self._given = data
        self._loaders: list[Any] = []
        self._datasets: list[FlowDataset[Any]] = []
        self._feeds: list[_Feed] = []
        self._epoch = self._batches = 0
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the epoch of data sets, whose items workers may fetch before training starts."""
        if stage == "fit":
            for source in self._given:
                source.set_epoch(trainer.current_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from, and bring it to where the checkpoint was taken."""
        self._find(trainer)
        self._epoch, self._batches = trainer.current_epoch, 0
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._go_on(trainer, loaded)
            return
        _check_saved(trainer)
        if not all(
            _begins(source, self._epoch) for source in self._drawn() if source not in self._given
        ):
            _stop_workers(trainer)
            self._set_epoch(self._epoch)
            _start_workers(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from again, where Lightning has asked for other loaders."""
        self._epoch, self._batches = trainer.current_epoch, 0
        loaders = _loaders(trainer)
        if any(old is not new for old, new in zip(self._loaders, loaders, strict=False)):
            # Lightning starts the workers, a second time, after this.
            _stop_workers(trainer)
            self._find(trainer)
            self._set_epoch(self._epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what was trained on, which is less than what was drawn."""
        self._epoch, self._batches = trainer.current_epoch, batch_idx + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the next epoch, to which a checkpoint of this one's end leads."""
        self._epoch, self._batches = trainer.current_epoch + 1, 0
        self._set_epoch(self._epoch)

    def state_dict(self) -> dict[str, Any]:
        """What `on_train_start` of the next run needs."""
        return {
            _EPOCH: self._epoch,
            _BATCHES: self._batches,
            _DOORS: [self._saved(feed) for feed in self._feeds],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the loaders are there."""
        self._loaded = state_dict

    def _find(self, trainer: Trainer) -> None:
        self._loaders = _loaders(trainer)
        found = {
            id(source): (source, loader)
            for loader in self._loaders
            for source in sources_of(loader)
        }
        found = {id(source): (source, None) for source in self._given} | found
        if not found:
            raise ValueError(
                "the Trainer draws from no FlowSampler, FlowDataset or FlowShards: give its "
                "DataLoader sampler=DistributedFlowSampler(weights)"
            )
        self._datasets, self._feeds = [], []
        for source, loader in found.values():
            if isinstance(source, FlowDataset):
                self._datasets.append(source)
            else:
                self._feeds.append(_Feed(source, loader, _draws_a_batch(source, loader)))

    def _drawn(self) -> list[Source]:
        return [*self._datasets, *(feed.source for feed in self._feeds)]

    def _set_epoch(self, epoch: int) -> None:
        for source in self._drawn():
            source.set_epoch(epoch)

    def _saved(self, feed: _Feed) -> dict[str, Any]:
        position = None if feed.draws is None else self._batches * feed.draws
        return {_POSITION: position, _STATE: feed.source.state_dict(position=position or 0)}

    def _go_on(self, trainer: Trainer, loaded: dict[str, Any]) -> None:
        epoch, batches = loaded[_EPOCH], loaded[_BATCHES]
        if batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        self._epoch, self._batches = epoch, batches
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
            _stop_workers(trainer)
        for feed, state in zip(self._feeds, states, strict=True):
            if not (kept and is_stream(feed.source)):
                feed.source.load_state_dict(state[_STATE])
        if not batches:
            self._set_epoch(epoch)
        if not kept:
            _start_workers(trainer)

    def _check_middle(self, trainer: Trainer, batches: int, positions: list[int | None]) -> None:
        where = f"the checkpoint was taken after batch {batches} of an epoch"
        between = "or checkpoints taken at the end of an epoch"
        if self._datasets:
            raise RuntimeError(
                f"{where}, and what a FlowDataset served until then is not known: use "
                "sampler=FlowSampler(weights) or, on several ranks, "
                f"DistributedFlowSampler(weights), {between}"
            )
        for feed, position in zip(self._feeds, positions, strict=True):
            if position is None or feed.draws is None:
                raise RuntimeError(
                    f"{where}, and how many draws a batch takes is not known, as its loader has no "
                    f"batch_size: use one that has, {between}"
                )
            if position != batches * feed.draws:
                raise RuntimeError(
                    f"{where}, at draw {position}; this run draws {feed.draws} a batch over all "
                    "ranks, so Lightning's count of batches does not fit: resume with as many "
                    f"ranks and as large batches as before, {between}"
                )
            if isinstance(feed.source, FlowSampler) and (
                feed.source.num_replicas != trainer.world_size
            ):
                raise RuntimeError(
                    "Lightning wrapped the FlowSampler in one that permutes whole epochs, so it "
                    f"cannot go on in the middle of one: use DistributedFlowSampler(weights), "
                    f"{between}"
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


def _check_saved(trainer: Trainer) -> None:
    """Refuse a checkpoint that does not say where in its epoch it was taken."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    batches = progress.current.processed
    if trainer.ckpt_path is not None and 0 < batches < trainer.num_training_batches:
        raise RuntimeError(
            f"the checkpoint was taken after batch {batches} of an epoch by a run without "
            "FlowCallback, so it is not known which draws were trained on: resume from a "
            "checkpoint taken at the end of an epoch"
        )


def _begins(source: Source, epoch: int) -> bool:
    """Whether a loader that was started already draws that epoch."""
    if isinstance(source, FlowDataset):
        return False
    return isinstance(source, FlowSampler) and source.state_dict(position=0)[_EPOCH] == epoch


def _draws_a_batch(source: Positioned, loader: Any) -> int | None:
    """Draws of all ranks for a batch of each; None if the loader does not tell."""
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None:
        size = getattr(batches, "batch_size", None)
    else:
        size = loader.batch_size or 1 if hasattr(loader, "batch_size") else None
    if size is None:
        return None
    draws: int = size * source.num_replicas
    return draws * source.draws_an_item if is_stream(source) else draws


def _keeps_state(loader: Any) -> bool:
    """Whether Lightning saves and loads the loader's own state (torchdata's has one)."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _loaders(trainer: Trainer) -> list[Any]:
    """The loaders in whatever collection of them is trained on."""
    return list(CombinedLoader(trainer.train_dataloader).flattened)


# Lightning 2.6, pytorch/loops/fit_loop.py: `_FitLoop.setup_data` and `advance` call iter() on the
# data fetcher, which calls iter() on the combined loader, which starts the workers. Nothing public
# stops and starts them again.
def _stop_workers(trainer: Trainer) -> None:
    """End what was started on an epoch, or in a place, that was not known yet."""
    _part_of_fit_loop(trainer, "_combined_loader").reset()


def _start_workers(trainer: Trainer) -> None:
    iter(_part_of_fit_loop(trainer, "_data_fetcher"))


def _part_of_fit_loop(trainer: Trainer, name: str) -> Any:
    part = getattr(trainer.fit_loop, name, None)
    if part is None:
        raise RuntimeError(
            f"Lightning {version('lightning')} has no fit_loop.{name}, by which FlowCallback "
            "starts loader workers again on the right epoch: use Lightning 2.5 or 2.6"
        )
    return part
