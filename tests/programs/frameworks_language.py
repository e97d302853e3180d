"""Run by torchrun or imported: the Trainers of TRL and transformers on a tiny language model.

usage: frameworks_language.py CONFIG.json, which holds {out, runs: {name: arguments of `run`}}.
"""

import json
import os
import warnings
from pathlib import Path

import datasets
import torch
from frameworks_common import ROWS, SEED, WEIGHTS, run_all
from frameworks_trainer import Stop
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from flowdata import FlowDataset, FlowDataWarning
from flowdata.frameworks.trainer import FlowCallback
from flowdata.reweight import reweight

LEARNING_RATE = 0.1
LORA = {
    "target_modules": ["q_proj", "v_proj"],
    "r": 2,
    "lora_dropout": 0.0,
    "task_type": "CAUSAL_LM",
}


def log_rows(embeddings, log, rows):
    """Log the rows of each batch, which their first tokens tell. TRL replaces model.forward."""

    def write(module, inputs):
        if module.training:
            entry = json.dumps({"rows": [rows[int(first)] for first in inputs[0][:, 0]], "loss": 0})
            with Path(f"{log}.{os.environ.get('RANK', 0)}").open("a") as file:
                file.write(f"{entry}\n")

    embeddings.register_forward_pre_hook(write)


def sentences():
    return [f"row{row}{' and so on' * (1 + row % 3)}" for row in range(ROWS)]


def make_tokenizer():
    words = ["[UNK]", "[EOS]", "[PAD]", "and", "so", "on", *(f"row{row}" for row in range(ROWS))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", pad_token="[PAD]"
    )


def make_model(vocabulary):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).double()


def run(
    folder,
    log,
    kind="trl",
    lora=False,
    draws=24,
    callback=False,
    door=True,
    weighted=False,
    stop=None,
    resume=False,
    **options,
):
    """Errors and warnings of ours; the model logs what it was trained on."""
    outcome = {"error": None, "warnings": []}
    tokenizer = make_tokenizer()
    texts = sentences()
    firsts = {tokenizer(text)["input_ids"][0]: row for row, text in enumerate(texts)}
    model = make_model(len(tokenizer))
    log_rows(model.get_input_embeddings(), log, firsts)
    if weighted and lora:
        # The first adapter is random: this one is that of the loop without framework.
        model = get_peft_model(model, LoraConfig(**LORA))
    common = {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": False,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_steps": 2,
    } | options
    given = {"seed": SEED, "epoch_size": draws}
    callbacks = [Stop(stop, None, None), *([FlowCallback()] if callback else [])]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FlowDataWarning)
        try:
            if kind == "trl":
                from trl import SFTConfig, SFTTrainer

                from flowdata.frameworks.trl import draw_from, weighted_loss

                trainer = SFTTrainer(
                    model,
                    SFTConfig(**{"gradient_checkpointing": False} | common),
                    train_dataset=datasets.Dataset.from_dict({"text": texts}),
                    processing_class=tokenizer,
                    callbacks=callbacks,
                    peft_config=LoraConfig(**LORA) if lora and not weighted else None,
                    compute_loss_func=weighted_loss if weighted else None,
                )
                if weighted:
                    trainer.train_dataset, trainer.data_collator = reweight(
                        trainer.train_dataset,
                        WEIGHTS,
                        target="labels",
                        collate_fn=trainer.data_collator,
                        normalize=None,
                    )
                elif door:
                    draw_from(trainer, WEIGHTS, **given)
            else:
                rows = [tokenizer(text + tokenizer.eos_token) for text in texts]
                rows = [{**row, "labels": row["input_ids"]} for row in rows]
                trainer = Trainer(
                    get_peft_model(model, LoraConfig(**LORA)) if lora else model,
                    TrainingArguments(**common),
                    train_dataset=FlowDataset(rows, WEIGHTS, **given),
                    data_collator=DataCollatorForSeq2Seq(tokenizer),
                    callbacks=callbacks,
                )
            checkpoint = bool(resume and any(Path(folder).glob("checkpoint-*")))
            trainer.train(resume_from_checkpoint=checkpoint)
            history = trainer.state.log_history
            outcome["losses"] = [entry["loss"] for entry in history if "loss" in entry]
        except (RuntimeError, ValueError) as error:
            outcome["error"] = str(error)
    ours = [w for w in caught if issubclass(w.category, FlowDataWarning)]
    outcome["warnings"] = [str(w.message) for w in ours]
    return outcome


def plain_loop(batches, weights=None, lora=False):
    """Losses of a loop without framework over batches of rows: the mean over their tokens."""
    tokenizer = make_tokenizer()
    rows = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in sentences()]
    model = make_model(len(tokenizer))
    model = get_peft_model(model, LoraConfig(**LORA)) if lora else model
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for batch in batches:
        summed, counted = 0.0, 0
        for row in batch:
            ids = torch.tensor([rows[row]])
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
            summed += loss if weights is None else weights[row] * loss
            counted += ids.shape[1] - 1
        optimizer.zero_grad()
        (summed / counted).backward()
        optimizer.step()
        losses.append(summed.item() / counted)
    return losses


if __name__ == "__main__":
    run_all(run)
