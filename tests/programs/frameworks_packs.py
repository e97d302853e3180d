"""Run by torchrun or imported: SFTTrainer and Trainer on packs of a tiny language model.

usage: frameworks_packs.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import json
import os
import warnings
from pathlib import Path

import datasets
import numpy as np
from frameworks_common import ROWS, SEED, WEIGHTS, run_all, worker_context
from frameworks_language import LEARNING_RATE, make_model, make_tokenizer, sentences
from frameworks_trainer import Stop
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from flowdata import (
    ByLength,
    EpochPlan,
    FlowDataset,
    FlowDataWarning,
    FlowPacks,
    FlowPackSampler,
    PackCollator,
    PackPlan,
)
from flowdata.frameworks.trainer import FlowCallback

DRAWS, MOST, TOGETHER = 60, 24, 4
"""Draws of an epoch, tokens of a pack, packs that are trained on together."""


def tokenized():
    """As TRL tokenizes the sentences."""
    tokenizer = make_tokenizer()
    texts = [text + tokenizer.eos_token for text in sentences()]
    return [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]


def lengths():
    return np.array([len(row["input_ids"]) for row in tokenized()])


def plan_of(epoch, together=TOGETHER):
    """What an epoch is to have."""
    plan = EpochPlan(WEIGHTS, seed=SEED, epoch_size=DRAWS)
    return PackPlan(plan, lengths(), MOST, batch_size=together).at_epoch(epoch)


def by_length():
    return ByLength(lengths(), TOGETHER, window=5)


def draws_of(epoch):
    """What an epoch of batches of like length is to have."""
    plan = EpochPlan(WEIGHTS, seed=SEED, epoch_size=DRAWS, arrange=by_length())
    return plan.at_epoch(epoch)


def log_rows(model, log):
    """Log the rows in each batch, which their first tokens tell. TRL replaces model.forward."""
    firsts = {row["input_ids"][0]: number for number, row in enumerate(tokenized())}
    assert len(firsts) == ROWS

    def write(module, inputs):
        if module.training:
            rows = [firsts[token] for token in inputs[0].flatten().tolist() if token in firsts]
            with Path(f"{log}.{os.environ.get('RANK', 0)}").open("a") as file:
                file.write(f"{json.dumps({'rows': rows, 'loss': 0})}\n")

    model.get_input_embeddings().register_forward_pre_hook(write)


class PackTrainer(Trainer):
    """Its batches are packs of rows, put together by transformers' own collator."""

    def get_train_dataloader(self):
        sampler = FlowPackSampler(
            WEIGHTS, lengths(), MOST, batch_size=TOGETHER, seed=SEED, epoch_size=DRAWS
        )
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=DataCollatorWithFlattening(),
            num_workers=self.args.dataloader_num_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(loader)


def make_sft(model, tokenizer, arguments, callbacks):
    from trl import SFTConfig, SFTTrainer

    from flowdata.frameworks.trl import draw_from

    trainer = SFTTrainer(
        model,
        SFTConfig(**{"gradient_checkpointing": False} | arguments),
        train_dataset=datasets.Dataset.from_dict({"text": sentences()}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    draw_from(trainer, WEIGHTS, packing=True, max_length=MOST, seed=SEED, epoch_size=DRAWS)
    return trainer


def make_trainer(kind, model, tokenizer, arguments, callbacks):
    rows, given = tokenized(), {"seed": SEED, "epoch_size": DRAWS}
    args = TrainingArguments(**arguments)
    if kind == "by length":
        rows = [row | {"labels": row["input_ids"]} for row in rows]
        data = FlowDataset(rows, WEIGHTS, arrange=by_length(), **given)
        collate = DataCollatorForSeq2Seq(tokenizer)
        return Trainer(model, args, collate, train_dataset=data, callbacks=callbacks)
    callbacks = [*callbacks, FlowCallback()]
    if kind == "sampler":
        return PackTrainer(model, args, train_dataset=rows, callbacks=callbacks)
    packs = FlowPacks(rows, WEIGHTS, lengths(), MOST, batch_size=TOGETHER, **given)
    return Trainer(model, args, PackCollator(), train_dataset=packs, callbacks=callbacks)


def run(folder, log, kind="sft", accumulate=1, stop=None, kill=None, resume=False, **options):
    """Errors and warnings of ours, and losses; the model logs what it was trained on."""
    outcome = {"error": None, "warnings": [], "losses": []}
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer))
    log_rows(model, log)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    batch_size = TOGETHER // ranks // accumulate
    if kind == "sampler":
        accumulate, batch_size = TOGETHER // ranks, 1
    workers = {"dataloader_multiprocessing_context": worker_context()}
    arguments = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "num_train_epochs": 3,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulate,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "steps",
        **(workers if options.get("dataloader_num_workers") else {}),
        **options,
    }
    callbacks = [Stop(stop, kill, None)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        try:
            if kind == "sft":
                trainer = make_sft(model, tokenizer, arguments, callbacks)
            else:
                trainer = make_trainer(kind, model, tokenizer, arguments, callbacks)
            checkpoint = bool(resume and any(Path(folder).glob("checkpoint-*")))
            trainer.train(resume_from_checkpoint=checkpoint)
            history = trainer.state.log_history
            outcome["losses"] = [entry["loss"] for entry in history if "loss" in entry]
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


if __name__ == "__main__":
    run_all(run)
