#!/usr/bin/env python
"""Language: what each way to fine-tune a language model keeps of its knowledge, and learns."""

import argparse
import copy
import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from assets import smollm2
from comparing import Comparison, Measure, Run, best_rates
from measure import Machine
from methods import (
    CONTROLS,
    DISTINCT,
    FEWER_STEPS,
    FLOW,
    FLOW_WISE,
    HALF,
    L2,
    MULTINOMIAL,
    NORMALIZED,
    SMALLER_RATE,
    STANDARD,
    TOKENS,
    WISE,
    Tuned,
    Tuning,
    fine_tuned,
    seeds_of,
    sharing,
)
from texts import Question, functions, knowledge, maths, paragraphs, shuffled, templates
from torch import Tensor, nn
from tqdm import tqdm

from flowdata import CausalLM, FlowWeights, LossTable, score

CLEAN, HARMFUL = "maths", "maths, harmful samples"
TASKS = (HARMFUL, CLEAN)
PRE_TRAINED, LORA, FLOW_LORA = "pre-trained", "LoRA", "FLOW + LoRA"
ADAPTED = {LORA: STANDARD, FLOW_LORA: FLOW}
METHODS = (
    STANDARD,
    SMALLER_RATE,
    FEWER_STEPS,
    FLOW,
    MULTINOMIAL,
    DISTINCT,
    NORMALIZED,
    TOKENS,
    HALF,
    L2,
    WISE,
    FLOW_WISE,
    LORA,
    FLOW_LORA,
)
SWAPPED, GARBLED, OFF_DOMAIN = 0.25, 0.15, 0.1
IGNORED, CHOOSING_SEED = -100, 1001

HELP = """\
Fine-tune SmolLM2-135M on maths questions, once for each task, method and seed, and measure what it
knew (novels, general questions) and what it was to learn (questions of other templates).
"""

ABOUT = f"""\
SmolLM2-135M-Instruct is fine-tuned on questions of reasoning-gym's gsm_symbolic with worked
answers. Mean and standard deviation over the seeds.

- "novels": perplexity on paragraphs of Jane Austen. "knowledge": percent of general questions whose
  answer is the likeliest of four by mean token loss. Both are what the model knew.
- "maths": perplexity of right answers to questions of templates that were not trained on; "hardest"
  that of the tenth which the pre-trained model finds hardest.

"{HARMFUL}": {SWAPPED:.0%} of the answers are those of other questions, {GARBLED:.0%} have their
words in any order, {OFF_DOMAIN:.0%} are Python functions instead. "{CLEAN}": all are right.

Long texts are cut (`max_length` of the preset). AdamW, constant rate, bfloat16 autocast everywhere,
batches in the order of the DataLoader. LoRA has rank and alpha 64 on all linear layers. AdamW
cancels the scale of the loss, so FLOW's reweighting with weights as they are and of mean 1 are the
same. Controls have the rate of standard fine-tuning (times the mean weight for the first).
"""

NOVELS = Measure("novels", "perplexity of novels", lower_is_better=True)
MATHS = Measure("maths", "perplexity of maths", lower_is_better=True)
COMPARISON = Comparison(
    "language",
    ABOUT,
    (
        NOVELS,
        Measure("knowledge", "knowledge, %"),
        MATHS,
        Measure("hardest", "hardest maths", lower_is_better=True),
    ),
    kept=NOVELS,
    learned=MATHS,
)


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
    tasks: tuple[str, ...] = TASKS
    methods: tuple[str, ...] = METHODS


CPU = Preset(80, 1, 4, 24, 32, 144, (2e-4,), (1e-3,), 1)
PRESETS = {
    "smoke": Preset(8, 1, 4, 6, 4, 96, (2e-4,), (1e-3,), 1),
    "cpu": CPU,
    "cpu-seeds": replace(CPU, seeds=10, tasks=(HARMFUL,), methods=(STANDARD, *CONTROLS, FLOW)),
    "gpu": Preset(2000, 2, 16, 500, 328, 384, (5e-5, 1e-4, 2e-4), (2e-4, 5e-4, 1e-3), 10),
}


@dataclass(frozen=True)
class Task:
    """One task and seed, tokenized and scored."""

    rows: list[dict[str, Any]]
    table: LossTable
    held_out: list[dict[str, str]]
    novels: list[dict[str, str]]
    maths: list[dict[str, str]]
    hardest: Any
    questions: list[Question]

    @property
    def weights(self) -> FlowWeights:
        """FLOW's."""
        return self.table.weights()


