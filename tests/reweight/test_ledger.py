"""Losses that cannot be seen raise, or their batch is warned of; nothing else is."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data._utils.pin_memory import pin_memory

from flowdata import FlowDataWarning
from flowdata.reweight import (
    UnweightedLossError,
    WeightedTarget,
    plain,
    reweight,
    reweighting_loader,
)

ROWS = 12


def target_of(count=4, kind=torch.long):
    return WeightedTarget(torch.arange(1, 1 + count).to(kind), torch.linspace(0.5, 2, count))


def let_go(targets):
    targets.clear()
    gc.collect()


def losses_warned_of(recwarn):
    gc.collect()
    return [str(warning.message) for warning in recwarn if warning.category is FlowDataWarning]


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


def test_a_numpy_round_trip_is_warned_of(watched):
    targets = [target_of()]
    torch.from_numpy(targets[0].numpy())
    with pytest.warns(FlowDataWarning, match="weights of a batch did not come into any loss"):
        let_go(targets)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(context, predicted, target):
        context.save_for_backward(predicted)
        return (predicted - target).square().mean()

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0], None


class CrossEntropy(torch.autograd.Function):
    """A value by torch's loss, which is weighted, and a gradient by hand, which is not."""

    @staticmethod
    def forward(context, logits, target):
        context.save_for_backward(logits.softmax(1))
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0], None


@pytest.mark.parametrize(
    ("function", "shape", "kind"),
    [(Square, (4,), torch.float32), (CrossEntropy, (4, 5), torch.long)],
)
def test_a_custom_autograd_function_is_warned_of(watched, function, shape, kind):
    predicted = torch.zeros(*shape, requires_grad=True)
    targets = [target_of(kind=kind)]
    function.apply(predicted, targets[0]).backward()
    with pytest.warns(FlowDataWarning, match="custom autograd function"):
        let_go(targets)


def test_a_kernel_that_takes_the_memory_is_warned_of(watched):
    targets = [target_of()]
    assert targets[0].data_ptr() == plain(targets[0]).data_ptr()
    with pytest.warns(FlowDataWarning, match="fused"):
        let_go(targets)


def test_a_loss_without_gradient_does_not_count(watched):
    targets = [target_of()]
    logits = torch.zeros(4, 5, requires_grad=True)
    with torch.no_grad():
        F.cross_entropy(logits, targets[0])
    torch.from_numpy(targets[0].numpy())
    with pytest.warns(FlowDataWarning, match="did not come into any loss"):
        let_go(targets)


def test_a_step_without_any_weights_is_warned_of(watched):
    """A copy that no rule sees, as nn.DataParallel's scatter and torch.func make them."""
    model = nn.Linear(3, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    unseen = torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(torch.arange(4)))
    targets = [target_of()]
    F.cross_entropy(model(torch.zeros(4, 3)), unseen).backward()
    optimizer.step()
    with pytest.warns(FlowDataWarning, match="DataParallel"):
        let_go(targets)


def test_the_warning_names_the_rows_and_comes_once_for_each_reweight(watched):
    data = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % 5)

    def pass_over(loader):
        for _, targets in loader:
            targets.numpy()
            del targets

    for _ in range(2):
        loader = reweighting_loader(data, range(ROWS), batch_size=4)
        with pytest.warns(FlowDataWarning) as caught:
            pass_over(loader)
        [message] = [str(warning.message) for warning in caught]
        assert "the batch of 4 samples, rows 0, 1, 2, 3 did" in message


def test_the_rows_come_with_batches_of_workers(watched):
    data = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % 5)
    batches = iter(reweighting_loader(data, range(ROWS), batch_size=9, num_workers=2))
    targets = [next(batches)[1]]
    targets[0].numpy()
    with pytest.warns(FlowDataWarning, match=r"rows 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. did"):
        let_go(targets)


def test_a_target_that_loses_its_weights_to_a_view_is_warned_of(watched):
    target = target_of()
    view = target[:2]
    with pytest.warns(FlowDataWarning, match="did not come into any loss"):
        view[0] = target[3]


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda t: t[:2], lambda t: t.to("cpu")])
def test_what_is_cut_from_a_batch_is_on_its_account(watched, recwarn, way):
    target = target_of()
    target.numpy()
    part = way(target)
    F.cross_entropy(torch.zeros(len(part), 5, requires_grad=True), part)
    del target, part
    assert losses_warned_of(recwarn) == []


def test_batches_that_are_joined_settle_each_others_account(watched, recwarn):
    first, second = target_of(), pickle.loads(pickle.dumps(target_of()))
    second.numpy()
    F.cross_entropy(torch.zeros(8, 5, requires_grad=True), torch.cat([first, second]))
    assert first.ledger.weighted
    del first, second
    assert losses_warned_of(recwarn) == []


@pytest.mark.parametrize("use", ["loss", "no grad", "nothing", "pinned"])
def test_weights_that_came_into_a_loss_or_were_not_needed_are_not_warned_of(watched, use, recwarn):
    target = target_of()
    if use == "no grad":
        with torch.no_grad():
            assert (target == 1).sum() == 1
            assert target.tolist() == [1, 2, 3, 4]
    if use == "loss":
        F.cross_entropy(torch.zeros(4, 5, requires_grad=True), target)
        assert (target[:2] == 1).sum() == 1
    if use == "pinned" and torch.cuda.is_available():
        assert pin_memory([target])[0].weights.is_pinned()
    del target
    assert losses_warned_of(recwarn) == []


def test_a_training_that_stops_early_and_evaluates_is_not_warned_of(watched, recwarn):
    """Batches read ahead and never used; an optimizer that uses none; metrics."""
    data = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % 5)
    model, other = nn.Linear(3, 5), nn.Linear(3, 5)
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model, other)]
    loader = iter(reweighting_loader(data, range(ROWS), batch_size=3))
    ahead = next(loader)
    for _ in range(2):
        (inputs, targets), ahead = ahead, next(loader)
        other(inputs).sum().backward()
        optimizers[1].step()
        loss = F.cross_entropy(model(inputs), targets)
        assert 0 <= (model(inputs).argmax(1) == targets).float().mean() <= 1
        loss.backward()
        optimizers[0].step()
    with torch.no_grad():
        for inputs, targets in reweighting_loader(data, range(ROWS), batch_size=3):
            assert (model(inputs).argmax(1) == targets).sum() <= 3
    del ahead, targets, loader
    assert losses_warned_of(recwarn) == []


def test_a_wrapped_data_set_without_its_collate_fn_makes_no_batches():
    data, _ = reweight(TensorDataset(torch.randn(4, 3), torch.arange(4)), [1.0] * 4)
    with pytest.raises(TypeError, match=r"default_collate.*Weighed"):
        next(iter(DataLoader(data, batch_size=2)))
