"""Labels of texts: those of their rows are taken, in whatever collate function; moved ones not."""

from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForMultipleChoice,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    default_data_collator,
)

from flowdata import UnweightedLossError
from flowdata.reweight import reweight

ROWS = 64
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.random(ROWS)


def run(data, collate_fn, passes=2):
    torch.manual_seed(0)
    weighted, collate = reweight(data, WEIGHTS, collate_fn=collate_fn)
    loader = DataLoader(weighted, 8, shuffle=True, collate_fn=collate)
    return [batch for _ in range(passes) for batch in loader]


WORDS = [f"w{number}" for number in range(50)]
TOKENS = [RANDOM.integers(0, 50, RANDOM.integers(2, 12)).tolist() for _ in range(ROWS)]
CHOICES = [
    {"input_ids": [tokens, tokens[::-1]], "attention_mask": [[1] * len(tokens)] * 2, "label": k % 2}
    for k, tokens in enumerate(TOKENS)
]
RAW = [{"input_ids": tokens} for tokens in TOKENS]
ANSWERS = [
    {"input_ids": tokens, "labels": [-100] * (len(tokens) // 2) + tokens[len(tokens) // 2 :]}
    for tokens in TOKENS
]
TEXTS = [{"text": " ".join(WORDS[token] for token in tokens)} for tokens in TOKENS]
CLASSIFIED = [{"input_ids": tokens, "label": len(tokens) % 3} for tokens in TOKENS]


def tokenizer(side="right"):
    vocabulary = {word: number for number, word in enumerate([*WORDS, "<pad>", "<mask>", "<unk>"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        mask_token="<mask>",
        unk_token="<unk>",
        padding_side=side,
    )


def tokenized(items, side="right"):
    batch = tokenizer(side)([item["text"] for item in items], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def padded(items):
    def pad(name, value):
        rows = [torch.tensor(item[name]) for item in items]
        return pad_sequence(rows, batch_first=True, padding_value=value)

    return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100)}


def padded_and(change):
    def collate(items):
        batch = padded(items)
        return batch | {"labels": change(batch["labels"])}

    return collate


def cut_to_the_shortest(items):
    shortest = min(len(item["labels"]) for item in items)
    return {"labels": torch.tensor([item["labels"][:shortest] for item in items])}


def tokenized_and_cut(items):
    shortest = min(item["text"].count(" ") + 1 for item in items)
    return {"labels": tokenized(items)["labels"][:, :shortest]}


def collated_backwards(collator):
    return lambda items: collator(items[::-1])


def masked_prompt(labels):
    return labels.index_fill(1, torch.tensor([0]), -100)


LANGUAGE = {
    "token classification": (ANSWERS, lambda: DataCollatorForTokenClassification(tokenizer())),
    "sequence to sequence": (ANSWERS, lambda: DataCollatorForSeq2Seq(tokenizer())),
    "padded left": (ANSWERS, lambda: DataCollatorForSeq2Seq(tokenizer("left"))),
    "causal": (RAW, lambda: DataCollatorForLanguageModeling(tokenizer(), mlm=False)),
    "masked": (RAW, lambda: DataCollatorForLanguageModeling(tokenizer(), mlm_probability=0.3)),
    "padding": (CLASSIFIED, lambda: DataCollatorWithPadding(tokenizer())),
    "default": ([{"x": [1.0], "label": k % 3} for k in range(ROWS)], lambda: default_data_collator),
    "texts": (TEXTS, lambda: tokenized),
    "texts, padded left": (TEXTS, lambda: partial(tokenized, side="left")),
    "multiple choice": (CHOICES, lambda: DataCollatorForMultipleChoice(tokenizer())),
    "pad_sequence": (ANSWERS, lambda: padded),
    "cut off": (ANSWERS, lambda: padded_and(lambda labels: labels[:, :5])),
    "cut to the shortest": (ANSWERS, lambda: cut_to_the_shortest),
    "texts cut to the shortest": (TEXTS, lambda: tokenized_and_cut),
    "prompt left out": (ANSWERS, lambda: padded_and(masked_prompt)),
    "shifted": (
        ANSWERS,
        lambda: padded_and(lambda labels: F.pad(labels[:, 1:], (0, 1), value=-100)),
    ),
}


@pytest.mark.parametrize(("rows", "make"), LANGUAGE.values(), ids=LANGUAGE)
def test_labels_of_texts_are_those_of_their_rows(rows, make):
    assert len(run(rows, make())) == 2 * ROWS / 8


@pytest.mark.parametrize(("rows", "make"), LANGUAGE.values(), ids=LANGUAGE)
def test_texts_in_another_order_are_refused(rows, make):
    with pytest.raises(UnweightedLossError, match="moves, leaves out or repeats"):
        run(rows, collated_backwards(make()))
