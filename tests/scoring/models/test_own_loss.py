"""The default loss is the one that the model computes itself, or an error says which to name."""

import re

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from flowdata import InvalidLossError, score
from flowdata.scoring.models.own_loss import parameters_of_forward

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}
RANDOM = torch.Generator().manual_seed(3)


def bert(kind, **options):
    torch.manual_seed(0)
    return kind(transformers.BertConfig(**SIZES, **options)).eval()


def rows_with(labels, length=9):
    words = torch.randint(5, 60, (len(labels), length), generator=RANDOM)
    return [{"input_ids": ids, "labels": label} for ids, label in zip(words, labels, strict=True)]


def own_losses(model, rows):
    with torch.no_grad():
        return [
            model(**{name: part[None] for name, part in row.items()}).loss.item() for row in rows
        ]


SEQUENCE = transformers.BertForSequenceClassification
TOKENS = transformers.BertForTokenClassification
FLAGS = torch.randint(0, 2, (6, 4), generator=RANDOM)
ONE_HOT = F.one_hot(torch.tensor([0, 3, 1, 1, 2, 0]), 4)
NUMBERS = torch.randn(6, generator=RANDOM)
PARTLY = torch.randint(0, 9, (6, 9), generator=RANDOM).masked_fill(torch.rand(6, 9) < 0.3, -100)

