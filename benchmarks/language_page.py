"""The page of the language benchmark: what was kept and learned, by task, method and seed."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from language_figures import draw
from measure import Table, mean_and_deviation
from methods import DISTINCT, FEWER_STEPS, FLOW, FLOW_WISE, SMALLER_RATE, STANDARD, WISE
from numpy.typing import NDArray
from packed import (
    CLIPPED,
    CONTROL_OF,
    DISTINCT_PADDED,
    EQUAL,
    FLOW_LORA,
    GROUPS,
    LORA,
    LORA_FEWER,
    LORA_METHODS,
    LORA_SMALLER,
    PADDED,
    STM,
    STM_SHARE,
    TOKENS,
    TOKENS_ONE,
    TOKENS_SEQUENCE,
    WISE_FEWER,
    WISE_METHODS,
    WISE_SMALLER,
)
from publishing import publish
from records import Records
from results import PRE_TRAINED, Results, parts_named, scores_of
from scores import Score, Wins, beaten
from starts import machine_of, sources_known, told_of

if TYPE_CHECKING:
    from lab import Preset

Rates: TypeAlias = Mapping[str, Mapping[str, float]]

WHOLE_CONTROLS = (STANDARD, SMALLER_RATE, FEWER_STEPS)
WISE_CONTROLS = (WISE, WISE_SMALLER, WISE_FEWER)
LORA_CONTROLS = (LORA, LORA_SMALLER, LORA_FEWER)
SETTINGS = {
    "all parameters": (FLOW, WHOLE_CONTROLS),
    "all parameters, distinct": (DISTINCT, WHOLE_CONTROLS),
    "all parameters, losses clipped": (CLIPPED, WHOLE_CONTROLS),
    "WiSE-FT": (FLOW_WISE, WISE_CONTROLS),
    "LoRA": (FLOW_LORA, LORA_CONTROLS),
    "sources, a median of each": (GROUPS, WHOLE_CONTROLS),
}
FEWEST = 3
VARIANTS = (CLIPPED, TOKENS, TOKENS_ONE, TOKENS_SEQUENCE, STM, STM_SHARE, DISTINCT, GROUPS, EQUAL)

ABOUT = """\
SmolLM2-135M-Instruct is fine-tuned; mean and standard deviation over the seeds.

- "scans, harmful samples": sentences of novels of Jane Austen, one letter in twenty misread, are to
  be corrected. Three tenths of the samples have the answer of another one, a tenth Python code.
  New: right texts of other novels. Other text: worked answers to maths questions.
- "maths": questions of reasoning-gym's gsm_symbolic with worked answers, all right. New: answers to
  questions of other templates; held-out samples, by which rates are chosen, are of the templates
  that are trained on. Other text: paragraphs of the novels.
- "maths, harmful samples": a quarter have the answer of another question, 15 % their words in any
  order, a tenth Python code. Wrong answers are nearly as likely to so small a model as right ones.
- "code, chat and maths": functions of the standard library after what they are for, what is
  answered in chatterbot-corpus, and the questions of maths, as many of each. New: others of each.

**Kept** is by how much the mean loss of a token of other text fell, in nats: negative is forgotten;
**learned** the same of new text. Both are changes of the logarithm of a perplexity, so they are on
one scale, and tables are sorted by their **mean**. "Better": in so many seeds the mean was above
that of each control; "in both": kept more and learned as much as each. Controls are standard
fine-tuning (or WiSE-FT, LoRA) as it is, at lr x mean(w) and for steps x mean(w), at its rate.
"Skills": percent of right choices of four in ten families of small tasks of reasoning-gym that no
model was tuned on; "answers" the perplexity of their right answers. "Knowledge": right choices of
four in general questions. "Hardest": the perplexity of that tenth of the new texts that the
pre-trained model finds hardest.

