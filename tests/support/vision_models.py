"""Small models of transformers whose forward gives a loss, and rows of uneven shape for them."""

import functools

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence

ROWS = 40
BERT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
SEQUENCES = transformers.BertForSequenceClassification
TOKENS = transformers.BertForTokenClassification


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def classes(number, count=4):
    return torch.tensor(number % count)


def flags(number):
    return (torch.rand(4, generator=seeded(number)) < 0.5).float()


def numbers(number, count=4):
    return torch.randn(count, generator=seeded(number))


PROBLEMS = {
    "classes": ({"num_labels": 4}, classes),
    "classes, named": (
        {"num_labels": 4, "problem_type": "single_label_classification"},
        classes,
    ),
    "several labels": ({"num_labels": 4}, flags),
    "several labels, named": (
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        flags,
    ),
    "several labels, whole numbers": (
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        lambda number: flags(number).long(),
    ),
    "one number": ({"num_labels": 1}, lambda number: numbers(number, 1)[0]),
    "one whole number": ({"num_labels": 1}, lambda number: torch.tensor(number % 5)),
    "several numbers": ({"num_labels": 4, "problem_type": "regression"}, numbers),
}
"""(options, labels of a row) of each problem that a configuration can name, or leave open."""


def bert_sequences(problem):
    options, label = PROBLEMS[problem]
    rows = [{"input_ids": words(number), "labels": label(number)} for number in range(ROWS)]
    return made(SEQUENCES, transformers.BertConfig(**BERT, **options)), rows


def words(number):
    return torch.randint(5, 60, (3 + number % 17,), generator=seeded(number))


def bert_tokens():
    """The first token and the last are ignored, and some others."""
    rows = []
    for number in range(ROWS):
        ids = words(number)
        labels = torch.randint(0, 9, ids.shape, generator=seeded(100 + number))
        labels = labels.masked_fill(torch.rand(ids.shape, generator=seeded(number)) < 0.3, -100)
        labels[1] = 3
        rows.append({"input_ids": ids, "labels": labels})
    return made(TOKENS, transformers.BertConfig(**BERT, num_labels=9)), rows


class ViTForImageClassification(transformers.ViTForImageClassification):
    """It takes images of any size. Its name says which loss it has, as in transformers."""

    def forward(self, pixel_values, labels=None):
        return super().forward(pixel_values, labels=labels, interpolate_pos_encoding=True)


def image(number, *size):
    return torch.randn(3, *size, generator=seeded(number))


def vit(problem):
    options, label = PROBLEMS[problem]
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
        initializer_range=0.3,
        **options,
    )
    rows = [
        {
            "pixel_values": image(number, 16 + 8 * (number % 3), 16 + 8 * (number % 2)),
            "labels": label(number),
        }
        for number in range(ROWS)
    ]
    return made(ViTForImageClassification, config), rows


def segformer(num_labels=5, ignored=255):
    config = transformers.SegformerConfig(
        depths=[1] * 4,
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=num_labels,
        semantic_loss_ignore_index=ignored,
        initializer_range=0.3,
    )
    rows = []
    for number in range(ROWS):
        size = (32 + 4 * (number % 5), 32 + 12 * (number % 2))
        labels = torch.randint(0, num_labels, size, generator=seeded(number))
        labels[: number % 9] = ignored
        rows.append({"pixel_values": image(number, *size), "labels": labels})
    return made(transformers.SegformerForSemanticSegmentation, config), rows


def made(kind, config):
    torch.manual_seed(0)
    return kind(config).eval()


def padded(rows):
    """A batch of rows of words, as transformers' collators make it."""
    labels = [row["labels"] for row in rows]
    several = labels[0].ndim and len({len(each) for each in labels}) > 1
    return {
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "attention_mask": pad_sequence(
            [torch.ones_like(row["input_ids"]) for row in rows], batch_first=True
        ),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100)
        if several
        else torch.stack(labels),
    }


def own_losses(model, rows, collate=None):
    """What a plain loop gives: the model's own loss of a batch of each row."""
    said = getattr(model.config, "problem_type", None)
    alone = collate or (lambda rows: {name: part[None] for name, part in rows[0].items()})
    with torch.no_grad():
        losses = []
        for row in rows:
            batch = alone([row])
            if said == "multi_label_classification":
                batch["labels"] = batch["labels"].float()
            losses.append(model(**batch).loss.item())
    if hasattr(model.config, "problem_type"):
        model.config.problem_type = said
    return losses


MODELS = {
    **{f"BERT, {problem}": functools.partial(bert_sequences, problem) for problem in PROBLEMS},
    **{f"ViT, {problem}": functools.partial(vit, problem) for problem in PROBLEMS},
    "BERT, tokens": bert_tokens,
    "Segformer": segformer,
    "Segformer, another ignored index": functools.partial(segformer, ignored=7),
}
