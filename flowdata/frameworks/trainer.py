"""FlowCallback for the transformers Trainer, and so for TRL's."""

# The arguments of a hook are those of transformers.
# ruff: noqa: ARG002

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from flowdata.frameworks.sources import Source, sources_of

_ATTRIBUTES = "attributes"
_DRAWS = "draws_a_step"


class FlowCallback(TrainerCallback, ExportableState):
    """Sets the epoch of the FlowDataset, FlowSampler or FlowShards that the Trainer draws from.

    It makes every sampling order right, on any number of processes and after
    ``resume_from_checkpoint``. A FlowDataset with ``train_sampling_strategy="sequential"`` is
    right without it, and so is FlowShards, as long as the number of processes stays. How many
    draws make a step is saved in the checkpoint.

    Raises:
        ValueError: on training where there is nothing of flowdata.
        RuntimeError: on resuming with another number of draws a step: the Trainer counts steps,
            and would repeat draws or leave some out.

    >>> from flowdata.frameworks.trainer import FlowCallback
    >>> callbacks = [FlowCallback()]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._next_epoch = 0
        self.draws_a_step = 0

    def state(self) -> dict[str, Any]:
        """What transformers saves in each checkpoint."""
        return {"args": {}, _ATTRIBUTES: {_DRAWS: self.draws_a_step}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find what is drawn from, and the epoch that the Trainer begins or resumes."""
        loader = kwargs["train_dataloader"]
        self._sources = sources_of(loader)
        if not self._sources:
            raise ValueError(
                "the Trainer draws from no FlowDataset, FlowSampler or FlowShards: pass "
                "train_dataset=FlowDataset(data, weights), or under TRL set trainer.train_dataset "
                "after building the trainer"
            )
        config: Any = args.accelerator_config
        shared = 1 if config.split_batches else args.world_size
        self.draws_a_step = args.train_batch_size * shared * args.gradient_accumulation_steps
        if state.global_step > 0 and not args.ignore_data_skip:
            self._check_step(state)
        # As the Trainer counts: state.epoch is also a fraction where an epoch was cut short.
        updates = max(-(-len(loader) // args.gradient_accumulation_steps), 1)
        self._next_epoch = state.global_step // updates

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch before the Trainer iterates over its loader."""
        for source in self._sources:
            source.set_epoch(self._next_epoch)
        self._next_epoch += 1

    def _check_step(self, state: TrainerState) -> None:
        callbacks: Any = state.stateful_callbacks
        saved = callbacks.get(type(self).__name__, {})
        before = saved.get(_ATTRIBUTES, {}).get(_DRAWS) if isinstance(saved, dict) else None
        if before not in (None, self.draws_a_step):
            raise RuntimeError(
                f"the checkpoint was taken by a run with {before} draws a step, this one has "
                f"{self.draws_a_step}, and the Trainer counts steps, so it would resume elsewhere: "
                "choose per_device_train_batch_size and gradient_accumulation_steps such that "
                "their product with the number of processes is as before"
            )
