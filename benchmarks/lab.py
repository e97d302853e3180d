"""Lab: a pre-trained language model, what it is fine-tuned on, and what it knows."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from comparing import Run
from methods import (
    FLOW,
    STANDARD,
    Tuned,
    Tuning,
    fine_tuned,
    momentum,
    sharing,
)
from texts import (
    Question,
    functions,
    knowledge,
    maths,
    novels,
    paragraphs,
    scanned,
    sentences,
    shuffled,
    templates,
)
from torch import Tensor, nn

from flowdata import CausalLM, FlowWeights, LossTable, score

CLEAN, HARMFUL, SCANS = "maths", "maths, harmful samples", "scans, harmful samples"
PRE_TRAINED, LORA, FLOW_LORA = "pre-trained", "LoRA", "FLOW + LoRA"
ADAPTED = {LORA: STANDARD, FLOW_LORA: FLOW}
# Shares of the samples whose answers are of other samples, in any word order, and code instead.
DAMAGE = {CLEAN: (0.0, 0.0, 0.0), HARMFUL: (0.25, 0.15, 0.1), SCANS: (0.3, 0.0, 0.1)}
ANSWERS = {"prompt": "prompt", "response": "response"}
# How many are trained on; the others are for evaluation.
TEMPLATES, NOVELS = 60, 4
# Sentences are short: so many are evaluated for each longer text.
SENTENCES = 4
IGNORED = -100


@dataclass(frozen=True)
class Preset:
    """How much is measured, by default of what. Rates: for all parameters, and for LoRA."""

    samples: int
    epochs: int
    batch_size: int
    evaluated: int
    questions: int
    max_length: int
    rates: tuple[float, ...]
    lora_rates: tuple[float, ...]
    seeds: int
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    optimizer: str = "AdamW"


@dataclass(frozen=True)
class Task:
    """One task and seed, tokenized and scored."""

    rows: list[dict[str, Any]]
    table: LossTable
    held_out: list[dict[str, str]]
    new: list[dict[str, str]]
    hardest: Any
    other: list[dict[str, str]]
    columns: dict[str, str]
    questions: list[Question]

    @property
    def weights(self) -> FlowWeights:
        """FLOW's."""
        return self.table.weights()


