"""Every loss with a weighted target against reduction="none" times weights."""

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_release import needs

from flowdata.reweight import (
    UnweightedLossError,
    WeightedTarget,
    register_loss,
    weighable,
    weighted_mean,
)
from flowdata.reweight.rules import LOSS_RULES
from flowdata.reweight.weighted_losses import WeightedLosses

N, C, T = 7, 4, 3


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classes(*shape, seed=0):
    return torch.randint(0, C, shape, generator=torch.Generator().manual_seed(seed))


def ctc(log_probs, target, **options):
    lengths = torch.tensor([3, 2, 1, 3, 2, 1, 3])
    return F.ctc_loss(log_probs, target, torch.full((N,), 6), lengths, **options)


IGNORING = torch.where(rand(N, seed=3) < 0.3, -100, classes(N))
CASES = {
    "cross_entropy": (F.cross_entropy, rand(N, C), classes(N), {}),
    "cross_entropy, ignored": (F.cross_entropy, rand(N, C), IGNORING, {}),
    "cross_entropy, class weights": (
        F.cross_entropy, rand(N, C), IGNORING, {"weight": rand(C, seed=5)},
    ),
    "cross_entropy, smoothing": (F.cross_entropy, rand(N, C), IGNORING, {"label_smoothing": 0.2}),
    "cross_entropy, both": (
        F.cross_entropy,
        rand(N, C),
        IGNORING,
        {"label_smoothing": 0.2, "weight": rand(C, seed=5)},
    ),
    "cross_entropy, images": (F.cross_entropy, rand(N, C, T), classes(N, T), {"ignore_index": 2}),
    "cross_entropy, probabilities": (F.cross_entropy, rand(N, C), rand(N, C).softmax(1), {}),
    "cross_entropy, probabilities, class weights": (
        F.cross_entropy, rand(N, C), rand(N, C).softmax(1), {"weight": rand(C, seed=5)},
    ),
    "nll_loss": (F.nll_loss, rand(N, C).log_softmax(1), IGNORING, {"weight": rand(C, seed=5)}),
    "bce": (F.binary_cross_entropy, rand(N, T), rand(N, T, seed=1), {}),
    "bce, own weights": (
        F.binary_cross_entropy, rand(N, T), rand(N, T, seed=1), {"weight": rand(N, T, seed=6)},
    ),
    "bce with logits": (
        F.binary_cross_entropy_with_logits,
        rand(N, T),
        rand(N, T, seed=1),
        {"pos_weight": rand(T, seed=6)},
    ),
    "mse": (F.mse_loss, rand(N, T), rand(N, T, seed=1), {}),
    "mse, own weights": (
        F.mse_loss, rand(N, T), rand(N, T, seed=1), {"weight": rand(N, T, seed=6)},
    ),
    "l1": (F.l1_loss, rand(N), rand(N, seed=1), {}),
    "smooth l1": (F.smooth_l1_loss, rand(N, T), rand(N, T, seed=1), {"beta": 0.1}),
    "huber": (F.huber_loss, rand(N, T), rand(N, T, seed=1), {"delta": 0.1}),
    "kl": (F.kl_div, rand(N, C).log_softmax(1), rand(N, C).softmax(1), {}),
    "poisson": (F.poisson_nll_loss, rand(N), rand(N, seed=1), {}),
    "gaussian": (F.gaussian_nll_loss, rand(N), rand(N, seed=1), {"var": rand(N, seed=2)}),
    "soft margin": (F.soft_margin_loss, rand(N), rand(N, seed=1).sign(), {}),
    "multi margin": (F.multi_margin_loss, rand(N, C), classes(N), {}),
    "multilabel soft margin": (
        F.multilabel_soft_margin_loss, rand(N, C), (rand(N, C, seed=1) > 0.5).double(), {},
    ),
    "multilabel soft margin, in three dimensions": (
        F.multilabel_soft_margin_loss, rand(N, T, C), (rand(N, T, C, seed=1) > 0.5).double(), {},
    ),
    "cross_entropy, bytes and class weights": (
        F.cross_entropy, rand(N, C), classes(N).byte(), {"weight": rand(C, seed=5)},
    ),
    "multilabel margin": (F.multilabel_margin_loss, rand(N, C), classes(N, C), {}),
    "linear cross-entropy": (
        lambda input, target, **options: F.linear_cross_entropy(
            input, rand(C, T, seed=7), target, **options
        ),
        rand(N, T),
        IGNORING,
        {"weight": rand(C, seed=5)},
    ),
    "ctc": (ctc, rand(6, N, C).log_softmax(2), classes(N, 3) % (C - 1) + 1, {}),
    "cosine embedding": (
        lambda input, target, **options: F.cosine_embedding_loss(
            input, rand(N, T, seed=8), target, **options
        ),
        rand(N, T),
        rand(N, seed=1).sign(),
        {},
    ),
    "margin ranking": (
        lambda input, target, **options: F.margin_ranking_loss(
            input, rand(N, seed=8), target, margin=0.1, **options
        ),
        rand(N),
        rand(N, seed=1).sign(),
        {},
    ),
    "hinge embedding": (F.hinge_embedding_loss, rand(N), torch.ones(N, dtype=torch.float64), {}),
}  # fmt: skip


