"""An unmodified Trainer that goes through its rows in order, and the gradients of its steps."""

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments


class Watching(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, *_, model, **__):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


def trained(model, data, collate, folder, **options):
    """Gradients of each step of a training by an unmodified Trainer, in the order of the data."""

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"learning_rate": 0.05, "num_train_epochs": 1, "remove_unused_columns": False} | options,
    )
    watching = Watching()
    InOrder(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        callbacks=[watching],
    ).train()
    return watching.seen
