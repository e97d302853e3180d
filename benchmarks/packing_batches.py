"""Real texts, and the training steps that padding, grouping by length and packing make of them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import texts
import torch
from assets import smollm2
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from flowdata import ByLength, FlowPacks, FlowSampler, FlowWeights, PackCollator

Row: TypeAlias = dict[str, list[int]]
Batch: TypeAlias = dict[str, Tensor]
Step: TypeAlias = list[Batch]
"""What one step of the optimizer is trained on: batches whose gradients add up."""

PADDED, GROUPED = "random, padded", "ByLength, padded"
TRL_ROW, TRL_SINGLE = "TRL's packs of {:,}, in one row", "TRL's packs of {:,}, one by one"
BATCH = 16
"""Rows of a batch that has no packs."""
FILL = 0
"""Token that fills batches up; no text has it."""


def code() -> list[str]:
    """Functions of the standard library, after what they are for."""
    return [row["prompt"] + row["response"] for row in texts.functions()]


def chats() -> list[str]:
    """What somebody says, and the answer."""
    return ["\n".join(turn) for turn in texts.turns()]


def maths() -> list[str]:
    """Questions with worked answers."""
    questions = texts.maths(texts.templates(), count=4000, seed=0)
    return [f"{each.prompt}\n{each.answer}" for each in questions]


SOURCES: dict[str, Callable[[], list[str]]] = {"code": code, "chats": chats, "maths": maths}


def tokenized(sources: Sequence[str], count: int, longest: int) -> list[Row]:
    """So many texts as tokens, as many of each source as far as it has them, in any order.

    Longer ones are cut.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    random = np.random.default_rng(0)
    chosen: list[str] = []
    for source in sources:
        known = SOURCES[source]()
        places = random.permutation(len(known))[: count // len(sources)]
        chosen += [known[place] + tokenizer.eos_token for place in places]
    ids = tokenizer(chosen, max_length=longest, truncation=True)["input_ids"]
    return [
        {"input_ids": ids[place], "labels": ids[place]} for place in random.permutation(len(ids))
    ]


def lengths_of(rows: Iterable[Row]) -> np.ndarray[Any, Any]:
    """Tokens of each row."""
    return np.array([len(row["input_ids"]) for row in rows])


def loaders(
    rows: Sequence[Row], tokens: int, capacities: Sequence[int]
) -> dict[str, Iterable[Step]]:
    """The steps of an epoch, by each method.

    Args:
        rows: to train on.
        tokens: that a step of packs has room for.
        capacities: of packs; those of TRL have the first.
    """
    lengths = lengths_of(rows)
    # What the losses of rows are makes no difference to the time of a step.
    weights = FlowWeights.from_losses(np.random.default_rng(1).gamma(2.0, size=len(rows)))
    grouped = FlowSampler(weights, arrange=ByLength(lengths, batch_size=BATCH))
    found: dict[str, Iterable[Step]] = {
        PADDED: DataLoader(rows, BATCH, sampler=FlowSampler(weights), collate_fn=padded),
        GROUPED: DataLoader(rows, BATCH, sampler=grouped, collate_fn=padded),
    }
    for capacity in capacities:
        together = tokens // capacity
        packs = FlowPacks(rows, weights, lengths, capacity, batch_size=together)
        found[name_of(capacity, tokens)] = DataLoader(packs, together, collate_fn=packed)
        if together > 1:
            found[name_of(capacity, capacity)] = DataLoader(packs, together, collate_fn=singly)
    return found | loaders_of_trl(rows, tokens // capacities[0], capacities[0])


def name_of(capacity: int, tokens: int) -> str:
    """What training on packs of this capacity, in batches of so many tokens, is called."""
    together = tokens // capacity
    return f"packs of {capacity:,}, " + (f"batches of {together}" if together > 1 else "one by one")


def padded(rows: Sequence[Row]) -> Step:
    """Rows that are filled up to the length of the longest."""

    def filled(values: Iterable[Sequence[int]], fill: int) -> Tensor:
        return pad_sequence(list(map(torch.tensor, values)), batch_first=True, padding_value=fill)

    batch = {
        "input_ids": filled((row["input_ids"] for row in rows), FILL),
        "labels": filled((row["labels"] for row in rows), -100),
        "attention_mask": filled(([1] * len(row["labels"]) for row in rows), 0),
    }
    return [batch]


def packed(packs: Sequence[Any]) -> Step:
    """Packs as the rows of a batch."""
    return [PackCollator(FILL)(packs)]


def singly(packs: Sequence[Any]) -> Step:
    """Packs as batches of one, whose gradients add up."""
    return [PackCollator(FILL)([pack]) for pack in packs]


def loaders_of_trl(rows: Sequence[Row], together: int, capacity: int) -> dict[str, Iterable[Step]]:
    """What SFTTrainer(packing=True) trains on, of rows without weights.

    It puts the packs of a batch into one row; a batch of one pack with gradients that are
    accumulated has the same tokens, and attention over shorter rows.
    """
    from datasets import Dataset
    from trl.data_utils import pack_dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    packs = pack_dataset(Dataset.from_list(list(rows)), capacity, "bfd")
    collate = DataCollatorForLanguageModeling(pad_token_id=FILL, padding_free=True)
    loader = partial(DataLoader, packs, together, shuffle=True, drop_last=True)
    return {
        TRL_ROW.format(capacity): loader(collate_fn=lambda packs: [collate(packs)]),
        TRL_SINGLE.format(capacity): loader(
            collate_fn=lambda packs: [collate([pack]) for pack in packs]
        ),
    }


def endless(loader: Iterable[Step]) -> Iterator[Step]:
    """The steps of one epoch after the other."""
    while True:
        yield from loader


def useful(step: Step) -> int:
    """Tokens of texts in a step."""
    return sum(int((batch["input_ids"] != FILL).sum()) for batch in step)


def places(step: Step) -> int:
    """Tokens that the model computes in a step, with those that fill up."""
    return sum(batch["input_ids"].numel() for batch in step)


@dataclass(frozen=True)
class Shares:
    """What an epoch of steps is made of.

    Attributes:
        padding: share of the computed tokens that fill up.
        short: share of the loss that the shortest third of the texts has, where the loss of a
            batch is the mean over its tokens.
    """

    padding: float
    short: float


def shares(loader: Iterable[Step], lengths: np.ndarray[Any, Any]) -> Shares:
    """The shares of an epoch.

    Args:
        loader: its steps.
        lengths: of all texts.
    """
    longest_short = float(np.quantile(lengths, 1 / 3))
    computed, tokens, short = 0, 0, []
    for step in loader:
        computed += places(step)
        tokens += useful(step)
        for batch in step:
            own = sample_lengths(batch)
            short.append(own[own <= longest_short].sum() / own.sum())
    return Shares(1.0 - tokens / computed, float(np.mean(short)))


def sample_lengths(batch: Batch) -> np.ndarray[Any, Any]:
    """Tokens of each text of a batch."""
    if "attention_mask" in batch:
        return batch["attention_mask"].sum(dim=1).numpy()
    positions = batch["position_ids"][batch["input_ids"] != FILL].numpy()
    return np.diff(np.append(np.flatnonzero(positions == 0), positions.size))
