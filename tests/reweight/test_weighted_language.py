"""Unmodified transformers models and Trainer, with sequence and token weights."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother

from flowdata import CausalLM, score
from flowdata.reweight import (
    UnweightedLossError,
    WeightedTarget,
    reweight,
    reweighting_loader,
)

LENGTHS = (5, 9, 7, 12, 6, 8, 11, 4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def make_rows(vocabulary=50, lengths=LENGTHS):
    random = np.random.default_rng(0)
    rows = []
    for length in lengths:
        ids = random.integers(1, vocabulary, length)
        labels = np.where(np.arange(length) < 2, -100, ids)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def padded(rows):
    """A collator that pads on the right, as users write them."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name, value):
        filled = [row[name] + [value] * (width - len(row[name])) for row in rows]
        return torch.tensor(filled)

    ids = fill("input_ids", 0)
    mask = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": fill("labels", -100)}


def tables(model, rows):
    """Losses of samples and of tokens by the model itself."""
    return score(model, rows, CausalLM(token_losses=True), progress=False)


def spread_weights(table, rows, batch, level):
    """The authors' weights of all label positions, shape (B, T); for "none" ones."""
    labels = batch["labels"]
    made = torch.zeros(labels.shape)
    tokens = table.token_weights(normalize="mean").values
    samples = table.weights(normalize="mean").values
    offsets = table.token_offsets
    for number, row in enumerate(rows):
        places = (labels[number, 1:] >= 0).nonzero()[:, 0] + 1
        own = tokens[offsets[row] : offsets[row + 1]]
        value = {"token": own, "sample": samples[row], "none": 1.0}[level]
        made[number, places] = torch.as_tensor(value, dtype=torch.float32)
    return made


def by_hand(model, batch, weights, items=None, smoothing=0.0):
    """Sum over tokens of weight x loss, over the number of active tokens.

    Of logits in rows: over a strided vocabulary torch adds up with an error of 5e-5.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    targets = batch["labels"][:, 1:].reshape(-1)
    losses = F.cross_entropy(
        logits[:, :-1].float().reshape(len(targets), -1),
        targets,
        reduction="none",
        ignore_index=-100,
        label_smoothing=smoothing,
    )
    total = (losses * weights[:, 1:].reshape(-1)).sum()
    return total / ((targets >= 0).sum() if items is None else items)


def close(found, expected, bound=1e-6):
    """Whether float32 gradients are the same, relative to the size of the whole."""
    return (found - expected).norm() < bound * expected.norm()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    parts = [p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]
    return torch.cat(parts)


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("items", [None, 37])
def test_the_loss_of_a_model_is_that_of_the_authors(model, level, items):
    rows = make_rows()
    table = tables(model, rows)
    loader = reweighting_loader(rows, table, level=level, batch_size=8, collate_fn=padded)
    [batch] = loader
    options = {} if items is None else {"num_items_in_batch": items}
    found = model(**batch, **options).loss
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, level)
    expected = by_hand(model, plain_batch, weights, items)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    by_model = gradients(model, found)
    assert close(by_model, gradients(model, by_hand(model, plain_batch, weights, items)))


def test_it_holds_under_autocast(model):
    rows = make_rows()
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, batch_size=8, collate_fn=padded)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(len(rows)), plain_batch, "sample")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(**batch).loss
        expected = by_hand(model, plain_batch, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("level", ["sample", "token"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_computes_its_own_loss(model, level, backend):
    rows = make_rows(lengths=(6,) * 4)
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, level=level, batch_size=4, collate_fn=padded)
    torch._dynamo.reset()
    compiled = copy.deepcopy(model)
    expected_model = copy.deepcopy(model)
    loss = torch.compile(compiled, backend=backend)(**batch).loss
    plain_batch = padded(rows)
    weights = spread_weights(table, range(4), plain_batch, level)
    expected = by_hand(expected_model, plain_batch, weights)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    assert close(gradients(compiled, loss), gradients(expected_model, expected))


def test_a_compiled_step_with_a_loss_of_torch():
    layer, inputs = torch.nn.Linear(5, 3), torch.randn(4, 5)
    target = WeightedTarget(torch.tensor([0, 1, 2, 1]), torch.tensor([0.1, 0.5, 2.0, 3.0]))
    torch._dynamo.reset()
    step = torch.compile(lambda x, y: F.cross_entropy(layer(x), y), backend="aot_eager")
    torch.testing.assert_close(step(inputs, target), F.cross_entropy(layer(inputs), target))
    with pytest.raises(UnweightedLossError):
        torch.compile(lambda x, y: layer(x).log_softmax(1).gather(1, y), backend="aot_eager")(
            inputs, target[:, None]
        )


class Watching(TrainerCallback):
    """Keeps the gradients of every step."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, *_, model, **__):
        self.seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