All methods but those "padded" read the same packs: standard fine-tuning is FlowPacks with weights
that are all alike, whose epoch has each row once. A step has as many places for tokens in all of
them. Constant rate, bfloat16 autocast. LoRA has rank and alpha 64 on all linear layers. WiSE-FT is
the mean of the parameters before and after. Losses are clipped at their 10 % and 90 % quantiles.
STM learns the tokens whose perplexity is at most 2.5, or 80 % of them. Everything, rates and their
choice too, was fixed before the measured seeds were run.
"""


def publish_page(folder: Path, name: str, preset: "Preset", records: Records, rates: Rates) -> None:
    """Write the page, its numbers and the figure of what was measured."""
    results = Results(records, preset.methods)
    tables: list[Table | str] = [grids(preset, rates), summary(results)]
    for task in results.tasks:
        tables += [by_method(results, task, rates.get(task, {}))]
    tables += [*with_flow(results), *variants(results), *sources(results), *compute(results)]
    publish(
        folder,
        "language",
        f"{seeds_of(preset, results)}\n{told_of(records)}\n{ABOUT}",
        tables,
        {"rates": rates, "runs": results.runs},
        partial(draw, results),
        machine=machine_of(records),
        name=name,
        sources=sources_known(records),
    )


def seeds_of(preset: "Preset", results: Results) -> str:
    """How many seeds there are, of how many."""
    counts = {task: len(results.seeds.get(task, ())) for task in preset.methods}
    if set(counts.values()) == {preset.seeds}:
        return f"Seeds: {preset.seeds}.\n"
    told = "; ".join(f"{task}: {count}" for task, count in counts.items())
    return (
        f"**Not finished.** Seeds: {told}; {preset.seeds} are planned, and the same command goes "
        "on. Seeds that lack a method are left out, nothing is estimated. Less than ten seeds show "
        "a direction, no more: of two methods that are alike, one is ahead in all of four seeds in "
        "one case of eight.\n"
    )


def grids(preset: "Preset", rates: Rates) -> str:
    """What the page tells of rates."""
    chosen = [
        rate == max(preset.grid(method))
        for of_task in rates.values()
        for method, rate in of_task.items()
        if method not in CONTROL_OF
    ]
    full, adapted = (
        ", ".join(f"{rate:g}" for rate in grid) for grid in (preset.rates, preset.lora_rates)
    )
    samples = "; ".join(f"{task}: {preset.samples[task]}" for task in preset.methods)
    return (
        f"Samples: {samples}; {preset.epochs} passes; a step has {preset.packs} packs of "
        f"{preset.pack} tokens. Optimizer: {preset.optimizer}. Each method has that of these rates "
        f"at which the mean loss of held-out samples of the task (of another seed, all right) is "
        f"lowest: {full}; with LoRA {adapted}. For {sum(chosen)} of {len(chosen)} methods it "
        f"is the largest: there a larger one might be better.\n"
    )


def summary(results: Results) -> Table:
    """In which settings FLOW beats all controls."""
    rows = []
    for task in results.tasks:
        scores = scores_of(results.runs[task])
        for setting, (method, controls) in SETTINGS.items():
            if method not in scores or not set(controls) & set(scores):
                continue
            rivals = [scores[each] for each in controls if each in scores]
            wins = beaten(scores[method], rivals)
            best = max(
                (each for each in controls if each in scores),
                key=lambda each: float(np.mean(scores[each].mean)),
            )
            ahead = scores[method].mean - scores[best].mean
            hardest = scores[method].hardest - rivals[0].hardest
            rows.append(
                [
                    f"{task}: {setting}",
                    *wins.cells,
                    _reading(wins, ahead),
                    best,
                    mean_and_deviation(ahead, "+.3f"),
                    mean_and_deviation(hardest, "+.3f"),
                ]
            )
    header = [
        *("", "better", "in both", "ahead", "best control", "FLOW's mean against it"),
        "hardest, against standard",
    ]
    note = (
        "Ahead: FLOW, if better than all controls in nine tenths of at least three seeds; the best "
        "control, if better than FLOW in as many. Hardest: of FLOW against standard fine-tuning "
        "(WiSE-FT, LoRA) as it is, by how much more the loss of the hardest tenth of new text fell."
    )
    return Table("FLOW against all controls", header, rows, note)


def _reading(wins: Wins, ahead: NDArray[np.float64]) -> str:
    if ahead.size < FEWEST:
        return "one seed" if ahead.size == 1 else "two seeds"
    if wins.clear:
        return "FLOW"
    return "control" if (ahead < 0).sum() >= 0.9 * ahead.size else "neither"


def by_method(results: Results, task: str, rates: Mapping[str, float]) -> Table:
    """All methods on one task, the best first."""
    runs = results.runs[task]
    scores = scores_of(runs)
    rows = []
    for method in sorted(scores, key=lambda each: -float(np.mean(scores[each].mean))):
        found, score = runs[method], scores[method]
        controls = controls_of(method)
        rivals = [scores[each] for each in controls if each in scores and each != method]
        compared = method != PRE_TRAINED and rivals
        rows.append(
            [
                method,
                mean_and_deviation(score.mean, "+.3f"),
                mean_and_deviation(score.kept, "+.3f"),
                mean_and_deviation(score.learned, "+.3f"),
                *(beaten(score, rivals).cells if compared else ("", "")),
                _perplexity(found, "other"),
                _perplexity_of_new(found, "new"),
                _perplexity_of_new(found, "hardest"),
                _shown(found, "skills"),
                _perplexity(found, "skills, right"),
                _shown(found, "knowledge"),
                _shown(found, "steps", ",.0f"),
                f"{rates[method]:g}" if method in rates else "",
            ]
        )
    header = [
        *("", "mean of both", "kept", "learned", "better", "in both", "other text", "new"),
        *("hardest", "skills, %", "answers", "knowledge, %", "steps", "lr"),
    ]
    seeds = len(next(iter(runs.values())))
    return Table(f"{task} ({seeds} seed{'s' if seeds != 1 else ''})", header, rows)


def controls_of(method: str) -> Sequence[str]:
    """What a method is compared with."""
    if method in WISE_METHODS:
        return WISE_CONTROLS
    return LORA_CONTROLS if method in LORA_METHODS else WHOLE_CONTROLS


def against(title: str, pairs: Sequence[tuple[str, str]], results: Results) -> list[Table]:
    """Pairs of methods, the first against the second, on all tasks."""
    rows = []
    for task in results.tasks:
        scores = scores_of(results.runs[task])
        for ours, theirs in pairs:
            if ours in scores and theirs in scores:
                rows.append([f"{task}: {ours}", *_difference(scores[ours], scores[theirs])])
    header = ["", "mean of both", "kept", "learned", "better", "in both", "hardest"]
    return [Table(title, header, rows)] if rows else []


def _difference(ours: Score, theirs: Score) -> list[str]:
    return [
        *(
            mean_and_deviation(getattr(ours, part) - getattr(theirs, part), "+.3f")
            for part in ("mean", "kept", "learned")
        ),
        *beaten(ours, [theirs]).cells,
        mean_and_deviation(ours.hardest - theirs.hardest, "+.3f"),
    ]


def with_flow(results: Results) -> list[Table]:
    """FLOW + X against X."""
    pairs = [(FLOW_WISE, WISE), (FLOW_LORA, LORA)]
    return against("FLOW + X against X", pairs, results)


def variants(results: Results) -> list[Table]:
    """Token variants and others against FLOW's weights of samples."""
    pairs = [(variant, FLOW) for variant in VARIANTS]
    return against("Variants against FLOW's weights of samples", pairs, results)


