"""An unmodified Trainer on batches with weighted labels."""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)
from weighted_language import (
    close,
    compiled_or_skipped,
    gradient,
    make_rows,
    padded,
    small_model,
    step_by_hand,
    tables,
)
from weighted_trainer import trained

from flowdata.reweight import reweight


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("options", [{}, {"dataloader_num_workers": 2}], ids=["", "workers"])
def test_an_unmodified_trainer_trains_as_by_hand(model, tmp_path, level, accumulation, options):
    rows = make_rows()
    table = tables(model, rows)
    data, collate = reweight(rows, table, level=level, collate_fn=padded)
    found = trained(
        copy.deepcopy(model), data, collate, tmp_path,
        gradient_accumulation_steps=accumulation, **options,
    )  # fmt: skip
    hand = copy.deepcopy(model)
    step = 2 * accumulation
    assert len(found) == len(rows) // step
    for number, start in enumerate(range(0, len(rows), step)):
        parts = [range(first, first + 2) for first in range(start, start + step, 2)]
        step_by_hand(hand, rows, table, level, parts, options)
        # Parameters of float32 differ in their last bits, more with each step.
        assert close(found[number], gradient(hand), (1 + number) * 1e-6)


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"label_smoothing_factor": 0.1}, marks=pytest.mark.guard),
        {"bf16": True},
        pytest.param(
            {"torch_compile": True, "torch_compile_backend": "eager"},
            marks=pytest.mark.slow,
            id="torch_compile",
        ),
        {"remove_unused_columns": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer(model, tmp_path, level, options):
    rows = make_rows()
    table = tables(model, rows)
    data, collate = reweight(rows, table, level=level, collate_fn=padded)
    if "torch_compile" in options:
        compiled_or_skipped(model, padded(rows))
    options = {"gradient_accumulation_steps": 2} | options
    found = trained(copy.deepcopy(model), data, collate, tmp_path, **options)
    hand = copy.deepcopy(model)
    for number, start in enumerate((0, 4)):
        parts = [range(start, start + 2), range(start + 2, start + 4)]
        step_by_hand(hand, rows, table, level, parts, options)
        bound = 5e-3 if "bf16" in options else (1 + number) * 1e-6
        assert close(found[number], gradient(hand), bound)
    unweighted = copy.deepcopy(model)
    step_by_hand(unweighted, rows, table, "none", [range(2), range(2, 4)], options)
    assert not close(found[0], gradient(unweighted), 5e-3)


def test_the_trainer_evaluates_with_the_same_collate_fn(model, tmp_path):
    rows = make_rows()
    data, collate = reweight(rows, tables(model, rows), collate_fn=padded)
    ones, _ = reweight(rows, np.ones(len(rows)), collate_fn=padded)

    def metrics(found):
        kept = found.label_ids[:, 1:] >= 0
        hits = found.predictions.argmax(-1)[:, :-1] == found.label_ids[:, 1:]
        return {"accuracy": hits[kept].mean(), "labels": int(kept.sum())}

    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=3, use_cpu=True, report_to=[],
        disable_tqdm=True,
    )  # fmt: skip
    options = {"model": model, "args": arguments, "compute_metrics": metrics}
    found = Trainer(eval_dataset=ones, data_collator=collate, **options).evaluate()
    expected = Trainer(eval_dataset=rows, data_collator=padded, **options).evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_labels"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    with pytest.raises(TypeError, match="weights of one"):
        Trainer(train_dataset=data, eval_dataset=rows, data_collator=collate, **options).evaluate()


SENTENCES = (
    ("What is 3 + 4?", " It is 7, of course."),
    ("Name a colour.", " Blue."),
    ("Who wrote Emma?", " Jane Austen wrote it in 1815."),
    ("Is water wet?", " Some say so, some do not."),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("level", "options"),
    [
        ("sample", {"dataloader_num_workers": 2}),
        pytest.param("token", {"label_smoothing_factor": 0.1}, marks=pytest.mark.guard),
        ("token", {"bf16": True}),
    ],
    ids=["workers", "smoothing", "bf16"],
)
def test_the_trainer_on_the_real_language_model(smollm2, tmp_path, level, options):
    """Gradients of the first step, over two padded micro-batches."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = []
    for question, answer in SENTENCES:
        prompt, response = tokenizer(question).input_ids, tokenizer(answer).input_ids
        labels = [-100] * len(prompt) + response
        rows.append({"input_ids": prompt + response, "labels": labels})
    table = tables(model, rows)
    data, collate = reweight(rows, table, level=level, collate_fn=padded)
    options = {"gradient_accumulation_steps": 2, "max_steps": 1} | options
    [seen] = trained(model, data, collate, tmp_path, learning_rate=0.0, **options)
    hand = model.eval()
    parts = [range(2), range(2, 4)]
    step_by_hand(hand, rows, table, level, parts, options, rate=0.0)
    bound = 1e-2 if "bf16" in options else 1e-6
    assert close(seen, gradient(hand), bound)
    step_by_hand(hand, rows, table, "none", parts, options, rate=0.0)
    assert not close(seen, gradient(hand), 5 * bound)