def trained(model, data, collate, folder, **options):
    """Gradients of each step of a training by an unmodified Trainer, in the order of the data."""

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        optim="sgd",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"learning_rate": 0.05, "num_train_epochs": 1, "remove_unused_columns": False} | options,
    )
    watching = Watching()
    InOrder(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        callbacks=[watching],
    ).train()
    return watching.seen


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
        {"label_smoothing_factor": 0.1},
        {"bf16": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"remove_unused_columns": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer(model, tmp_path, level, options):
    rows = make_rows()
    table = tables(model, rows)
    data, collate = reweight(rows, table, level=level, collate_fn=padded)
    torch._dynamo.reset()
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


def step_by_hand(model, rows, table, level, parts, options, rate=0.05):
    """A step of SGD over the micro-batches of some rows."""
    batches = [padded([rows[row] for row in part]) for part in parts]
    items = sum((batch["labels"][:, 1:] >= 0).sum() for batch in batches)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.get("bf16", False)):
        losses = [
            by_hand(
                model,
                batch,
                spread_weights(table, part, batch, level),
                items,
                options.get("label_smoothing_factor", 0.0),
            )
            for part, batch in zip(parts, batches, strict=True)
        ]
    sum(losses).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


def test_label_smoothing_is_what_it_was_for_plain_labels(model):
    smoother = LabelSmoother(epsilon=0.1)
    batch = padded(make_rows())
    outputs = {"logits": model(**batch).logits}
    ones = WeightedTarget(batch["labels"], torch.ones(len(LENGTHS)))
    for options in ({}, {"num_items_in_batch": 7}, {"num_items_in_batch": torch.tensor(7)}):
        for shift in (True, False):
            torch.testing.assert_close(
                smoother(outputs, ones, shift_labels=shift, **options),
                smoother(outputs, batch["labels"], shift_labels=shift, **options),
            )


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


@pytest.mark.parametrize(
    ("kind", "labels", "outputs"),
    [
        ("single_label_classification", torch.tensor([0, 2, 1]), 3),
        ("multi_label_classification", torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 0]]), 3),
        ("regression", torch.tensor([0.5, 2.0, -1.0]), 1),
    ],
)
def test_classifiers_of_transformers(kind, labels, outputs):
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=8, num_labels=outputs, problem_type=kind,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, 20, (3, 5))
    weights = torch.tensor([0.5, 1.0, 3.0])
    found = model(input_ids=ids, labels=WeightedTarget(labels, weights)).loss
    each = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(found, (torch.stack(each) * weights).mean(), rtol=1e-5, atol=1e-6)


def test_an_encoder_and_decoder_with_labels_that_make_its_inputs():
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2,
            decoder_start_token_id=0, dropout_rate=0.0,
        )
    ).eval()  # fmt: skip
    ids, labels = torch.randint(1, 20, (3, 5)), torch.randint(1, 20, (3, 4))
    weights = torch.tensor([0.5, 1.0, 3.0])
    found = model(input_ids=ids, labels=WeightedTarget(labels, weights)).loss
    each = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss for i in range(3)]
    torch.testing.assert_close(found, (torch.stack(each) * weights).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["sample", "token"])
def test_the_real_language_model_has_the_gradients_of_a_hand_written_loss(smollm2, level):
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows = make_rows(40_000, lengths=(6, 9, 7))
    table = tables(model, rows)
    [batch] = reweighting_loader(rows, table, level=level, batch_size=3, collate_fn=padded)
    found = gradients(model, model(**batch).loss)
    plain_batch = padded(rows)
    weights = spread_weights(table, range(3), plain_batch, level)
    expected = gradients(model, by_hand(model, plain_batch, weights))
    assert close(found, expected)
    assert not close(gradients(model, model(**plain_batch).loss), expected, 1e-2)


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
        ("token", {"label_smoothing_factor": 0.1}),
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
