"""Lab: a pre-trained language model, the tasks it is fine-tuned on, and how it is measured."""

import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from exam import Exam, Row
from methods import STANDARD
from packed import (
    ADAPTED,
    AVERAGED,
    CURVED,
    EQUAL,
    GROUPS,
    OPTIMIZERS,
    Tuned,
    Tuning,
    averaged,
    fine_tuned,
    loader_of,
)
from results import PRE_TRAINED
from skills import FAMILIES, skills
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
    turns,
)
from torch import nn

from flowdata import CausalLM, FlowWeights, LossTable, mix, score
from flowdata.frameworks.contamination import require_separate

CLEAN, HARMFUL, SCANS = "maths", "maths, harmful samples", "scans, harmful samples"
MIXED = "code, chat and maths"
TASKS = (SCANS, CLEAN, HARMFUL, MIXED)
# Shares of the samples whose answers are of other samples, in any word order, and code instead.
DAMAGE = {CLEAN: (0.0, 0.0, 0.0), HARMFUL: (0.25, 0.15, 0.1), SCANS: (0.3, 0.0, 0.1)}
# How many are trained on; the others are for evaluation.
TEMPLATES, NOVELS = 60, 4
# Tokens of an evaluation's forward pass: less would leave a GPU idle.
TOKENS_ON_GPU = 16_384


@dataclass(frozen=True)
class Preset:
    """How much is measured, by default of what.

    Args:
        samples: that are trained on, of each task.
        epochs: passes over them.
        pack: tokens of a pack; longer texts are cut to it.
        packs: packs of a step.
        evaluated: texts of each kind.
        questions: of general knowledge.
        skills: questions of each family.
        rates, lora_rates: of all parameters, and of LoRA.
        seeds: that are measured.
        methods: by task, what is measured.
        optimizer: one of OPTIMIZERS.
    """

    samples: Mapping[str, int]
    epochs: int
    pack: int
    packs: int
    evaluated: int
    questions: int
    skills: int
    rates: tuple[float, ...]
    lora_rates: tuple[float, ...]
    seeds: int
    methods: Mapping[str, tuple[str, ...]]
    optimizer: str = "AdamW"

    def grid(self, method: str) -> tuple[float, ...]:
        """The rates that a method may have."""
        return self.lora_rates if method in ADAPTED else self.rates


@dataclass(frozen=True)
class Task:
    """One task and seed, tokenized and scored."""

    tuning: Tuning
    exam: Exam
    held_out: list[Row]


class Texts(NamedTuple):
    """Rows of text with prompts and responses: to train on, held out, new, and other."""

    rows: list[dict[str, str]]
    held_out: list[dict[str, str]]
    new: dict[str, list[dict[str, str]]]
    other: list[dict[str, str]]


