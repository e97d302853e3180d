"""An operation by which a gradient would flow past the weights raises, and names itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flowdata.reweight import UnweightedLossError, WeightedTarget


def target_of(count=4, kind=torch.long):
    return WeightedTarget(torch.arange(1, 1 + count).to(kind), torch.linspace(0.5, 2, count))


def test_own_log_softmax_and_gather_raises():
    logits = torch.zeros(4, 5, requires_grad=True)
    target = target_of()
    with pytest.raises(UnweightedLossError, match="gather mixes a weighted target"):
        logits.log_softmax(1).gather(1, target[:, None])
    with pytest.raises(UnweightedLossError, match="__getitem__"):
        logits.log_softmax(1)[range(4), target]
    with pytest.raises(UnweightedLossError, match="register_loss"):
        (F.one_hot(target, 5) * logits.log_softmax(1)).sum()
    regression = WeightedTarget(torch.ones(4, 5), torch.ones(4))
    with pytest.raises(UnweightedLossError, match="explicit"):
        (logits - regression).square().mean()


def test_an_own_loss_into_which_a_target_is_written_is_refused():
    logits = torch.zeros(4, 5, requires_grad=True)
    with pytest.raises(UnweightedLossError, match="embedding"):
        nn.Embedding(9, 3)(target_of())
    with pytest.raises(UnweightedLossError, match="mul_"):
        (logits * 1).mul_(target_of()[:, None])
    with pytest.raises(UnweightedLossError, match="copy_"):
        target_of(kind=torch.float32).copy_(logits[:, 0])
    with pytest.raises(UnweightedLossError, match="__setitem__"):
        target_of(kind=torch.float32)[0] = logits[0, 0]
    with pytest.raises(UnweightedLossError, match="gather"):
        nn.AdaptiveLogSoftmaxWithLoss(8, 12, [2])(torch.randn(4, 8), target_of() + 5)
    with pytest.raises(UnweightedLossError, match="requires_grad_"):
        target_of(kind=torch.float32).requires_grad_()


def test_a_loss_is_refused_with_guards_off_too(monkeypatch):
    monkeypatch.setenv("FLOWDATA_GUARDS", "off")
    with pytest.raises(UnweightedLossError, match="gather mixes a weighted target"):
        torch.zeros(4, 5, requires_grad=True).gather(1, target_of()[:, None])