def sources(results: Results) -> list[Table]:
    """What each source of a mix learns."""
    tables = []
    for task in results.tasks:
        runs = results.runs[task]
        parts = [name for name in next(iter(runs.values()))[0] if name.startswith("new, ")]
        if not parts or PRE_TRAINED not in runs:
            continue
        before = runs[PRE_TRAINED]
        rows = [
            [
                method,
                *(
                    mean_and_deviation(_change(before, found, part), "+.3f")
                    for part in (*parts, "other", "skills, right")
                ),
            ]
            for method, found in runs.items()
            if method != PRE_TRAINED
        ]
        header = ["", *(part.removeprefix("new, ") for part in parts), "other text", "skills"]
        note = "By how much the mean loss of a token fell, in nats."
        tables.append(Table(f"{task}: what each source learns", header, rows, note))
    return tables


def compute(results: Results) -> list[Table]:
    """What draws without repeats and packs save."""
    tables = []
    for task in results.tasks:
        runs = results.runs[task]
        if PADDED not in runs:
            continue
        plain, rows, scores_by_method = runs[PADDED], [], scores_of(runs)
        for method in (PADDED, STANDARD, FLOW, DISTINCT_PADDED, DISTINCT):
            if method in runs:
                scores = scores_by_method[method]
                rows.append(
                    [
                        method if "padded" in method else f"{method}, packs",
                        _shown(runs[method], "steps", ",.0f"),
                        _shown(runs[method], "tokens", ",.0f"),
                        _shown(runs[method], "places", ",.0f"),
                        f"{_share(runs[method], plain, 'steps'):.0%}",
                        f"{_share(runs[method], plain, 'places'):.0%}",
                        mean_and_deviation(scores.kept, "+.3f"),
                        mean_and_deviation(scores.learned, "+.3f"),
                    ]
                )
        header = [
            *("", "steps", "tokens", "places", "steps, of plain", "places, of plain"),
            *("kept", "learned"),
        ]
        note = "Places are tokens and what fills batches up: what the model computes."
        tables.append(Table(f"{task}: compute", header, rows, note))
    return tables


def _share(ours: Sequence[Any], theirs: Sequence[Any], part: str) -> float:
    return float(np.mean([each[part] for each in ours]) / np.mean([each[part] for each in theirs]))


def _change(before: Sequence[Any], after: Sequence[Any], part: str) -> Any:
    return np.array([old[part] - new[part] for old, new in zip(before, after, strict=False)])


def _perplexity(found: Sequence[Any], part: str) -> str:
    return mean_and_deviation(np.exp([each[part] for each in found]), ".2f")


def _perplexity_of_new(found: Sequence[Any], part: str) -> str:
    """Of all new texts; of several sources, the geometric mean."""
    names = parts_named(found[0], part)
    losses = [np.mean([each[name] for name in names]) for each in found]
    return mean_and_deviation(np.exp(losses), ".2f")


def _shown(found: Sequence[Any], part: str, form: str = ".1f") -> str:
    return mean_and_deviation(np.array([each.get(part, 0.0) for each in found]), form)
