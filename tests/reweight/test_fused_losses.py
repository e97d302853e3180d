"""Fused linear cross-entropy kernels, as Liger's, give way to a weighted loss."""

import types

import pytest
import torch
from torch.nn import functional as F

from flowdata.reweight import (
    WeightedTarget,
    register_loss,
    unfused_linear_cross_entropy,
    weighable,
)

N, HIDDEN, CLASSES = 8, 5, 11


class Kernel(torch.autograd.Function):
    """Makes gradients in its forward pass, of all tokens at once, as a fused kernel does."""

    @staticmethod
    def forward(context, hidden, head, target, bias, options):
        inputs = [each for each in (hidden, head, bias) if each is not None]
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in inputs]
            logits = F.linear(*leaves)
            if options.pop("softcap") is not None:
                logits = 2.0 * torch.tanh(logits / 2.0)
            loss = F.cross_entropy(logits, target, **options)
        context.gradients = torch.autograd.grad(loss, leaves)
        context.places = [each is not None for each in (hidden, head, bias)]
        return loss.detach()

    @staticmethod
    def backward(context, gradient):
        found = iter(context.gradients)
        hidden, head, bias = (gradient * next(found) if at else None for at in context.places)
        return hidden, head, None, bias, None


def liger_fused_linear_cross_entropy(
    input,
    weight,
    target,
    bias=None,
    ce_weight=None,
    ignore_index=-100,
    lse_square_scale=0.0,
    label_smoothing=0.0,
    reduction="mean",
    softcap=None,
    return_z_loss=False,
    accum_dtype=None,
    use_token_scaling=False,
    return_token_accuracy=False,
):
    options = {
        "weight": ce_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
        "softcap": softcap,
    }
    return Kernel.apply(input, weight, target, bias, options)


@pytest.fixture
def liger():
    """The module by which models call the function, patched as documented."""
    module = types.SimpleNamespace(name=liger_fused_linear_cross_entropy)
    module.name = weighable(module.name)
    register_loss(module.name, unfused_linear_cross_entropy)
    return module


def parts():
    generator = torch.Generator().manual_seed(0)
    hidden, head, bias = (
        torch.randn(*shape, generator=generator)
        for shape in ((N, HIDDEN), (CLASSES, HIDDEN), (CLASSES,))
    )
    target = torch.randint(0, CLASSES, (N,), generator=generator)
    target[2] = -100
    return hidden, 2 * head, bias, target


OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "smoothing": {"label_smoothing": 0.2},
    "class weights": {"ce_weight": torch.linspace(0.1, 2, CLASSES)},
    "ignored": {"ignore_index": 3},
    "accumulated in": {"accum_dtype": torch.float32},
    "all": {
        "softcap": 2.0,
        "label_smoothing": 0.1,
        "ce_weight": torch.linspace(0.1, 2, CLASSES),
        "bias": True,
    },
}


def gradients(fused, add_weights, options, reduction):
    hidden, head, bias, target = parts()
    target = torch.where(target < 0, options.get("ignore_index", -100), target)
    inputs = [each.requires_grad_() for each in (hidden, head)]
    if options.get("bias"):
        options = options | {"bias": bias}
    loss = fused(*inputs, add_weights(target), reduction=reduction, **options)
    loss.backward()
    return [loss.detach(), *(each.grad for each in inputs)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weights_of_one_change_nothing_in_a_fused_loss(liger, options, reduction):
    expected = gradients(liger.name, lambda target: target, options, reduction)
    found = gradients(
        liger.name, lambda target: WeightedTarget(target, torch.ones(N)), options, reduction
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_fused_loss_is_a_sum_of_those_of_single_tokens_times_weights(liger, options):
    weights = torch.linspace(0.1, 3, N)
    found = gradients(liger.name, lambda target: WeightedTarget(target, weights), options, "sum")

    def one_by_one(hidden, head, target, **rest):
        rows = zip(hidden.split(1), target.split(1), strict=True)
        losses = [liger.name(row, head, label, **rest) for row, label in rows]
        return (torch.stack(losses) * weights).sum()

    expected = gradients(one_by_one, lambda target: target, options, "sum")
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize(
    "option",
    [
        {"return_z_loss": True},
        {"lse_square_scale": 1e-4},
        {"use_token_scaling": True},
        {"return_token_accuracy": True},
    ],
)
def test_what_only_the_kernel_has_is_refused(liger, option):
    hidden, head, _, target = parts()
    with pytest.raises(NotImplementedError, match=next(iter(option))):
        liger.name(hidden, head, WeightedTarget(target, torch.ones(N)), **option)
    off = {name: type(value)(0) for name, value in option.items()}
    assert liger.name(hidden, head, WeightedTarget(target, torch.ones(N)), **off) > 0
