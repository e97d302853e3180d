"""linear_probe: the head becomes the logistic regression on the features, nothing else changes."""

import copy

import numpy as np
import pytest
import torch
import transformers
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flowdata import linear_probe

GENERATOR = torch.Generator().manual_seed(2)
INPUTS = torch.randn(40, 4, generator=GENERATOR)
CLASSES = torch.randint(0, 3, (40,), generator=GENERATOR)
ROWS = TensorDataset(INPUTS, CLASSES)


def network():
    torch.manual_seed(0)
    layers = {
        "body": nn.Linear(4, 6),
        "norm": nn.BatchNorm1d(6),
        "drop": nn.Dropout(0.5),
        "head": nn.Linear(6, 3),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def probe(model, dataset=ROWS, head="head", **options):
    return linear_probe(model, dataset, head=head, progress=False, **options)


@pytest.fixture(scope="module")
def digits():
    pixels, classes = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(classes))


@pytest.mark.parametrize("weight_decay", [1e-2, 1e-3, 1e-4])
def test_the_head_reaches_the_optimum_that_scikit_learn_finds_on_real_digits(digits, weight_decay):
    pixels, classes = digits.tensors
    torch.manual_seed(0)
    backbone, head = nn.Sequential(nn.Linear(64, 32), nn.Tanh()), nn.Linear(32, 10)
    probe(nn.Sequential(backbone, head), digits, "1", weight_decay=weight_decay)
    with torch.no_grad():
        features = backbone(pixels).double()
    reference = LogisticRegression(C=1 / (weight_decay * len(digits)), tol=1e-8, max_iter=20_000)
    reference.fit(features.numpy(), classes.numpy())

    def objective(weight, bias):
        loss = F.cross_entropy(features @ weight.double().T + bias.double(), classes)
        return (loss + 0.5 * weight_decay * weight.double().square().sum()).item()

    best = objective(torch.tensor(reference.coef_), torch.tensor(reference.intercept_))
    found = objective(head.weight.detach(), head.bias.detach())
    assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_head_of_a_model_of_half_precision_is_fitted_as_well(digits, dtype):
    pixels, classes = digits.tensors
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)).to(dtype)
    full = copy.deepcopy(model).float()
    found = probe(model, TensorDataset(pixels.to(dtype), classes), "2")
    assert model[2].weight.dtype == dtype
    assert found == pytest.approx(probe(full, digits, "2"), rel=0.1)


