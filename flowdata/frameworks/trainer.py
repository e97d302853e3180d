"""FlowCallback and MonitorCallback for the transformers Trainer, and so for TRL's."""

# The arguments of a hook are those of transformers.
# ruff: noqa: ARG002

from typing import Any

from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import ExportableState

from flowdata.frameworks.monitored import MonitoredLoader
from flowdata.frameworks.pack_checks import require_packs_apart
from flowdata.frameworks.sources import Source, sources_of
from flowdata.monitoring.monitor import Monitor

_ATTRIBUTES = "attributes"
_DRAWS = "draws_a_step"
_NEEDS_DATA = "needs_data"
_MONITOR = "monitor_state"


class FlowCallback(TrainerCallback, ExportableState):
    """Sets the epoch of the data set, sampler or stream of flowdata that the Trainer draws from.

    It makes every sampling order right, on any number of processes and after
    ``resume_from_checkpoint``. A FlowDataset with ``train_sampling_strategy="sequential"`` is
    right without it, and so is FlowShards, as long as the number of processes stays. How many
    draws make a step is saved in the checkpoint. Where packs are drawn, it makes sure that the
    model keeps their samples apart, see `flowdata.frameworks.contamination`.

    Args:
        data: what the Trainer draws from, where its ``get_train_dataloader`` returns a loader of
            your own, in which it is not found.

    Raises:
        ValueError: on training where there is nothing of flowdata.
        ContaminationError: on training, for a model that lets the samples of packs see each other.
        RuntimeError: on resuming with another number of draws a step: the Trainer counts steps,
            and would repeat draws or leave some out; and where the Trainer has made the callback
            again without its data.

    >>> from flowdata.frameworks.trainer import FlowCallback
    >>> callbacks = [FlowCallback()]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self, *data: Source) -> None:
        self._given = data
        self._sources: list[Source] = []
        self._next_epoch = 0
        self.draws_a_step = 0
        self.needs_data = bool(data)

    def state(self) -> dict[str, Any]:
        """What transformers saves in each checkpoint."""
        attributes = {_DRAWS: self.draws_a_step, _NEEDS_DATA: self.needs_data}
        return {"args": {}, _ATTRIBUTES: attributes}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find what is drawn from, and the epoch that the Trainer begins or resumes."""
        if self.needs_data and not self._given:
            raise RuntimeError(
                "restore_callback_states_from_checkpoint=True has made FlowCallback(data) again "
                "without its data: leave that argument out, FlowCallback needs none of it"
            )
        loader = kwargs["train_dataloader"]
        found = sources_of(loader)
        self._sources = [*found, *(data for data in self._given if data not in found)]
        if not self._sources:
            raise ValueError(
                "the Trainer draws from no FlowDataset, FlowSampler or FlowShards that can be "
                "found: pass train_dataset=FlowDataset(data, weights), or under TRL set "
                "trainer.train_dataset after building the trainer; where get_train_dataloader "
                "returns a loader of your own, name what it draws from, FlowCallback(dataset)"
            )
        self.draws_a_step = draws_a_step(args, loader)
        if state.global_step > 0 and not args.ignore_data_skip:
            self._check_step(state)
        for source in self._sources:
            require_packs_apart(kwargs["model"], source, loader, args.train_batch_size)
        # As the Trainer counts: state.epoch is also a fraction where an epoch was cut short.
        self._next_epoch = state.global_step // _steps_an_epoch(args, state, loader)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch before the Trainer iterates over its loader."""
        for source in self._sources:
            source.set_epoch(self._next_epoch)
        self._next_epoch += 1

    def _check_step(self, state: TrainerState) -> None:
        before = _saved_attribute(self, state, _DRAWS)
        if before not in (None, self.draws_a_step):
            raise RuntimeError(
                f"the checkpoint was taken by a run with {before} draws a step, this one has "
                f"{self.draws_a_step}, and the Trainer counts steps, so it would resume elsewhere: "
                "choose per_device_train_batch_size and gradient_accumulation_steps such that "
                "their product with the number of processes is as before"
            )