KINDS = {
    "classes": (SEQUENCE, {"num_labels": 4}, ONE_HOT.argmax(dim=1)),
    "several labels, floats": (SEQUENCE, {"num_labels": 4}, FLAGS.float()),
    "one of several labels, floats": (SEQUENCE, {"num_labels": 4}, ONE_HOT.float()),
    "said to be several labels": (
        SEQUENCE,
        {"num_labels": 4, "problem_type": "multi_label_classification"},
        FLAGS.float(),
    ),
    "one number": (SEQUENCE, {"num_labels": 1}, NUMBERS),
    "one number, integers": (SEQUENCE, {"num_labels": 1}, torch.tensor([3, 0, 1, 5, 2, 1])),
    "one flag that is a number": (SEQUENCE, {"num_labels": 1}, torch.tensor([1.0, 0, 1, 1, 0, 0])),
    "several numbers": (
        SEQUENCE,
        {"num_labels": 4, "problem_type": "regression"},
        torch.randn(6, 4, generator=RANDOM),
    ),
    "tokens": (TOKENS, {"num_labels": 5}, torch.randint(0, 5, (6, 9), generator=RANDOM)),
    "as many tokens as classes": (TOKENS, {"num_labels": 9}, PARTLY),
    "masked words": (
        transformers.BertForMaskedLM,
        {},
        torch.where(torch.arange(9) % 3 == 1, torch.randint(5, 60, (6, 9)), -100),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_loss_is_the_models_own_one_by_one(kind):
    make, options, labels = KINDS[kind]
    model, rows = bert(make, **options), rows_with(labels)
    said = model.config.problem_type
    found = score(model, rows, batch_size=4, progress=False).losses
    assert model.config.problem_type == said
    np.testing.assert_allclose(found, own_losses(model, rows), rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["several labels, floats", "as many tokens as classes"])
def test_it_is_so_in_half_precision(kind, dtype):
    make, options, labels = KINDS[kind]
    model, rows = bert(make, **options).to(dtype), rows_with(labels)
    for row in rows:
        if row["labels"].is_floating_point():
            row["labels"] = row["labels"].to(dtype)
    found = score(model, rows, progress=False).losses
    np.testing.assert_allclose(found, own_losses(model, rows), rtol=0.03)


class Smoothed(nn.Module):
    """Gives a loss of its own for labels, which is none of those that have names."""

    def __init__(self, smoothing=0.0, weight=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(9, 4)
        self.options = {"label_smoothing": smoothing, "weight": weight}

    def forward(self, input_ids, labels=None):
        logits = self.body(input_ids.float() / 60)
        if labels is None:
            return {"logits": logits}["logits"]
        return {"loss": F.cross_entropy(logits, labels, **self.options), "logits": logits}


class TwoTerms(Smoothed):
    def forward(self, input_ids, labels=None):
        output = super().forward(input_ids, labels)
        if labels is not None:
            output["loss"] = output["loss"] + 0.01 * self.body.weight.square().sum()
        return output


@pytest.mark.parametrize("model", [Smoothed(0.1), TwoTerms()], ids=["smoothing", "two terms"])
def test_a_loss_of_the_model_that_has_no_name_is_an_error_that_says_what_to_name(model):
    rows = rows_with(torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match="loss of its own that is none") as error:
        score(model, rows, progress=False)
    assert 'loss="cross_entropy"' in str(error.value)
    assert "loss=function(model, batch)" in str(error.value)
    named = score(model, rows, "cross_entropy", progress=False).losses
    with torch.no_grad():
        logits = model(torch.stack([row["input_ids"] for row in rows]))
    wanted = F.cross_entropy(logits, torch.tensor([0, 3, 1]), reduction="none")
    np.testing.assert_allclose(named, wanted, rtol=1e-5)


class OfTwoTasks(Smoothed):
    """The loss of a sample is that of its task."""

    def forward(self, input_ids, labels=None, task=None):
        output = super().forward(input_ids, labels)
        if labels is not None and task.any():
            output["loss"] = output["logits"].square().mean() + 1
        return output


def test_a_loss_that_changes_among_the_rows_is_found_out_later():
    rows = rows_with(torch.arange(200) % 4)
    for number, row in enumerate(rows):
        row["task"] = torch.tensor(number >= 100)
    with pytest.raises(ValueError, match=r'row 127: .* pass loss="model"'):
        score(OfTwoTasks(), rows, batch_size=8, progress=False)
    found = score(OfTwoTasks(), rows, "model", batch_size=8, progress=False).losses
    assert found == pytest.approx(
        [
            OfTwoTasks()(**{name: part[None] for name, part in row.items()})["loss"].item()
            for row in rows
        ],
        rel=1e-5,
    )


def test_a_weighted_mean_of_one_sample_is_its_cross_entropy():
    model, rows = Smoothed(weight=torch.tensor([1.0, 2, 3, 4])), rows_with(torch.tensor([0, 3]))
    found = score(model, rows, progress=False).losses
    np.testing.assert_allclose(
        found,
        [model(row["input_ids"][None], row["labels"][None])["loss"].item() for row in rows],
        rtol=1e-5,
    )


def test_causal_and_encoder_decoder_models_are_no_classifiers():
    torch.manual_seed(0)
    causal = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=60, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    )
    decoder = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=60,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )
    rows = rows_with(torch.randint(5, 60, (4, 9)))
    with pytest.raises(ValueError, match='predicts the next token: pass loss="causal_lm"'):
        score(causal, rows, progress=False)
    with pytest.raises(ValueError, match=r"does not take .* scored by loss=\"seq2seq\""):
        score(decoder, rows, progress=False)


class Plain(nn.Module):
    """Knows nothing of labels; its output is its input."""

    def __init__(self, shape=None):
        super().__init__()
        self.shape = shape
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, inputs):
        return inputs * self.factor