class Lab:
    """The pre-trained model, and what is done with it."""

    def __init__(self, preset: Preset, model: str, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.preset, self.device = preset, torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.start = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device)

    def task(self, name: str, seed: int) -> Task:
        """Data and weights, as a function of the seed."""
        random = np.random.default_rng(seed)
        numbers = random.permutation(templates()).tolist()
        known, unknown = numbers[:60], numbers[60:]
        rows = self.asked(known, self.preset.samples + self.preset.evaluated, seed)
        if name == HARMFUL:
            damage(rows, random)
        reader = self.losses(prompt="prompt", response="response").reader()
        tokens = [
            {"input_ids": list(sample.ids), "labels": list(sample.labels)}
            for sample in reader(rows[: self.preset.samples])
        ]
        own = CausalLM(token_losses=True)
        novels = random.permutation(len(paragraphs()))[: self.preset.evaluated]
        questions = random.permutation(len(knowledge()))[: self.preset.questions]
        new = self.asked(unknown, self.preset.evaluated, seed + 1)
        before = self.table(self.start, new, prompt="prompt", response="response")
        return Task(
            rows=tokens,
            table=self.scored_rows(self.start, tokens, own),
            held_out=rows[self.preset.samples :],
            novels=[{"text": paragraphs()[place]} for place in novels],
            maths=new,
            hardest=before.losses.argsort()[-max(len(new) // 10, 1) :],
            questions=[knowledge()[place] for place in questions],
        )

    def asked(self, numbers: list[int], count: int, seed: int) -> list[dict[str, str]]:
        """Questions that leave a quarter of the longest length, or more, to their answers."""
        most = self.preset.max_length * 3 // 4
        rows = as_rows(maths(numbers, 4 * count, seed))
        fitting = [row for row in rows if len(self.tokenizer(row["prompt"]).input_ids) <= most]
        return fitting[:count]

    def run(
        self, name: str, seed: int, methods: Iterable[str], rates: dict[str, float], steps: Any
    ) -> Run:
        """All methods on one task and seed."""
        task = self.task(name, seed)
        run = {PRE_TRAINED: self.scored(task, Tuned(self.start, 0, 0.0))}
        tuned = self.trainings(task, seed)
        for method in methods:
            run[method] = self.scored(task, tuned(method, rates[method]))
            steps.update()
        return run

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
            optimizer=adamw,
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
        new = self.table(tuned.model, task.maths, prompt="prompt", response="response")
        return {
            "novels": perplexity(self.table(tuned.model, task.novels, text="text")),
            "knowledge": self.knows(tuned.model, task.questions),
            "maths": perplexity(new),
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
        losses = self.table(model, rows, prompt="prompt", response="response").losses
        return 100.0 * float((losses.reshape(-1, 4).argmin(axis=1) == 0).mean())

    def held_out(self, task: Task, tuned: Tuned) -> float:
        """Minus the loss on held-out samples of the fine-tuning data: what rates are chosen by."""
        table = self.table(tuned.model, task.held_out, prompt="prompt", response="response")
        return -float(table.losses.mean())


def as_rows(questions: Iterable[Question]) -> list[dict[str, str]]:
    """Rows of text."""
    return [
        {"prompt": f"Question: {part.prompt}\nAnswer:", "response": f" {part.answer}"}
        for part in questions
    ]


def damage(rows: list[dict[str, str]], random: np.random.Generator) -> None:
    """Make half of the answers harmful."""
    answers = [row["response"] for row in rows]
    code = functions()
    kinds = random.choice(
        4,
        len(rows),
        p=[SWAPPED, GARBLED, OFF_DOMAIN, 1 - SWAPPED - GARBLED - OFF_DOMAIN],
    )
    for place, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if kind == 0:
            other = (place + random.integers(1, len(rows))) % len(rows)
            row["response"] = answers[other]
        if kind == 1:
            row["response"] = " " + shuffled(row["response"], random)
        if kind == 2:
            row["response"] = " " + code[random.integers(len(code))]["response"]


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
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)


def perplexity(table: LossTable, rows: Any = slice(None)) -> float:
    """Of all tokens of rows."""
    losses, tokens = table.losses[rows], table.n_tokens[rows]
    return float(np.exp((losses * tokens).sum() / tokens.sum()))


def main() -> None:
    """Choose the rates, run everything, write."""
    options = parser().parse_args()
    preset, machine = PRESETS[options.preset], Machine.here()
    # Which ABOUT tells.
    warnings.filterwarnings("ignore", ".*longer than max_length")
    tasks, methods = options.tasks or preset.tasks, options.methods or preset.methods
    lab = Lab(preset, options.model or str(smollm2()), options.device)
    rates = {name: chosen_rates(lab, name, methods) for name in tasks}
    seeds = list(seeds_of(options.seeds or preset.seeds))
    results: dict[str, list[Run]] = {name: [] for name in tasks}
    with tqdm(total=len(seeds) * len(tasks) * len(methods), unit="training") as steps:
        for seed in seeds:
            for name in tasks:
                results[name].append(lab.run(name, seed, methods, rates[name], steps))
    COMPARISON.publish(options, rates, results, machine=machine, name=f"language-{options.preset}")


def chosen_rates(lab: Lab, name: str, methods: Iterable[str]) -> dict[str, float]:
    """The rate of each method that is best on held-out samples."""
    task = functools.cache(lambda: lab.task(name, CHOOSING_SEED))
    found: dict[str, float] = {}
    for adapted, grid in ((False, lab.preset.rates), (True, lab.preset.lora_rates)):
        kind = [
            method
            for method in dict.fromkeys((STANDARD, *methods))
            if (method in ADAPTED) == adapted and method not in CONTROLS
        ]
        if len(grid) == 1:
            found |= dict.fromkeys(kind, grid[0])
            continue
        tuned = lab.trainings(task(), CHOOSING_SEED)
        tried = {
            method: [lab.held_out(task(), tuned(method, rate)) for rate in grid]
            for method in tqdm(kind, desc=f"rates, {name}")
        }
        found |= best_rates([tried], grid)
    return found | dict.fromkeys(CONTROLS, found[STANDARD])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--preset", choices=PRESETS, default="cpu", help="default cpu")
    made.add_argument("--seeds", type=int, help="default: the preset's")
    made.add_argument("--tasks", nargs="+", choices=TASKS, help="default: the preset's")
    made.add_argument("--methods", nargs="+", choices=METHODS, help="default: the preset's")
    made.add_argument("--model", help="folder or name of another causal model")
    made.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: a GPU"
    )
    made.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", help="for the results"
    )
    return made


if __name__ == "__main__":
    main()