class MonitorCallback(TrainerCallback, ExportableState):
    """Counts for a `flowdata.Monitor` what the Trainer draws, and logs its figures as the Trainer.

    Whenever the Trainer logs the training loss, ``trainer.log`` gets the figures too: W&B,
    TensorBoard, the progress bar and ``state.log_history`` have them. They are of all processes.
    What was counted is saved in each checkpoint, a few numbers for each epoch.

    Args:
        monitor: of the data set or sampler, or of its weights.
        trainer: whose ``log`` is to have the figures.

    Raises:
        ValueError: on training, where it is not known what is drawn.
        MismatchError: on training, for a Monitor of other rows, and on resuming, for one of other
            weights or options.
        RuntimeError: on training, where the Trainer has made the callback again.

    >>> from flowdata.frameworks.trainer import MonitorCallback
    >>> # trainer.add_callback(MonitorCallback(flowdata.Monitor(dataset), trainer))
    """

    def __init__(self, monitor: Monitor | None = None, trainer: Trainer | None = None) -> None:
        self.monitor, self._trainer = monitor, trainer
        self._loader: MonitoredLoader | None = None
        self._batches = self._skipped = 0
        self._assumes = self._is_logging = False
        self._gathered: tuple[int, dict[str, float]] | None = None

    def state(self) -> dict[str, Any]:
        """What transformers saves in each checkpoint."""
        saved = None if self.monitor is None else self.monitor.state_dict()
        return {"args": {}, _ATTRIBUTES: {_MONITOR: saved}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find what is drawn from, and go on from what the checkpoint says was counted."""
        if self.monitor is None or self._trainer is None:
            raise RuntimeError(
                "MonitorCallback needs its monitor and trainer, MonitorCallback(monitor, trainer), "
                "without which restore_callback_states_from_checkpoint=True makes it again: leave "
                "that argument out"
            )
        loader = kwargs["train_dataloader"]
        self.monitor.reset()
        self._gathered = None
        self._loader = MonitoredLoader(self.monitor, loader, ranks=args.world_size)
        saved = _saved_attribute(self, state, _MONITOR) if state.global_step else None
        if saved is not None:
            self.monitor.load_state_dict(saved)
        self._assumes = state.global_step > 0 and saved is None
        more = state.global_step % _steps_an_epoch(args, state, loader)
        self._skipped = 0 if args.ignore_data_skip else more * args.gradient_accumulation_steps

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count batches from here, after those that a run that resumes leaves out."""
        assert self._loader is not None
        self._loader.begin_epoch()
        self._batches, self._skipped = self._skipped, 0

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a batch whose gradients are added up."""
        self._count()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the last batch of a step."""
        self._count()
        self._gather(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sum up losses of all processes where the Trainer logs by the epoch."""
        self._gather(args, state, control)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Have the Trainer log the figures beside its training loss."""
        if self._is_logging or "loss" not in kwargs["logs"]:
            return
        assert self.monitor is not None
        assert self._trainer is not None
        step, figures = self._gathered or (None, {})
        if figures := figures if step == state.global_step else self.monitor.figures():
            self._is_logging = True
            try:
                self._trainer.log(figures)
            finally:
                self._is_logging = False

    def _gather(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Sum up losses of all processes where each of them is bound to log.

        transformers 5.23 averages its loss over them there; anybody may call `log` on one alone.
        """
        if control.should_log and args.world_size > 1:
            assert self.monitor is not None
            self._gathered = state.global_step, self.monitor.figures(gather=True)

    def _count(self) -> None:
        assert self._loader is not None
        self._loader.look(self._batches, assume=self._assumes)
        self._assumes = False
        self._loader.trained(self._batches)
        self._batches += 1


def _saved_attribute(callback: ExportableState, state: TrainerState, name: str) -> Any:
    """What a callback has saved in the checkpoint that is resumed from; None if nothing."""
    callbacks: Any = state.stateful_callbacks
    saved = callbacks.get(type(callback).__name__, {})
    return saved.get(_ATTRIBUTES, {}).get(name) if isinstance(saved, dict) else None


def draws_a_step(args: TrainingArguments, loader: Any = None) -> int:
    """Items of all processes for a step of the optimizer: draws, or packs."""
    config: Any = args.accelerator_config
    size = args.train_batch_size
    if args.auto_find_batch_size:
        # The Trainer may have come to a smaller one, with which it has made its loader.
        size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or size
    shared = 1 if config.split_batches else args.world_size
    return size * shared * args.gradient_accumulation_steps


def _steps_an_epoch(args: TrainingArguments, state: TrainerState, loader: Any) -> int:
    """As `Trainer.set_initial_training_values` of transformers 5.23 has it."""
    try:
        batches = len(loader)
    except (TypeError, NotImplementedError):
        return max(state.max_steps, 1)
    return max(-(-batches // args.gradient_accumulation_steps), 1)
