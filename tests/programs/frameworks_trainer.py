"""Run by torchrun or imported: the transformers Trainer over a FlowDataset or a FlowSampler.

usage: frameworks_trainer.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import warnings
from pathlib import Path

import torch
from frameworks_common import (
    RATE,
    SEED,
    WEIGHTS,
    Regression,
    kill_this_process,
    run_all,
    source,
    worker_context,
)
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from flowdata import DistributedFlowSampler, FlowDataset, FlowDataWarning, FlowSampler
from flowdata.frameworks.trainer import FlowCallback


class WithSampler(Trainer):
    """The override that the documentation of transformers gives for another sampler."""

    sampler = None

    def _get_train_sampler(self, train_dataset=None):
        return self.sampler


class Transformed(Dataset):
    """What users put around a data set: it reads items one by one, and tells it no epoch."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, item):
        return dict(self.dataset[item])


class Stop(TrainerCallback):
    """Ends the run, or the process, after a step; or each epoch after some steps."""

    def __init__(self, stop, kill, epoch_stop):
        self.stop, self.kill, self.epoch_stop = stop, kill, epoch_stop
        self.in_epoch = 0

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.in_epoch = 0

    def on_step_end(self, args, state, control, **kwargs):
        self.in_epoch += 1
        if state.global_step == self.kill:
            kill_this_process()
        control.should_training_stop |= state.global_step == self.stop
        control.should_epoch_stop |= self.in_epoch == self.epoch_stop


def run(
    folder,
    log,
    door="dataset",
    draws=24,
    rows="plain",
    strategy="sequential",
    callback=False,
    stop=None,
    kill=None,
    epoch_stop=None,
    resume=False,
    accelerator=None,
    transform=False,
    **options,
):
    """Errors and warnings of ours; the model logs what it was trained on."""
    outcome = {"error": None, "warnings": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        args = TrainingArguments(
            folder,
            use_cpu=True,
            train_sampling_strategy=strategy,
            **{
                "num_train_epochs": 3,
                "per_device_train_batch_size": 4,
                "save_strategy": "steps",
                "save_steps": 2,
                "report_to": "none",
                "disable_tqdm": True,
                "logging_strategy": "no",
                "max_grad_norm": 0.0,
                "accelerator_config": accelerator,
                "dataloader_multiprocessing_context": (
                    worker_context() if "dataloader_num_workers" in options else None
                ),
            }
            | options,
        )
        given, data = {"seed": SEED, "epoch_size": draws}, source(rows)
        if door == "dataset":
            data = FlowDataset(data, WEIGHTS, **given)
        if transform:
            data = Transformed(data)
        model = Regression(log)
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        trainer = (WithSampler if "sampler" in door else Trainer)(
            model,
            args,
            train_dataset=data,
            callbacks=[Stop(stop, kill, epoch_stop), *([FlowCallback()] if callback else [])],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        )
        if "sampler" in door:
            kind = DistributedFlowSampler if door == "rank sampler" else FlowSampler
            trainer.sampler = kind(WEIGHTS, **given)
        # As after a crash: from the last checkpoint that is there.
        checkpoint = bool(resume and any(Path(folder).glob("checkpoint-*")))
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
