"""FlowCallback for the transformers Trainer, and so for TRL's."""

# The arguments of a hook are those of transformers.
# ruff: noqa: ARG002

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from flowdata.dataset import FlowDataset
from flowdata.frameworks.doors import doors
from flowdata.sampler import FlowSampler


class FlowCallback(TrainerCallback):
    """Names the epoch to the FlowDataset or FlowSampler that the Trainer draws from.

    It makes every sampling order right, on any number of processes and after
    ``resume_from_checkpoint``. A FlowDataset with ``train_sampling_strategy="sequential"`` is
    right without it.

    >>> from flowdata.frameworks.trainer import FlowCallback
    >>> callbacks = [FlowCallback()]  # Trainer(..., callbacks=callbacks)
    """

    def __init__(self) -> None:
        self._doors: list[FlowSampler | FlowDataset[Any]] = []
        self._next_epoch = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find what is drawn from, and the epoch that the Trainer begins or resumes."""
        loader = kwargs["train_dataloader"]
        self._doors = doors(loader)
        if not self._doors:
            raise ValueError(
                "the Trainer draws from neither a FlowDataset nor a FlowSampler: pass "
                "train_dataset=FlowDataset(data, weights), or under TRL set trainer.train_dataset "
                "after building the trainer"
            )
        # As the Trainer counts: state.epoch is also a fraction where an epoch was cut short.
        updates = max(-(-len(loader) // args.gradient_accumulation_steps), 1)
        self._next_epoch = state.global_step // updates

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Name the epoch before the Trainer iterates over its loader."""
        for door in self._doors:
            door.set_epoch(self._next_epoch)
        self._next_epoch += 1