def test_the_coefficients_are_those_of_scikit_learn(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    probe(model, digits, "1", weight_decay=1e-2)
    pixels, classes = (values.numpy() for values in digits.tensors)
    reference = LogisticRegression(C=1 / (1e-2 * len(digits)), tol=1e-8, max_iter=20_000)
    reference.fit(pixels.astype(np.float64), classes)
    np.testing.assert_allclose(model[1].weight.detach(), reference.coef_, atol=5e-3)


def test_the_result_is_the_mean_cross_entropy_without_the_penalty():
    model = network()
    found = probe(model, weight_decay=0.1)
    with torch.no_grad():
        wanted = F.cross_entropy(model.eval()(INPUTS), CLASSES).item()
    assert found == pytest.approx(wanted, rel=1e-5)
    assert found < F.cross_entropy(network().eval()(INPUTS), CLASSES).item()


def test_more_iterations_come_closer_to_the_optimum(digits):
    losses = []
    for iterations in (1, 10, 100):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        losses.append(probe(model, digits, "1", weight_decay=0.0, max_iter=iterations))
    assert losses[0] > 2 * losses[1] > 4 * losses[2]


def test_everything_but_the_head_is_left_as_it_was():
    model = network().train()
    model.norm.eval()
    model.body.bias.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    trained = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    probe(model)
    after = model.state_dict()
    for name, values in before.items():
        assert torch.equal(values, after[name]) == (not name.startswith("head"))
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert [module.training for module in model] == [True, False, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not vars(model.head)["_forward_pre_hooks"]


def test_gradients_of_the_backbone_are_kept():
    model = network()
    model(INPUTS).sum().backward()
    before = model.body.weight.grad.clone()
    probe(model)
    assert torch.equal(model.body.weight.grad, before)


def test_a_probed_model_can_be_trained_on():
    model = network()
    probe(model)
    F.cross_entropy(model(INPUTS), CLASSES).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_it_does_not_matter_whether_gradients_are_enabled():
    one, other = network(), network()
    with torch.no_grad():
        probe(one)
    probe(other)
    assert torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("batch_size", [7, 40])
def test_a_backbone_that_runs_in_inference_mode_makes_no_difference(batch_size):
    one, other = network(), network()
    one.body.forward = torch.inference_mode()(one.body.forward)
    probe(one, batch_size=batch_size)
    probe(other, batch_size=batch_size)
    assert torch.equal(one.head.weight, other.head.weight)


@pytest.mark.parametrize("options", [{"batch_size": 7}, {"collate_fn": None, "batch_size": 1}])
def test_the_batch_size_makes_no_difference(options):
    one, other = network(), network()
    probe(one, weight_decay=0.1, batch_size=40)
    probe(other, weight_decay=0.1, **options)
    torch.testing.assert_close(one.head.weight, other.head.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_loader_workers_make_no_difference():
    one, other = network(), network()
    assert probe(one) == probe(other, num_workers=2)
    assert torch.equal(one.head.weight, other.head.weight)


def test_a_head_without_bias_is_fitted():
    model = network()
    model.head = nn.Linear(6, 3, bias=False)
    before = model.head.weight.detach().clone()
    probe(model)
    assert not torch.equal(model.head.weight, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_class_indices_may_have_any_integer_type(dtype):
    one, other = network(), network()
    assert probe(one, TensorDataset(INPUTS, CLASSES.to(dtype))) == probe(other)


def test_the_head_of_a_transformers_classifier_is_fitted_on_dicts_with_labels():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, num_hidden_layers=1, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config)
    samples = [
        {"input_ids": torch.full((5,), row), "attention_mask": torch.ones(5), "labels": row % 3}
        for row in range(9)
    ]
    assert probe(model, samples, "classifier", weight_decay=0.0) < 0.5


def test_a_progress_bar_is_shown_on_standard_error_when_asked_for(capsys):
    linear_probe(network(), ROWS, head="head")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "probing: 100%" in shown.err
    assert "40/40" in shown.err
    linear_probe(network(), ROWS, head="head", progress=False)
    assert capsys.readouterr() == ("", "")


def test_an_unknown_head_is_refused_with_the_linear_layers_there_are():
    with pytest.raises(ValueError, match=r"no module 'fc'; linear layers are \['body', 'head'\]"):
        probe(network(), head="fc")


def test_a_head_that_is_not_linear_is_refused():
    with pytest.raises(TypeError, match=r"must be nn.Linear, 'norm' is BatchNorm1d"):
        probe(network(), head="norm")


@pytest.mark.parametrize(
    "targets", [CLASSES.float(), torch.stack([CLASSES, CLASSES], dim=1), CLASSES > 1]
)
def test_targets_that_are_no_class_indices_are_refused(targets):
    with pytest.raises(TypeError, match="targets must be class indices"):
        probe(network(), TensorDataset(INPUTS, targets))


@pytest.mark.parametrize(("shift", "found"), [(1, "from 1 to 3"), (-100, "from -100 to -98")])
def test_classes_the_head_does_not_have_are_refused(shift, found):
    with pytest.raises(ValueError, match=f"class indices run {found}, the head has 3 outputs"):
        probe(network(), TensorDataset(INPUTS, CLASSES + shift))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(bad):
    inputs = INPUTS.clone()
    inputs[3, 1] = bad
    with pytest.raises(ValueError, match="the head sees NaN or infinite features"):
        probe(network(), TensorDataset(inputs, CLASSES))


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"weight_decay": -1.0}, {"weight_decay": float("nan")}],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        probe(network(), **options)


def test_empty_data_and_loaders_are_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        probe(network(), [])
    with pytest.raises(TypeError, match="pass the data set, not a DataLoader"):
        probe(network(), DataLoader(ROWS))


class Heads(nn.Module):
    """Its head is used as often as it is told."""

    def __init__(self, times):
        super().__init__()
        self.body, self.head, self.times = nn.Linear(4, 3), nn.Linear(4, 3), times

    def forward(self, inputs):
        return self.body(inputs) + sum(self.head(inputs) for _ in range(self.times))


@pytest.mark.parametrize("times", [0, 2])
def test_a_head_that_is_not_used_once_in_a_forward_pass_is_refused(times):
    with pytest.raises(ValueError, match="one feature vector per sample"):
        probe(Heads(times))


def test_a_head_that_sees_a_sequence_is_refused():
    sequences = TensorDataset(torch.ones(6, 5, 4), torch.zeros(6, dtype=torch.long))
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten(), nn.Linear(15, 3))
    with pytest.raises(ValueError, match=r"it saw \(6, 5, 4\) for 6 samples"):
        probe(model, sequences, "0")


@pytest.mark.parametrize(
    "rows",
    [
        TensorDataset(INPUTS, CLASSES + 1),
        TensorDataset(INPUTS, CLASSES.float()),
        [(torch.ones(4), 0)] * 70 + [(torch.ones(5), 0)],
    ],
)
def test_an_error_leaves_the_model_as_it_was(rows):
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        probe(model, rows)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not vars(model.head)["_forward_pre_hooks"]


def test_scores_after_a_probe_separate_the_classes_of_real_digits(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    probe(model, digits, "2")
    with torch.no_grad():
        right = model(digits.tensors[0]).argmax(dim=1) == digits.tensors[1]
    assert np.mean(right.numpy()) > 0.95
