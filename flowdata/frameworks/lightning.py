"""FlowCallback for Lightning's Trainer."""

# The arguments of a hook are Lightning's.
# ruff: noqa: ARG002

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flowdata.dataset import FlowDataset
from flowdata.errors import MismatchError
from flowdata.frameworks.doors import doors
from flowdata.sampler import FlowSampler

_EPOCH = "epoch"
_BATCHES = "batches"
_POSITION = "position"
_SAMPLERS = "samplers"


class FlowCallback(Callback):
    """Names the epoch and, on resuming from a checkpoint, goes on at its next draw.

    Samplers are told before the loader's workers are started on the wrong epoch, and a plain
    DataLoader resumes in the middle of an epoch as if it had never stopped. Which epoch, how many
    batches, and the samplers' states are saved in the checkpoint.

    Args:
        data: a FlowDataset, or samplers, that the trainer draws from. Others are found when
            training starts.

    Raises:
        RuntimeError: on resuming in the middle of an epoch that has another number of draws a
            batch, or that a FlowDataset serves: what of it was served is not known.
        MismatchError: on resuming with other weights or options.

    >>> from flowdata.frameworks.lightning import FlowCallback
    >>> callbacks = [FlowCallback()]  # lightning.Trainer(..., callbacks=callbacks)
    """

    def __init__(self, *data: FlowSampler | FlowDataset[Any]) -> None:
        self._given = data
        self._doors: list[FlowSampler | FlowDataset[Any]] = list(data)
        self._epoch = self._batches = self._draws_a_batch = 0
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Name the epoch to data sets, whose items workers may fetch before training starts."""
        if stage == "fit":
            for door in self._given:
                door.set_epoch(trainer.current_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is drawn from, and bring it to where the checkpoint was taken."""
        loaders = trainer.train_dataloader
        self._doors = doors(list(self._given), loaders)
        if not self._doors:
            raise ValueError(
                "the Trainer draws from neither a FlowSampler nor a FlowDataset: give its "
                "DataLoader sampler=DistributedFlowSampler(weights)"
            )
        self._draws_a_batch = _draws_a_batch(loaders, trainer.world_size)
        self._epoch, self._batches = trainer.current_epoch, 0
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._go_on(trainer, loaded)
        else:
            for door in self._doors:
                if isinstance(door, FlowDataset):
                    door.set_epoch(self._epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch to data sets; Lightning names it to samplers."""
        self._epoch, self._batches = trainer.current_epoch, 0
        for door in self._doors:
            if isinstance(door, FlowDataset):
                door.set_epoch(self._epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count what was trained on, which is less than what was drawn."""
        self._epoch, self._batches = trainer.current_epoch, batch_idx + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint of an epoch's end leads to the next one."""
        self._epoch, self._batches = trainer.current_epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """What `on_train_start` of the next run needs."""
        position = self._batches * self._draws_a_batch
        samplers = [door for door in self._doors if isinstance(door, FlowSampler)]
        return {
            _EPOCH: self._epoch,
            _BATCHES: self._batches,
            _POSITION: position,
            _SAMPLERS: [
                door.state_dict() | {_EPOCH: self._epoch, _POSITION: position} for door in samplers
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the loaders are there."""
        self._loaded = state_dict

    def _go_on(self, trainer: Trainer, loaded: dict[str, Any]) -> None:
        epoch, batches = loaded[_EPOCH], loaded[_BATCHES]
        if batches >= trainer.num_training_batches:
            epoch, batches = epoch + 1, 0
        self._epoch, self._batches = epoch, batches
        samplers = [door for door in self._doors if isinstance(door, FlowSampler)]
        if len(samplers) != len(loaded[_SAMPLERS]):
            raise MismatchError(
                f"the checkpoint has {len(loaded[_SAMPLERS])} samplers, this run {len(samplers)}"
            )
        if batches:
            self._check_middle(trainer, batches, loaded[_POSITION])
        for sampler, state in zip(samplers, loaded[_SAMPLERS], strict=True):
            sampler.load_state_dict(
                state | {_EPOCH: epoch, _POSITION: loaded[_POSITION] if batches else 0}
            )
        for door in self._doors:
            if isinstance(door, FlowDataset):
                door.set_epoch(epoch)
        if batches and _keep_their_state(trainer.train_dataloader):
            return
        # Lightning has called iter() already, and workers fetch from then on.
        iter(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]

    def _check_middle(self, trainer: Trainer, batches: int, position: int) -> None:
        if any(isinstance(door, FlowDataset) for door in self._doors):
            raise RuntimeError(
                f"the checkpoint was taken after batch {batches} of an epoch, and what a "
                "FlowDataset served until then is not known: use sampler=FlowSampler(weights) or, "
                "on several ranks, DistributedFlowSampler(weights), or checkpoints taken at the "
                "end of an epoch"
            )
        if position != batches * self._draws_a_batch:
            raise RuntimeError(
                f"the checkpoint was taken at draw {position} of an epoch, after {batches} "
                f"batches; this run draws {self._draws_a_batch} a batch over all ranks, so "
                "Lightning's count of batches does not fit: resume with as many ranks and as "
                "large batches as before, or from a checkpoint taken at the end of an epoch"
            )
        wrapped = any(
            isinstance(door, FlowSampler) and door.num_replicas != trainer.world_size
            for door in self._doors
        )
        if wrapped:
            raise RuntimeError(
                "Lightning wrapped the FlowSampler in one that permutes whole epochs, so it "
                "cannot go on in the middle of one: use DistributedFlowSampler(weights), or "
                "checkpoints taken at the end of an epoch"
            )


def _draws_a_batch(loaders: Any, world_size: int) -> int:
    batches: Any = getattr(loaders, "batch_sampler", None)
    batch_size: int | None = getattr(batches, "batch_size", getattr(loaders, "batch_size", None))
    return (batch_size or 1) * world_size


def _keep_their_state(loaders: Any) -> bool:
    """Whether Lightning saves and loads the loader's own state (torchdata's has one)."""
    return hasattr(loaders, "state_dict") and hasattr(loaders, "load_state_dict")
