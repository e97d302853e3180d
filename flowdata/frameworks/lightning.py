"""FlowCallback for Lightning's Trainer."""

# The arguments of a hook are Lightning's.
# ruff: noqa: ARG002

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._pytree import tree_leaves

from flowdata.errors import MismatchError
from flowdata.frameworks.sources import Door, Positioned, doors, is_stream
from flowdata.map_style.dataset import FlowDataset
from flowdata.map_style.sampler import FlowSampler

_EPOCH = "epoch"
_BATCHES = "batches"
_DOORS = "doors"
_POSITION = "position"
_STATE = "state"


@dataclass(frozen=True)
class _Source:
    """A door, the loader that draws from it, and how much it draws for a batch of each rank."""

    door: Positioned
    loader: Any
    draws: int | None


class FlowCallback(Callback):
    """Names the epoch and, on resuming from a checkpoint, goes on at its next draw.

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

    def __init__(self, *data: Door) -> None:
        self._given = data
        self._loaders: list[Any] = []
        self._datasets: list[FlowDataset[Any]] = []
        self._sources: list[_Source] = []
        self._epoch = self._batches = 0
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the epoch to data sets, whose items workers may fetch before training starts."""
        if stage == "fit":
            for door in self._given:
                door.set_epoch(trainer.current_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from, and bring it to where the checkpoint was taken."""
        self._find(trainer)
        self._epoch, self._batches = trainer.current_epoch, 0
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._go_on(trainer, loaded)
            return
        _check_saved(trainer)
        if not all(_begins(door, self._epoch) for door in self._doors() if door not in self._given):
            _stop_workers(trainer)
            self._name(self._epoch)
            _start_workers(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from again, where Lightning has asked for other loaders."""
        self._epoch, self._batches = trainer.current_epoch, 0
        loaders = tree_leaves(trainer.train_dataloader)
        if any(old is not new for old, new in zip(self._loaders, loaders, strict=False)):
            # Lightning starts the workers, a second time, after this.
            _stop_workers(trainer)
            self._find(trainer)
            self._name(self._epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what was trained on, which is less than what was drawn."""
        self._epoch, self._batches = trainer.current_epoch, batch_idx + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the next epoch, to which a checkpoint of this one's end leads."""
        self._epoch, self._batches = trainer.current_epoch + 1, 0
        self._name(self._epoch)

    def state_dict(self) -> dict[str, Any]:
        """What `on_train_start` of the next run needs."""
        return {
            _EPOCH: self._epoch,
            _BATCHES: self._batches,
            _DOORS: [self._saved(source) for source in self._sources],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the loaders are there."""
        self._loaded = state_dict

    def _find(self, trainer: Trainer) -> None:
        self._loaders = tree_leaves(trainer.train_dataloader)
        found = {id(door): (door, loader) for loader in self._loaders for door in doors(loader)}
        found = {id(door): (door, None) for door in self._given} | found
        if not found:
            raise ValueError(
                "the Trainer draws from no FlowSampler, FlowDataset or FlowShards: give its "
                "DataLoader sampler=DistributedFlowSampler(weights)"
            )
        self._datasets, self._sources = [], []
        for door, loader in found.values():
            if isinstance(door, FlowDataset):
                self._datasets.append(door)
            else:
                self._sources.append(_Source(door, loader, _draws_a_batch(door, loader)))

    def _doors(self) -> list[Door]:
        return [*self._datasets, *(source.door for source in self._sources)]

    def _name(self, epoch: int) -> None:
        for door in self._doors():
            door.set_epoch(epoch)

    def _saved(self, source: _Source) -> dict[str, Any]:
        position = None if source.draws is None else self._batches * source.draws
        return {_POSITION: position, _STATE: source.door.state_dict(position=position or 0)}

    def _go_on(self, trainer: Trainer, loaded: dict[str, Any]) -> None:
        epoch, batches = loaded[_EPOCH], loaded[_BATCHES]
        if batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        self._epoch, self._batches = epoch, batches
        states = loaded.get(_DOORS, [])
        if len(states) != len(self._sources):
            raise MismatchError(
                f"the checkpoint has {len(states)} samplers and streams, this run "
                f"{len(self._sources)}"
            )
        if batches:
            self._check_middle(trainer, batches, [state[_POSITION] for state in states])
        # Lightning has called iter() already, and workers fetch from then on.
        kept = bool(batches) and all(_keeps_state(source.loader) for source in self._sources)
        if not kept:
            _stop_workers(trainer)
        for source, state in zip(self._sources, states, strict=True):
            if not (kept and is_stream(source.door)):
                source.door.load_state_dict(state[_STATE])
        if not batches:
            self._name(epoch)
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
        for source, position in zip(self._sources, positions, strict=True):
            if position is None or source.draws is None:
                raise RuntimeError(
                    f"{where}, and how many draws a batch takes is not known, as its loader has no "
                    f"batch_size: use one that has, {between}"
                )
            if position != batches * source.draws:
                raise RuntimeError(
                    f"{where}, at draw {position}; this run draws {source.draws} a batch over all "
                    "ranks, so Lightning's count of batches does not fit: resume with as many "
                    f"ranks and as large batches as before, {between}"
                )
            if isinstance(source.door, FlowSampler) and (
                source.door.num_replicas != trainer.world_size
            ):
                raise RuntimeError(
                    "Lightning wrapped the FlowSampler in one that permutes whole epochs, so it "
                    f"cannot go on in the middle of one: use DistributedFlowSampler(weights), "
                    f"{between}"
                )
            if batches >= len(source.loader):
                raise RuntimeError(
                    f"{where}, of which one of the loaders has {len(source.loader)} only: where it "
                    f"is to go on is not known. Use loaders of the same length, {between}"
                )
        if len({_keeps_state(source.loader) for source in self._sources}) > 1:
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


def _begins(door: Door, epoch: int) -> bool:
    """Whether a loader that was started already draws that epoch."""
    if isinstance(door, FlowDataset):
        return False
    return isinstance(door, FlowSampler) and door.state_dict(position=0)[_EPOCH] == epoch


def _draws_a_batch(door: Positioned, loader: Any) -> int | None:
    """Draws of all ranks for a batch of each; None if the loader does not tell."""
    batches = getattr(loader, "batch_sampler", None)
    if batches is not None:
        size = getattr(batches, "batch_size", None)
    else:
        size = loader.batch_size or 1 if hasattr(loader, "batch_size") else None
    if size is None:
        return None
    draws: int = size * door.num_replicas
    return draws * door.draws_an_item if is_stream(door) else draws


def _keeps_state(loader: Any) -> bool:
    """Whether Lightning saves and loads the loader's own state (torchdata's has one)."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def _stop_workers(trainer: Trainer) -> None:
    """End what was started on an epoch, or in a place, that was not known yet."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    combined.reset()


def _start_workers(trainer: Trainer) -> None:
    iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
