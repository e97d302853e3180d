"""What becomes of losses of single elements that are weighted already."""

import pytest
import torch
from torch.nn import functional as F

from flowdata.reweight import UnweightedLossError, WeightedTarget
from flowdata.reweight.weighted_losses import WeightedLosses

N, C = 6, 4


@pytest.fixture
def logits():
    return torch.randn(N, C, generator=torch.Generator().manual_seed(0)).requires_grad_()


TARGETS = torch.arange(N) % C
WEIGHTS = torch.linspace(0.1, 2, N)
MASK = torch.tensor([1.0, 0, 1, 1, 0, 1])


def losses_of(logits):
    return F.cross_entropy(logits, WeightedTarget(TARGETS, WEIGHTS), reduction="none")


def focal(losses):
    return ((1 - torch.exp(-losses)) ** 2 * losses).mean()


REFUSED = {
    "focal loss": focal,
    "focal loss by detached losses": lambda x: ((1 - torch.exp(-x.detach())) * x).mean(),
    "focal loss by rows": lambda x: focal(x.view(2, 3).mean(1)),
    "hard examples": lambda x: x.topk(2).values.mean(),
    "hard examples by order": lambda x: x.sort(descending=True).values[:2].mean(),
    "hard examples by bound": lambda x: x[x > 0.7].mean(),
    "bounded": lambda x: x.clamp(max=1.0).mean(),
    "square": lambda x: (x**2).mean(),
    "square by itself": lambda x: (x * x.detach()).mean(),
    "root": lambda x: x.sqrt().mean(),
    "in place": lambda x: x.exp_().mean(),
    "tempered": lambda x: torch.logsumexp(x, 0),
    "inverse": lambda x: (1 / x).mean(),
    "largest": lambda x: x.max(),
    "unheard of": lambda x: torch.special.erf(x).mean(),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_what_is_not_linear_in_losses_is_refused(logits, use):
    assert use(F.cross_entropy(logits, TARGETS, reduction="none")).ndim == 0
    with pytest.raises(UnweightedLossError, match=r"focal.*register_loss.*flow_weight"):
        use(losses_of(logits))
    with torch.no_grad():
        assert use(losses_of(logits)).ndim == 0


LINEAR = {
    "mean": lambda x: x.mean(),
    "masked": lambda x: (x * MASK).sum() / MASK.sum(),
    "negative": lambda x: -(-x / 3).sum(),
    "class weights": lambda x: (torch.arange(1.0, C + 1)[TARGETS] * x).mean(),
    "some": lambda x: x[MASK.bool()].mean(),
    "by rows": lambda x: x.view(2, 3).mean(dim=1).float().sum(),
    "parts": lambda x: torch.stack([part.sum() for part in x.split(2)]).mean(),
    "joined": lambda x: torch.cat([x, 2 * x]).mean(),
    "where": lambda x: torch.where(MASK.bool(), x, torch.zeros(())).sum(),
    "without some": lambda x: x.masked_fill(MASK.bool(), 0).sum(),
    "product": lambda x: x @ MASK,
    "in place": lambda x: x.mul_(MASK).sum(),
    "one by one": lambda x: sum(x.unbind()) / len(x),
    "and another": lambda x: (x + 1).mean(),
}


@pytest.mark.parametrize("use", LINEAR.values(), ids=LINEAR)
def test_what_is_linear_in_losses_is_that_of_weights_times_losses(logits, use):
    found = use(losses_of(logits))
    expected = use(F.cross_entropy(logits, TARGETS, reduction="none") * WEIGHTS)
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)
    [gradient], [other] = (torch.autograd.grad(each, logits) for each in (found, expected))
    assert torch.equal(gradient, other)


def test_losses_can_be_looked_at(logits):
    losses = losses_of(logits)
    assert isinstance(losses, WeightedLosses)
    assert losses.shape == (N,)
    assert len(losses.tolist()) == len(losses.detach().numpy()) == N
    assert losses.isfinite().all()
    assert losses.detach().max() > 0
    assert "grad_fn" in repr(losses)


def test_without_a_gradient_they_are_plain():
    assert type(losses_of(torch.zeros(N, C))) is torch.Tensor


@pytest.mark.slow
@pytest.mark.parametrize("reduce", [torch.Tensor.mean, lambda x: (x.view(-1) * MASK).sum() / 4])
def test_they_pass_through_a_compiled_step(logits, reduce):
    torch.compiler.reset()
    target = WeightedTarget(TARGETS, WEIGHTS)

    @torch.compile(backend="aot_eager")
    def loss(logits, target):
        return reduce(F.cross_entropy(2 * logits, target, reduction="none")) * 3

    expected = 3 * reduce(F.cross_entropy(2 * logits, TARGETS, reduction="none") * WEIGHTS)
    found = loss(logits, target)
    torch.testing.assert_close(found, expected)
    [gradient], [other] = (torch.autograd.grad(each, logits) for each in (found, expected))
    torch.testing.assert_close(gradient, other)


def test_a_loss_of_elements_is_an_input_under_autocast(logits):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = logits @ torch.eye(C)
        found = losses_of(outputs).mean()
        expected = (F.cross_entropy(outputs, TARGETS, reduction="none") * WEIGHTS).mean()
    assert found == expected