class Lab:
    """The pre-trained model, and what is done with it."""

    def __init__(self, preset: Preset, model: str, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Long texts are cut, as the page tells.
        warnings.filterwarnings("ignore", ".*longer than max_length")
        self.preset, self.device = preset, torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.start = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)

    def task(self, name: str, seed: int) -> Task:
        """Data and weights, as a function of the seed."""
        random = np.random.default_rng(seed)
        samples, evaluated = self.preset.samples, self.preset.evaluated
        if name == SCANS:
            sources, known, few, read = range(len(novels())), NOVELS, SENTENCES * evaluated, scans
        else:
            sources, known, few, read = templates(), TEMPLATES, evaluated, self.asked
        mixed = random.permutation(sources).tolist()
        rows, new = read(mixed[:known], samples + few, seed), read(mixed[known:], few, seed + 1)
        damage(rows[:samples], DAMAGE[name], random)
        reader = self.losses(**ANSWERS).reader()
        tokens = [
            {"input_ids": list(sample.ids), "labels": list(sample.labels)}
            for sample in reader(rows[:samples])
        ]
        before = self.table(self.start, new, **ANSWERS)
        if name == SCANS:
            other, columns = self.asked(templates(), evaluated, seed), ANSWERS
        else:
            chosen = random.permutation(len(paragraphs()))[:evaluated]
            other, columns = [{"text": paragraphs()[place]} for place in chosen], {"text": "text"}
        questions = random.permutation(len(knowledge()))[: self.preset.questions]
        return Task(
            rows=tokens,
            table=self.scored_rows(self.start, tokens, CausalLM(token_losses=True)),
            held_out=rows[samples:],
            new=new,
            hardest=before.losses.argsort()[-max(len(new) // 10, 1) :],
            other=other,
            columns=columns,
            questions=[knowledge()[place] for place in questions],
        )

    def asked(self, numbers: list[int], count: int, seed: int) -> list[dict[str, str]]:
        """Questions that leave a quarter of the longest length, or more, to their answers."""
        most = self.preset.max_length * 3 // 4
        rows = as_rows(maths(numbers, 4 * count, seed))
        fitting = [row for row in rows if len(self.tokenizer(row["prompt"]).input_ids) <= most]
        return fitting[:count]

    def run(self, name: str, seed: int, rates: Mapping[str, float]) -> Run:
        """All methods, by their rates, on one task and seed."""
        task = self.task(name, seed)
        tuned = self.trainings(task, seed)
        run = {PRE_TRAINED: self.scored(task, Tuned(self.start, 0, 0.0))}
        return run | {method: self.scored(task, tuned(method, rates[method])) for method in rates}

    def trainings(self, task: Task, seed: int) -> Callable[[str, float], Tuned]:
        """(method, learning rate) -> model."""

        def train(method: str, rate: float) -> Tuned:
            return self.fine_tuned(method, task, rate, seed)

        return sharing(train, self.start)

    def losses(self, **columns: str) -> CausalLM:
        """The loss of rows of text."""
        return CausalLM(self.tokenizer, max_length=self.preset.max_length, **columns)

    def table(self, model: nn.Module, rows: list[Any], **columns: str) -> LossTable:
        """Losses of rows of text by a model as it is."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return self.scored_rows(base, rows, self.losses(**columns))

    def scored_rows(self, model: nn.Module, rows: list[Any], loss: CausalLM) -> LossTable:
        """Losses of rows."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return score(model, rows, loss, device=self.device, progress=False)

    def fine_tuned(self, method: str, task: Task, learning_rate: float, seed: int) -> Tuned:
        """A model trained by one method."""
        start: Any = self.start
        if method in ADAPTED:
            import peft

            config = peft.LoraConfig(r=64, lora_alpha=64, target_modules="all-linear")
            start = peft.get_peft_model(copy.deepcopy(start), config)
        tuning = Tuning(
            task.rows,
            task.weights,
            self.preset.epochs,
            self.preset.batch_size,
            collate_fn=padded,
            target="labels",
            tokens=task.table,
            loss=self.loss,
            optimizer=OPTIMIZERS[self.preset.optimizer],
        )
        tuned = fine_tuned(ADAPTED.get(method, method), start, tuning, learning_rate, seed)
        if method in ADAPTED:
            tuned = replace(tuned, model=tuned.model.merge_and_unload())  # type: ignore[operator]
        return tuned

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """The model's own loss, as any loop asks for it."""
        moved = {name: part.to(self.device) for name, part in batch.items()}
        with torch.autocast(self.device.type, torch.bfloat16):
            loss: Tensor = model(**moved).loss
        return loss

    def scored(self, task: Task, tuned: Tuned) -> dict[str, float]:
        """What a model knows, and what it took."""
        new = self.table(tuned.model, task.new, **ANSWERS)
        return {
            "other": perplexity(self.table(tuned.model, task.other, **task.columns)),
            "knowledge": self.knows(tuned.model, task.questions),
            "new": perplexity(new),
            "hardest": perplexity(new, task.hardest),
            "samples": tuned.samples,
            "seconds": tuned.seconds,
        }

    def knows(self, model: nn.Module, questions: list[Question]) -> float:
        """Percent of questions whose right answer is the likeliest of four."""
        rows = [
            {"prompt": f"Question: {question.prompt}\nAnswer:", "response": f" {answer}"}
            for question in questions
            for answer in (question.answer, *question.wrong)
        ]
        losses = self.table(model, rows, **ANSWERS).losses
        return 100.0 * float((losses.reshape(-1, 4).argmin(axis=1) == 0).mean())

    def held_out(self, task: Task, tuned: Tuned) -> float:
        """Minus the loss on held-out right samples of the task: what rates are chosen by."""
        table = self.table(tuned.model, task.held_out, **ANSWERS)
        return -float(table.losses.mean())


def as_rows(questions: Iterable[Question]) -> list[dict[str, str]]:
    """Rows of text."""
    return [
        {"prompt": f"Question: {part.prompt}\nAnswer:", "response": f" {part.answer}"}
        for part in questions
    ]


def scans(numbers: list[int], count: int, seed: int) -> list[dict[str, str]]:
    """Sentences of novels, as scanned and as they are."""
    random = np.random.default_rng(seed)
    texts = random.permutation(sentences(numbers))[:count].tolist()
    return [
        {
            "prompt": f"Scanned text: {scanned(text, random)}\nCorrected text:",
            "response": f" {text}",
        }
        for text in texts
    ]


def damage(
    rows: list[dict[str, str]], shares: tuple[float, float, float], random: np.random.Generator
) -> None:
    """Make a share of the answers harmful."""
    answers = [row["response"] for row in rows]
    code = functions()
    kinds = random.choice(4, len(rows), p=[*shares, 1 - sum(shares)])
    for place, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if kind == 0:
            row["response"] = answers[(place + random.integers(1, len(rows))) % len(rows)]
        if kind == 1:
            row["response"] = " " + shuffled(row["response"], random)
        if kind == 2:
            function = code[random.integers(len(code))]["response"]
            row["response"] = " " + function[: len(row["response"])]


def padded(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    ids, labels = fill("input_ids", 0), fill("labels", IGNORED)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW without decay."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)


OPTIMIZERS = {"AdamW": adamw, "SGD with momentum 0.9": momentum}


def perplexity(table: LossTable, rows: Any = slice(None)) -> float:
    """Of all tokens of rows."""
    losses, tokens = table.losses[rows], table.n_tokens[rows]
    return float(np.exp((losses * tokens).sum() / tokens.sum()))