def pairs(output, target):
    return list(zip(output, target, strict=True))


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("output", "target", "said"),
    [
        (logits(4), torch.tensor([1, 5, 2, 3]), 'loss="mse" for numbers'),
        (logits(4, 1), torch.tensor([1, 0, 0, 1]), 'loss="bce" for flags'),
        (logits(4, 1), torch.tensor([[1], [0], [0], [1]]), 'loss="bce" for flags'),
        (logits(4), torch.tensor([1.0, 0, 0, 1]), 'loss="bce" for flags'),
        (logits(4, 3), torch.tensor([[1.0, 1, 0]] * 4), 'loss="bce" for flags'),
        (logits(4, 3), torch.tensor([[1, 4, 0]] * 4), "row 0: the target 4 is no flag"),
        (logits(4, 3), torch.tensor([[1, 0, 0]] * 4), "may be classes or flags"),
        (logits(4, 3), torch.tensor([[False, True, False]] * 4), "may be classes or flags"),
        (logits(4, 3, 3), torch.full((4, 3, 3), 1 / 3), "in axis 1 and in the last one"),
        (logits(4, 6, 6), torch.zeros(4, 6, dtype=torch.int64), 'loss="cross_entropy" for axis'),
        (logits(4, 3), torch.zeros(4, 2, dtype=torch.int64), "cross-entropy needs logits"),
        (logits(4, 3), torch.tensor([False, True, True, False]), "one shape"),
        (logits(4, 3), torch.tensor([0.5, 1.5, 2, 1]), "one shape"),
        (logits(4, 3), torch.tensor([0.0, 2, 1, 1]), "targets.long()"),
        (logits(4, 3), torch.tensor([[0], [2], [1], [1]]), "give targets.squeeze(1)"),
        (logits(4, 3, 2), torch.zeros(4, 1, 2, dtype=torch.int64), "give targets.squeeze(1)"),
        (logits(4, 1), logits(4), "give targets[:, None], or outputs.squeeze(-1)"),
        (logits(4), logits(4, 1), "give targets.squeeze(-1)"),
        (logits(4, 3), torch.tensor([0, 1, 7, 2]), "row 2: the target is class 7"),
        (logits(4, 3), torch.tensor([0, 1, 2, 255]), "pass ignore_index=255"),
    ],
)
def test_what_may_mean_two_losses_or_none_is_refused(output, target, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        score(Plain(), pairs(output, target), progress=False)


@pytest.mark.parametrize("name", ["classification", "cross_entropy"])
def test_classes_of_tokens_are_found_in_the_last_axis(name):
    output, target = logits(4, 6, 3), torch.randint(0, 3, (4, 6), generator=RANDOM)
    found = score(Plain(), pairs(output, target), name, progress=False).losses
    wanted = F.cross_entropy(output.transpose(1, 2), target, reduction="none").mean(dim=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (4, 5, 5, 5)])