LACKING = {
    "mse, own weights": needs(
        "weight" in inspect.signature(F.mse_loss).parameters, "mse_loss(weight=)"
    ),
    "linear cross-entropy": needs(hasattr(F, "linear_cross_entropy"), "linear_cross_entropy"),
}
"""Cases of what came with a later release than the lowest."""

each_case = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=LACKING.get(name, ())) for name, case in CASES.items()],
)


def called(loss, inputs, target, options):
    first = next(iter(inspect.signature(loss).parameters))
    return loss(**{first: inputs, "target": target} | options)


def reference(loss, inputs, target, options, weights, reduction):
    """What "mean" divides by is found from torch itself: the sum of ones over their mean."""
    losses = called(loss, inputs, target, options | {"reduction": "none"})
    shaped = weights.reshape((N,) + (1,) * (losses.ndim - 1))
    weighted = losses * shaped
    if reduction == "none":
        return weighted
    if loss is ctc and reduction == "mean":
        return (weighted / torch.tensor([3, 2, 1, 3, 2, 1, 3])).mean()
    total = called(loss, inputs, target, options | {"reduction": "sum"})
    reduced = called(loss, inputs, target, options | {"reduction": reduction})
    return weighted.sum() * (reduced / total).detach()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each_case
def test_a_loss_is_that_of_single_elements_times_weights(case, reduction):
    loss, inputs, target, options = case
    weights = rand(N, seed=9) + 0.1
    gradients, values = [], []
    for compute in (
        lambda x: called(
            loss, x, WeightedTarget(target, weights), options | {"reduction": reduction}
        ),
        lambda x: reference(loss, x, target, options, weights, reduction),
    ):
        x = inputs.detach().clone().requires_grad_()
        value = compute(x)
        assert isinstance(value, WeightedLosses) == (reduction == "none" and not values)
        value.sum().backward()
        gradients.append(x.grad)
        values.append(torch.from_numpy(value.detach().numpy()))
    torch.testing.assert_close(values[0], values[1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@each_case
def test_weights_of_one_change_nothing(case):
    loss, inputs, target, options = case
    weighted = called(loss, inputs, WeightedTarget(target, torch.ones(N)), options)
    torch.testing.assert_close(weighted, called(loss, inputs, target, options))


def test_every_loss_of_torch_that_has_a_target_is_known():
    def has_target(function):
        try:
            names = inspect.signature(function).parameters
        except ValueError:
            return False
        return not {"target", "targets"}.isdisjoint(names)

    found = {
        name
        for name, function in vars(F).items()
        if callable(function) and not name.startswith("_") and has_target(function)
    }
    assert len(found) > 15
    assert {name for name in found if getattr(F, name) not in LOSS_RULES} == set()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ctc_of_targets_in_one_row_and_of_a_single_sequence(reduction):
    scores = rand(6, 2, C).log_softmax(2)
    lengths, sizes = torch.tensor([6, 6]), torch.tensor([3, 2])
    labels = torch.tensor([[1, 2, 3], [3, 1, 0]])
    weights = torch.tensor([0.5, 2.0])
    expected = F.ctc_loss(
        scores, WeightedTarget(labels, weights), lengths, sizes, reduction=reduction
    )
    row = WeightedTarget(torch.tensor([1, 2, 3, 3, 1]), weights.repeat_interleave(sizes))
    found = F.ctc_loss(scores, row, lengths, sizes, reduction=reduction)
    torch.testing.assert_close(found, expected)
    single = WeightedTarget(labels[0], torch.full((3,), 0.5))
    alone = F.ctc_loss(scores[:, 0], single, lengths[:1], sizes[:1], reduction=reduction)
    plain = F.ctc_loss(scores[:, 0], labels[0], lengths[:1], sizes[:1], reduction=reduction)
    torch.testing.assert_close(alone, 0.5 * plain)
    padded = F.pad(WeightedTarget(labels, weights), (0, 2))
    assert F.ctc_loss(scores, padded, lengths, sizes, reduction="sum") == F.ctc_loss(
        scores, WeightedTarget(labels, weights), lengths, sizes, reduction="sum"
    )
    with pytest.raises(ValueError, match="one weight, the same for all"):
        F.ctc_loss(scores, WeightedTarget(labels, rand(2, 3)), lengths, sizes)


def test_ctc_takes_no_weights_from_behind_the_labels_of_a_row():
    scores = rand(6, 3, C).log_softmax(2)
    lengths, sizes = torch.tensor([6, 6, 6]), torch.tensor([1, 2, 0])
    labels = torch.tensor([[1, 3, 2], [3, 1, 3], [0, 0, 0]])
    # An empty row has its weight in the first place.
    weights = torch.tensor([[0.5, 9.0, 8.0], [2.0, 2.0, 9.0], [3.0, 9.0, 8.0]])
    found = F.ctc_loss(scores, WeightedTarget(labels, weights), lengths, sizes, reduction="none")
    plain = F.ctc_loss(scores, labels, lengths, sizes, reduction="none")
    torch.testing.assert_close(torch.as_tensor(found), plain * torch.tensor([0.5, 2.0, 3.0]))


def test_weights_are_not_rounded_to_the_precision_of_the_losses():
    logits, weights = rand(256, C).bfloat16(), 1 + 1e-3 * rand(256, seed=2).float()
    target = WeightedTarget(classes(256), weights)
    losses = F.cross_entropy(logits, classes(256), reduction="none").float()
    found = F.cross_entropy(logits, target)
    assert found.dtype == torch.bfloat16
    assert found == (losses * weights).mean().bfloat16()


def test_unknown_reductions_are_as_wrong_as_without_weights():
    target = WeightedTarget(classes(N), rand(N))
    for reduction in ("batchmean", "median"):
        with pytest.raises(ValueError, match="is not a valid value for reduction"):
            F.cross_entropy(rand(N, C), target, reduction=reduction)
        sequences = WeightedTarget(classes(N, 3) % (C - 1) + 1, rand(N))
        with pytest.raises(ValueError, match="is not a valid value for reduction"):
            ctc(rand(6, N, C).log_softmax(2), sequences, reduction=reduction)


def test_old_ways_to_ask_for_a_reduction():
    weights = rand(N, seed=9)
    target = WeightedTarget(classes(N), weights)
    for old, new in (({"reduce": False}, "none"), ({"size_average": False}, "sum")):
        with pytest.warns(UserWarning, match="deprecated"):
            found = F.cross_entropy(rand(N, C), target, **old)
        torch.testing.assert_close(found, F.cross_entropy(rand(N, C), target, reduction=new))


MODULES = [
    (nn.CrossEntropyLoss(label_smoothing=0.1), rand(N, C), classes(N)),
    (nn.NLLLoss(), rand(N, C).log_softmax(1), classes(N)),
    (nn.BCEWithLogitsLoss(), rand(N), rand(N, seed=1)),
    (nn.BCELoss(), rand(N), rand(N, seed=1)),
    (nn.MSELoss(), rand(N, T), rand(N, T, seed=1)),
    (nn.KLDivLoss(reduction="batchmean"), rand(N, C).log_softmax(1), rand(N, C).softmax(1)),
    (nn.HuberLoss(), rand(N), rand(N, seed=1)),
]


@pytest.mark.parametrize(
    ("module", "inputs", "target"), MODULES, ids=lambda value: type(value).__name__
)
def test_modules_of_losses_are_weighted_too(module, inputs, target):
    twice = WeightedTarget(target, torch.full((N,), 2.0))
    torch.testing.assert_close(module(inputs, twice), 2 * module(inputs, target))


def test_symmetric_losses_may_have_the_target_first():
    weights = rand(N, seed=9)
    target = WeightedTarget(rand(N, seed=1), weights)
    predicted = rand(N)
    for loss in (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss):
        assert loss(target, predicted) == loss(predicted, target)


def test_weights_of_single_tokens_are_taken_one_by_one():
    logits, labels, weights = rand(2, 5, C), classes(2, 5), rand(2, 5, seed=4)
    labels[0, :2] = -100
    target = WeightedTarget(labels, weights)
    found = F.cross_entropy(logits.view(-1, C), target.view(-1))
    losses = F.cross_entropy(logits.view(-1, C), labels.view(-1), reduction="none")
    torch.testing.assert_close(found, (losses * weights.view(-1)).sum() / 8)


def test_weights_that_differ_between_the_classes_of_a_sample_are_refused():
    target = WeightedTarget(rand(N, C).softmax(1), rand(N, C))
    with pytest.raises(ValueError, match="their weights differ"):
        F.cross_entropy(rand(N, C), target)


def test_a_loss_of_ones_own_is_taught():
    @weighable
    def cubic(predicted, target):
        return (predicted - target).abs().pow(3).mean()

    def weighted(predicted, target, *, weights):
        return ((predicted - target).abs().pow(3) * weights).mean()

    register_loss(cubic, weighted)
    predicted, target, weights = rand(N), rand(N, seed=1), rand(N, seed=2)
    found = cubic(predicted, WeightedTarget(target, weights))
    assert found == weighted(predicted, target, weights=weights)
    assert cubic(predicted, target) == (predicted - target).abs().pow(3).mean()


def test_a_loss_that_would_never_ask_is_not_taught():
    def unasked(predicted, target):
        return (predicted - target).square().mean()

    class Loss(nn.Module):
        def forward(self, predicted, target):
            return unasked(predicted, target)

    module = Loss()
    for function in (unasked, module, Loss):
        with pytest.raises(TypeError, match=r"weighable\(module.forward\)"):
            register_loss(function, unasked)
    module.forward = weighable(module.forward)
    register_loss(module.forward, lambda p, t, *, weights: ((p - t).square() * weights).mean())
    predicted, target, weights = rand(N), rand(N, seed=1), rand(N, seed=2)
    found = module(predicted, WeightedTarget(target, weights))
    assert found == ((predicted - target).square() * weights).mean()


def test_a_handler_gets_the_weights_of_one_target():
    both = weighable(lambda predicted, start, end: predicted.mean())
    register_loss(both, lambda *_, weights: weights.mean())
    target = WeightedTarget(rand(N), rand(N))
    with pytest.raises(UnweightedLossError, match="got 2 weighted targets"):
        both(rand(N), target, target)


def test_the_explicit_mean_is_the_same():
    logits, target, weights = rand(N, C), classes(N), rand(N, seed=2)
    losses = F.cross_entropy(logits, target, reduction="none")
    explicit = weighted_mean(losses, weights)
    torch.testing.assert_close(explicit, F.cross_entropy(logits, WeightedTarget(target, weights)))
