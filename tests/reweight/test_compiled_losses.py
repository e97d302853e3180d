"""A compiled step computes the weighted loss of an eager one, batch after batch."""

import pytest
import torch
from torch.nn import functional as F

from flowdata.reweight import UnweightedLossError, WeightedTarget, plain, register_loss, weighable

pytestmark = pytest.mark.slow

FEATURES, CLASSES = 5, 4
SIZES = (6, 6, 8, 5)
"""Samples of each batch: the compiler sees a shape again, then makes it a variable."""


@weighable
def cubic(logits, target):
    return (logits.softmax(1) - F.one_hot(target, CLASSES)).abs().pow(3).mean()


def weighted_cubic(logits, target, *, weights):
    losses = (logits.softmax(1) - F.one_hot(target, CLASSES)).abs().pow(3)
    return (losses * weights[:, None]).mean()


register_loss(cubic, weighted_cubic)


def ignoring(logits, target):
    target = target.clone()
    target[target == 1] = -100
    return F.cross_entropy(logits, target)


def focal(logits, target):
    losses = F.cross_entropy(logits, target, reduction="none")
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


LOSSES = {
    "of torch": F.cross_entropy,
    "of a module": torch.nn.CrossEntropyLoss(label_smoothing=0.1),
    "of one's own": cubic,
    "without reduction": lambda x, y: 2 * F.cross_entropy(x, y, reduction="none").mean(),
    "of a part": lambda x, y: F.cross_entropy(x[1:], y[..., 1:].contiguous().view(-1)),
    "of joined targets": lambda x, y: F.cross_entropy(torch.cat([x, x]), torch.cat([y, y])),
    "of one-hot rows": lambda x, y: F.mse_loss(x, torch.eye(CLASSES)[y]),
    "of changed targets": ignoring,
    "of two terms": lambda x, y: F.cross_entropy(x, y) + F.nll_loss(x.log_softmax(1), y),
}
REFUSED = {
    "of gathered elements": lambda x, y: -x.log_softmax(1).gather(1, y[:, None]).mean(),
    "focal": focal,
}
# torch 2.13 compiles it without asking the class of an index, unless a guard has set it otherwise.
BY_INDEX = pytest.param(
    lambda x, y: -x.log_softmax(1)[torch.arange(len(y)), y].mean(),
    marks=pytest.mark.guard,
    id="of indexed elements",
)


def batches():
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        weights = 3 * torch.rand(size, generator=generator)
        yield torch.randn(size, FEATURES, generator=generator), WeightedTarget(labels, weights)


def compiled(loss, layer):
    torch.compiler.reset()
    return torch.compile(lambda inputs, target: loss(layer(inputs), target), backend="aot_eager")


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_compiled_loss_has_value_and_gradient_of_the_eager_one(loss):
    layer = torch.nn.Linear(FEATURES, CLASSES)
    step = compiled(loss, layer)
    for inputs, target in batches():
        found, expected = step(inputs, target), loss(layer(inputs), target)
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(each, layer.weight)[0] for each in (found, expected)]
        torch.testing.assert_close(*gradients)
        assert not torch.isclose(found, loss(layer(inputs), plain(target)))


@pytest.mark.parametrize(
    "loss", [*(pytest.param(loss, id=name) for name, loss in REFUSED.items()), BY_INDEX]
)
def test_what_is_refused_is_refused_in_a_compiled_step_too(loss):
    step = compiled(loss, torch.nn.Linear(FEATURES, CLASSES))
    for inputs, target in batches():
        with pytest.raises(UnweightedLossError):
            step(inputs, target)