def test_classes_of_pixels_are_in_axis_1(shape):
    output = logits(*shape)
    target = torch.randint(0, shape[1], (4, *shape[2:]), generator=RANDOM)
    found = score(Plain(), pairs(output, target), progress=False).losses
    wanted = F.cross_entropy(output, target, reduction="none").mean(dim=(1, 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize("rounded", [False, True])
def test_floats_that_are_probabilities_mean_cross_entropy(rounded):
    target = torch.softmax(3 * logits(8, 4), dim=1)
    target = (100 * target).round() / 100 if rounded else target
    output = 2 * logits(8, 4)
    found = score(Plain(), pairs(output, target), progress=False).losses
    np.testing.assert_allclose(found, F.cross_entropy(output, target, reduction="none"), rtol=1e-5)


def test_probabilities_of_tokens_are_found_in_the_last_axis():
    output, target = logits(4, 6, 3), torch.softmax(3 * logits(4, 6, 3), dim=2)
    found = score(Plain(), pairs(output, target), progress=False).losses
    wanted = F.cross_entropy(output.transpose(1, 2), target.transpose(1, 2), reduction="none")
    np.testing.assert_allclose(found, wanted.mean(dim=1), rtol=1e-5)


def test_a_row_that_is_no_distribution_among_others_that_are_is_named():
    target = torch.softmax(logits(8, 4), dim=1)
    target[5] *= 2
    with pytest.raises(ValueError, match="row 5: the target is no distribution"):
        score(Plain(), pairs(logits(8, 4), target), batch_size=4, progress=False)


@pytest.mark.parametrize("mark", [-1, 255, 0])
@pytest.mark.parametrize("name", ["classification", "cross_entropy"])
def test_another_index_may_be_the_ignored_one(name, mark):
    output, target = logits(4, 3, 6), torch.randint(1, 3, (4, 6), generator=RANDOM)
    target[:, 4:] = mark
    found = score(Plain(), pairs(output, target), name, ignore_index=mark, progress=False)
    wanted = F.cross_entropy(output, target, reduction="none", ignore_index=mark)[:, :4].mean(dim=1)
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)
    assert "ignore_index" in found.provenance.options


def test_a_row_all_of_whose_labels_are_ignored_has_no_loss():
    output, target = logits(4, 3, 6), torch.zeros(4, 6, dtype=torch.int64)
    target[2] = -1
    rows = pairs(output, target)
    with pytest.raises(InvalidLossError, match=r"rows \[2\] .*all labels of a row are ignored"):
        score(Plain(), rows, ignore_index=-1, progress=False)
    table = score(Plain(), rows, ignore_index=-1, on_invalid="drop", progress=False)
    assert table.weights(on_invalid="drop").values[2] == 0


@pytest.mark.parametrize("loss", ["mse", "bce", "causal_lm", lambda model, batch: batch[0]])
def test_an_ignored_index_is_for_cross_entropy(loss):
    with pytest.raises(ValueError, match="ignore_index=-1 is for loss="):
        score(Plain(), pairs(logits(4), logits(4)), loss, ignore_index=-1, progress=False)


def test_the_first_rows_of_the_data_decide_for_whatever_rows_are_scored(tmp_path):
    """A pass that goes on scores other rows first, and those might be read as something else."""
    target = torch.rand(40, 2, generator=RANDOM) * 3
    target[20:] = torch.softmax(logits(20, 2), dim=1)
    rows, output = pairs(logits(40, 2), target), tmp_path / "losses.parquet"

    class Stopping(Plain):
        calls = 0

        def forward(self, inputs):
            type(self).calls += 1
            if type(self).calls == 4:
                raise KeyboardInterrupt
            return super().forward(inputs)

    options = {"output": output, "batch_size": 10, "progress": False, "save_every": 0.0}
    with pytest.raises(KeyboardInterrupt):
        score(Stopping(), rows, **options)
    table = score(Plain(), rows, **options)
    wanted = score(Plain(), rows, "mse", progress=False).losses
    np.testing.assert_array_equal(table.losses, wanted)


def test_the_arguments_of_a_model_are_found_inside_what_is_around_it():
    model = bert(SEQUENCE, num_labels=4)
    assert "labels" in parameters_of_forward(model)
    assert "labels" in parameters_of_forward(nn.DataParallel(model))
    assert "labels" in parameters_of_forward(torch.compile(model))
    assert parameters_of_forward(Plain()) == {"inputs"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [(torch.ones(3), 0), (torch.ones(4), 0)],
            "Linear does not take the batch (float32 (1, 4)",
        ),
        ([(torch.ones(3), 0), (torch.ones(3), None)], "pass collate_fn="),
        ([{"input": torch.ones(3), "labels": 0}, {"input": torch.ones(3)}], "with ['input']"),
        ([(torch.ones(3), None)] * 2, "pass collate_fn="),
        ([(torch.ones(7), 0)] * 2, "Linear does not take the batch (float32 (2, 7) on cpu)"),
        ([(torch.ones(3).double(), 0)] * 2, "Linear does not take the batch (float64"),
        ([{"pixels": torch.ones(3), "labels": 0}] * 2, "pixels=float32 (2, 3)"),
        ([{"input": [1.0, 2, 3], "labels": 0}] * 2, "give tensors instead of lists"),
        ([{"input": torch.ones(3), "label": 0}] * 2, "with ['input', 'label']"),
        ([(torch.ones(3), 0, 1)] * 2, "got <class 'list'> of 3"),
    ],
)
def test_errors_of_torch_are_told_with_what_was_given(rows, said):
    with pytest.raises((TypeError, ValueError), match="batch") as error:
        score(nn.Linear(3, 2), rows, progress=False)
    assert said in str(error.value)
