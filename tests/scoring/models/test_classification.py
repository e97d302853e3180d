"""Losses of models that map an input to logits or values, against their formulas."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowdata import score, score_probe
from flowdata.scoring.models.classification import (
    LOSS_FUNCTIONS,
    FunctionPass,
    bce,
    classification,
    cross_entropy,
    mse,
)
from flowdata.scoring.models.forward import predict

GENERATOR = torch.Generator().manual_seed(4)
LOGITS = torch.randn(6, 5, generator=GENERATOR) * 3
CLASSES = torch.tensor([0, 4, 2, 2, 1, 3])
MODEL = nn.Identity()


def softmax_losses(logits, classes):
    """Cross-entropy in double precision; classes are the second axis."""
    logits = logits.double().numpy()
    peak = logits.max(axis=1, keepdims=True)
    norm = np.log(np.exp(logits - peak).sum(axis=1)) + peak.squeeze(1)
    return norm - np.take_along_axis(logits, classes.numpy()[:, None], axis=1).squeeze(1)


def logistic_losses(logits, targets):
    chance = 1 / (1 + np.exp(-logits.double().numpy()))
    return -np.where(targets.numpy() > 0, np.log(chance), np.log(1 - chance))


def check(losses, expected):
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("function", [classification, cross_entropy])
def test_class_indices_mean_cross_entropy(function):
    check(function(MODEL, (LOGITS, CLASSES)), softmax_losses(LOGITS, CLASSES))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_class_indices_may_have_any_integer_type(dtype):
    check(classification(MODEL, (LOGITS, CLASSES.to(dtype))), softmax_losses(LOGITS, CLASSES))


@pytest.mark.parametrize("function", [classification, bce])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_flags_of_the_shape_of_the_logits_mean_binary_cross_entropy_averaged_over_labels(
    function, dtype
):
    flags = torch.rand(6, 5, generator=GENERATOR) < 0.4
    expected = logistic_losses(LOGITS, flags).mean(axis=1)
    check(function(MODEL, (LOGITS, flags.to(dtype))), expected)


def test_one_flag_and_one_logit_a_sample_mean_binary_cross_entropy():
    flags = CLASSES > 1
    check(classification(MODEL, (LOGITS[:, 0], flags)), logistic_losses(LOGITS[:, 0], flags))


def test_binary_cross_entropy_takes_probabilities_as_targets():
    targets = torch.full((6, 5), 0.25)
    one, zero = torch.ones(6, 5), torch.zeros(6, 5)
    mixed = 0.25 * logistic_losses(LOGITS, one) + 0.75 * logistic_losses(LOGITS, zero)
    check(bce(MODEL, (LOGITS, targets)), mixed.mean(axis=1))


@pytest.mark.parametrize("function", [classification, mse])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_mean_squared_error_averaged_over_outputs(function, dtype):
    targets = torch.randn(6, 5, generator=GENERATOR).to(dtype)
    expected = (LOGITS.double() - targets.double()).square().mean(dim=1)
    check(function(MODEL, (LOGITS, targets)), expected)


def test_cross_entropy_takes_probabilities_of_classes():
    targets = torch.softmax(torch.randn(6, 5, generator=GENERATOR), dim=1)
    logs = torch.log_softmax(LOGITS.double(), dim=1)
    check(cross_entropy(MODEL, (LOGITS, targets)), -(targets * logs).sum(dim=1))


def test_the_cross_entropy_of_pixels_is_averaged_over_an_image():
    logits = torch.randn(3, 5, 2, 4, generator=GENERATOR)
    classes = torch.randint(0, 5, (3, 2, 4), generator=GENERATOR)
    expected = softmax_losses(logits, classes).mean(axis=(1, 2))
    check(classification(MODEL, (logits, classes)), expected)


def test_pixels_without_a_class_are_left_out_of_the_average():
    logits = torch.randn(3, 5, 2, 4, generator=GENERATOR)
    classes = torch.randint(0, 5, (3, 2, 4), generator=GENERATOR)
    expected = softmax_losses(logits, classes)[:, :, :3].mean(axis=(1, 2))
    classes[:, :, 3] = -100
    check(classification(MODEL, (logits, classes)), expected)


def test_a_row_without_a_class_has_no_loss_rather_than_the_smallest_one():
    losses = classification(MODEL, (LOGITS, torch.tensor([0, 4, -100, 2, 1, 3])))
    assert losses.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("function", [classification, cross_entropy])
@pytest.mark.parametrize("bad", [-1, -99, 5])
def test_a_class_that_the_model_does_not_have_is_an_error(function, bad):
    classes = CLASSES.clone()
    classes[2] = bad
    with pytest.raises(ValueError, match=f"target is class {bad}, the model has classes 0 to 4"):
        function(MODEL, (LOGITS, classes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_scored_in_single_precision(dtype):
    logits = LOGITS.to(dtype)
    check(classification(MODEL, (logits, CLASSES)), softmax_losses(logits, CLASSES))


def test_confident_mistakes_have_large_and_finite_losses():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert classification(MODEL, (logits, torch.tensor([1, 1]))).tolist() == [1e4, 0.0]
    assert bce(MODEL, (logits, torch.tensor([[0, 0], [0, 1]]))).tolist()[0] == pytest.approx(
        (1e4 + np.log(2)) / 2
    )


def test_batches_may_be_lists_tuples_or_dicts_with_labels():
    class Scaled(nn.Module):
        def forward(self, pixels, *, scale):
            return SimpleNamespace(logits=pixels * scale)

    expected = softmax_losses(2 * LOGITS, CLASSES)
    check(classification(MODEL, [2 * LOGITS, CLASSES]), expected)
    check(classification(MODEL, (2 * LOGITS, CLASSES)), expected)
    batch = {"pixels": LOGITS, "labels": CLASSES, "scale": 2.0}
    check(classification(Scaled(), batch), expected)
    assert set(batch) == {"pixels", "labels", "scale"}


def test_outputs_may_be_objects_or_dicts_with_logits():
    for kind in (dict, SimpleNamespace):

        class Several(nn.Module):
            def forward(self, pixels):
                return kind(logits=pixels, features=pixels[:, :1])  # noqa: B023

        check(classification(Several(), (LOGITS, CLASSES)), softmax_losses(LOGITS, CLASSES))


@pytest.mark.parametrize("batch", [LOGITS, (LOGITS, CLASSES, CLASSES), {"pixels": LOGITS}, 3])
def test_a_batch_of_another_kind_is_refused_with_a_way_out(batch):
    with pytest.raises(TypeError, match=r"a batch must be \(input, target\) or a dict") as error:
        predict(MODEL, batch)
    assert str(type(batch)) in str(error.value)
    assert "loss=function(model, batch)" in str(error.value)


@pytest.mark.parametrize("batch", [("text", CLASSES), (LOGITS, [0, 1, 2]), ({"a": 1}, CLASSES)])
def test_outputs_and_targets_that_are_no_tensors_are_refused(batch):
    with pytest.raises(TypeError, match="output and target must be tensors"):
        predict(MODEL, batch)


def test_squared_error_does_not_broadcast():
    with pytest.raises(ValueError, match=r"one shape, got \(6, 1\) and \(6,\)"):
        mse(MODEL, (LOGITS[:, :1], LOGITS[:, 0]))


def test_the_named_losses_are_these_four():
    assert sorted(LOSS_FUNCTIONS) == ["bce", "classification", "cross_entropy", "mse"]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (6, 1), (6, 5)])
def test_a_loss_function_must_give_one_loss_a_row(shape):
    work = FunctionPass(lambda *_: torch.zeros(shape), MODEL, torch.device("cpu"), 6)
    with pytest.raises(ValueError, match="for a batch of 6 samples") as error:
        next(work.score_rows(np.arange(6), (LOGITS, CLASSES)))
    assert str(shape) in str(error.value)
    assert 'reduction="none"' in str(error.value)


@pytest.mark.parametrize("result", [[0.5, 1.5], (0.5, 1.5), np.array([0.5, 1.5], np.float16)])
def test_a_loss_function_may_give_a_list_or_an_array(result):
    work = FunctionPass(lambda *_: result, MODEL, torch.device("cpu"), 6)
    scores = next(work.score_rows(np.arange(2), None))
    assert scores.losses.dtype == np.float32
    assert scores.losses.tolist() == [0.5, 1.5]


@pytest.mark.parametrize("result", [1.5, [1.5], np.ones((2, 1))])
def test_a_number_or_array_that_is_not_one_loss_a_row_is_refused(result):
    work = FunctionPass(lambda *_: result, MODEL, torch.device("cpu"), 6)
    with pytest.raises(ValueError, match="loss function returned shape"):
        next(work.score_rows(np.arange(2), None))


NONE = partial(F.cross_entropy, reduction="none")


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss, F.cross_entropy, NONE])
def test_a_loss_of_torch_is_told_what_to_pass_instead(loss):
    rows = [(row, 1) for row in LOGITS]
    with pytest.raises(TypeError, match="takes outputs and targets: pass the name of a loss"):
        score(MODEL, rows, loss, progress=False)
    with pytest.raises(TypeError, match="takes outputs and targets: pass the name of a loss"):
        score_probe(MODEL, rows, head="0", loss=loss, progress=False)