class Lab:
    """The pre-trained model, and what is done with it."""

    def __init__(self, preset: Preset, model: str, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # Long texts are cut, as the page tells.
        warnings.filterwarnings("ignore", ".*longer than max_length")
        self.preset, self.device = preset, torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.start: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.start.to(self.device)
        # Beside a cache, transformers does not tell the samples of a pack apart.
        self.start.config.use_cache = False
        self._tasks: dict[tuple[str, int], Task] = {}
        self._separate = False

    def task(self, name: str, seed: int) -> Task:
        """Data and weights, as a function of the seed."""
        if (name, seed) not in self._tasks:
            self._tasks = {(name, seed): self._made(name, seed)}
        return self._tasks[name, seed]

    def _made(self, name: str, seed: int) -> Task:
        preset, random = self.preset, np.random.default_rng(seed)
        kinds = (
            {"all": self._texts(name, seed, random)}
            if name != MIXED
            else {source: self._source(source, seed, random) for source in SOURCES}
        )
        rows = [self.tokens(part.rows) for part in kinds.values()]
        tables = [self.table(self.start, part, CausalLM(token_losses=True)) for part in rows]
        table = LossTable.concat(tables) if len(tables) > 1 else tables[0]
        joined = [row for part in rows for row in part]
        exam = Exam()
        for source, part in kinds.items():
            for kind, texts in part.new.items():
                exam.add("new" if source == "all" else f"new, {kind}", self.tokens(texts))
        exam.add("other", self.tokens(next(iter(kinds.values())).other))
        chosen = random.permutation(len(knowledge()))[: preset.questions]
        exam.ask("knowledge", self._asked([knowledge()[place] for place in chosen]))
        for family in FAMILIES:
            exam.ask(f"skill, {family}", self._asked(skills(family, preset.skills, seed)))
        exam.hardest(self.table(self.start, exam.rows).losses)
        tuning = Tuning(
            rows=joined,
            table=table,
            sources=_of_sources(dict(zip(kinds, tables, strict=True))) if name == MIXED else {},
            epochs=preset.epochs,
            pack=preset.pack,
            packs=preset.packs,
            optimizer=OPTIMIZERS[preset.optimizer],
            device=self.device,
        )
        if not self._separate:
            require_separate(self.start, loader_of(STANDARD, tuning, 1).dataset[0])
            self._separate = True
        held_out = self.tokens([row for part in kinds.values() for row in part.held_out])
        return Task(tuning, exam, held_out)

    def _texts(self, name: str, seed: int, random: np.random.Generator) -> Texts:
        """Those of a task of one source."""
        count, few = self.preset.samples[name], self.preset.evaluated
        read: Callable[[list[int], int, int], list[dict[str, str]]]
        if name == SCANS:
            sources, known, read = list(range(len(novels()))), NOVELS, scans
        else:
            sources, known, read = templates(), TEMPLATES, self.questions
        mixed = random.permutation(sources).tolist()
        rows = read(mixed[:known], count + few, seed)
        new = read(mixed[known:], few, seed + 1)
        damage(rows[:count], DAMAGE[name], random)
        if name == SCANS:
            other = self.questions(templates(), few, seed)
        else:
            chosen = random.permutation(len(paragraphs()))[:few]
            other = [{"prompt": "", "response": paragraphs()[place]} for place in chosen]
        return Texts(rows[:count], rows[count:], {"new": new}, other)

    def _source(self, source: str, seed: int, random: np.random.Generator) -> Texts:
        """Those of a part of the mix; the samples of its parts are as many."""
        count = self.preset.samples[MIXED] // len(SOURCES)
        few = self.preset.evaluated
        if source == "maths":
            mixed = random.permutation(templates()).tolist()
            found = self.questions(mixed[:TEMPLATES], count + few, seed)
            found += self.questions(mixed[TEMPLATES:], few, seed + 1)
        else:
            known = functions() if source == "code" else chats()
            mixed = [known[place] for place in random.permutation(len(known))]
            found = self.fitting(mixed, count + 2 * few)
        chosen = random.permutation(len(paragraphs()))[:few]
        other = [{"prompt": "", "response": paragraphs()[place]} for place in chosen]
        return Texts(
            found[:count], found[count : count + few], {source: found[count + few :]}, other
        )

    def questions(self, numbers: list[int], count: int, seed: int) -> list[dict[str, str]]:
        """Questions of maths with worked answers."""
        return self.fitting([row_of(each) for each in maths(numbers, 4 * count, seed)], count)

    def fitting(self, rows: list[dict[str, str]], count: int) -> list[dict[str, str]]:
        """The first rows that leave a quarter of a pack, or more, to their responses."""
        most = self.preset.pack * 3 // 4
        lengths = map(len, self.tokenizer([row["prompt"] for row in rows]).input_ids)
        return [row for row, length in zip(rows, lengths, strict=True) if length <= most][:count]

    def tokens(self, rows: list[dict[str, str]]) -> list[Row]:
        """Rows of text, tokenized."""
        loss = CausalLM(
            self.tokenizer, prompt="prompt", response="response", max_length=self.preset.pack
        )
        return [
            {"input_ids": sample.ids.tolist(), "labels": sample.labels.tolist()}
            for sample in loss.reader()(rows)
        ]

    def _asked(self, questions: Iterable[Question]) -> list[Row]:
        """Four rows for each question, of which the first has the right answer."""
        return self.tokens(
            [
                row_of(replace(question, answer=answer))
                for question in questions
                for answer in (question.answer, *question.wrong)
            ]
        )

    def table(self, model: nn.Module, rows: list[Row], loss: CausalLM | None = None) -> LossTable:
        """Losses of rows by a model as it is."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        loss = loss or CausalLM()
        if self.device.type == "cuda":
            loss = replace(loss, max_tokens=TOKENS_ON_GPU)
        with torch.autocast(self.device.type, torch.bfloat16):
            return score(base, rows, loss, device=self.device, adapters=True, progress=False)

    def measured(self, task: Task, model: nn.Module) -> dict[str, float]:
        """What a model knows."""
        table = self.table(model, task.exam.rows)
        return task.exam.marks(table.losses, table.n_tokens)

    def held_out(self, task: Task, model: nn.Module) -> float:
        """The mean loss of held-out right samples of the task: what rates are chosen by."""
        return float(self.table(model, task.held_out).losses.mean())

    def trained(self, method: str, name: str, seed: int, rate: float, *, looks: bool) -> Tuned:
        """A model trained by a method that is no average."""
        task = self.task(name, seed)
        if method == PRE_TRAINED:
            return Tuned(self.start)
        short = task.exam.only("new", "other")

        def look(model: nn.Module) -> dict[str, float]:
            table = self.table(model, short.rows)
            return short.marks(table.losses, table.n_tokens)

        watched = looks and method in CURVED and "new" in short.places
        return fine_tuned(method, self.start, task.tuning, rate, seed, look if watched else None)

    def results(
        self, methods: Mapping[str, float], name: str, seed: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """What methods came to, by their rates; or the error of one that failed.

        Those that are made of one training share it where they follow one another.
        """
        known: dict[tuple[str, float], Tuned] = {}
        for method, rate in methods.items():
            base = AVERAGED.get(method, method)
            try:
                if (base, rate) not in known:
                    known.clear()
                    known[base, rate] = self.trained(base, name, seed, rate, looks=method == base)
                tuned = known[base, rate]
                model = averaged(self.start, tuned.model) if method in AVERAGED else tuned.model
                took = {part: value for part, value in vars(tuned).items() if part != "model"}
                if self.device.type == "cuda":
                    took["peak_bytes"] = torch.cuda.max_memory_allocated(self.device)
                yield method, {**self.measured(self.task(name, seed), model), **took}
            except Exception as error:
                yield method, {"error": repr(error), "where": traceback.format_exc()}

    def tried(
        self, methods: list[str], name: str, seed: int, rate: float
    ) -> Iterator[tuple[str, float]]:
        """The loss on held-out samples of methods that are made of one training."""
        task = self.task(name, seed)
        base = AVERAGED.get(methods[0], methods[0])
        model = self.trained(base, name, seed, rate, looks=False).model
        for method in methods:
            mean = averaged(self.start, model) if method in AVERAGED else model
            yield method, self.held_out(task, mean)


def _of_sources(tables: dict[str, LossTable]) -> dict[str, FlowWeights]:
    """Weights with a temperature of each source, which keep its share or make them alike."""
    return {GROUPS: mix(tables, shares="tokens", by="tokens"), EQUAL: mix(tables, shares="equal")}


SOURCES = ("code", "chat", "maths")


def chats() -> list[dict[str, str]]:
    """What somebody says and what is answered, without the questions of general knowledge."""
    asked = {question.prompt for question in knowledge()}
    return [
        {"prompt": f"A: {said}\nB:", "response": f" {answer}"}
        for said, answer in turns()
        if said not in asked
    ]


def row_of(question: Question) -> dict[str, str]:
    """A row of text."""
    return {
        "prompt": f"Question: {question.prompt}\nAnswer:",
        "response": f" {question.answer}",
    }


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
