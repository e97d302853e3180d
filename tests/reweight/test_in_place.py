"""In place, values may change; what puts other elements there, or takes rows from it, raises."""

import pytest
import torch
from torch.nn import functional as F

from flowdata.reweight import UnweightedLossError, WeightedTarget, plain


def numbered(*shape):
    """A target whose weights are its own values."""
    values = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape)
    return WeightedTarget(values, values.double())


def set_where(target):
    target[target > 2] = -100


def set_as_a_collator_does(target):
    target[plain(target) == 2] = -100
    target[..., 0] = torch.tensor(7)


def add_in_places(target):
    target[:2] += 3


CHANGES = {
    "mask": set_where,
    "collator": set_as_a_collator_does,
    "in places": add_in_places,
    "clamp_": lambda t: t.clamp_(min=2),
    "masked_fill_": lambda t: t.masked_fill_(t == 3, -100),
    "masked_fill_ by an own mask": lambda t: t.masked_fill_(t.clamp(max=1).bool(), -100),
    "index_fill_": lambda t: t.index_fill_(0, torch.tensor([0]), -100),
    "arithmetic": lambda t: t.add_(1).mul_(2).sub_(t),
    "+=": lambda t: t.__iadd__(torch.arange(4)),
    "fill_": lambda t: t.fill_(-100),
    "zero_": lambda t: t.zero_(),
    "copy_ of a number": lambda t: t.copy_(torch.tensor(5)),
    "copy_ of itself": lambda t: t.copy_(t.clone() * 2),
    "through a view": lambda t: t[1:].fill_(-100),
    "detach_": lambda t: t.detach_(),
    "requires_grad_": lambda t: t.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_values_change_as_those_of_a_tensor_and_weights_stay(change):
    target, expected = numbered(4), plain(numbered(4)).clone()
    view = target[2:]
    result = change(target)
    change(expected)
    assert type(target) is type(view) is WeightedTarget
    assert result is None or type(result) is WeightedTarget
    assert torch.equal(plain(target), expected)
    assert torch.equal(plain(view), expected[2:])
    assert target.weights.tolist() == [1, 2, 3, 4]
    assert view.weights.tolist() == [3, 4]


def test_a_change_in_place_returns_the_object_that_is_there():
    target = before = numbered(4)
    target += 1
    assert target is before
    for change in (
        lambda t: t.mul_(2),
        lambda t: t.copy_(torch.tensor(1)),
        lambda t: t.unsqueeze_(1),
        lambda t: t.detach_(),
    ):
        assert change(target) is before


def test_a_shape_that_changes_in_place_is_that_of_the_weights_too():
    target = numbered(2, 3)
    view = target[0]
    target.transpose_(0, 1).unsqueeze_(0)
    assert target.shape == target.weights.shape == (1, 3, 2)
    assert torch.equal(plain(target).double(), target.weights)
    assert view.tolist() == view.weights.tolist() == [1, 2, 3]


def set_row(target, value):
    target[0] = value


REFUSED = {
    "other weights": lambda t: set_row(t, numbered(4)[3]),
    "elements that change places": lambda t: t.copy_(t.flip(0)),
    "several without weights": lambda t: t.copy_(torch.arange(4)),
    "an operand of other weights": lambda t: t.add_(WeightedTarget(torch.ones(4), torch.ones(4))),
    "scatter_": lambda t: t.scatter_(0, torch.tensor([0]), 9),
    "scatter_ by a name": lambda t: t.scatter_(dim=0, index=torch.tensor([0]), src=numbered(1)),
    "index_copy_": lambda t: t.index_copy_(0, torch.tensor([0]), torch.tensor([4])),
    "index_put_": lambda t: t.index_put_((torch.tensor([0]),), torch.tensor(4)),
    "masked_scatter_": lambda t: t.masked_scatter_(t == 1, torch.tensor([4])),
    "put_": lambda t: t.put_(torch.tensor([0]), torch.tensor([4])),
    "|=": lambda t: t.__ior__(8),
    "&=": lambda t: t.__iand__(8),
    "^=": lambda t: t.__ixor__(8),
    "<<=": lambda t: t.__ilshift__(8),
    ">>=": lambda t: t.__irshift__(8),
    "random_": lambda t: t.random_(),
    "resize_": lambda t: t.resize_(2),
    "resize_as_": lambda t: t.resize_as_(torch.zeros(2)),
    "as_strided_": lambda t: t.as_strided_((2,), (1,)),
    "data": lambda t: setattr(t, "data", torch.zeros(4)),
    "out": lambda t: torch.clamp(t, min=2, out=t),
    "out of no rule": lambda t: torch.cumsum(t, 0, out=t),
    "out of another": lambda t: torch.arange(4, out=t),
    "out of two": lambda t: torch.sort(torch.ones(4).long(), out=(t, torch.zeros(4).long())),
    "out into a plain one": lambda t: torch.clamp(t, min=2, out=torch.zeros(4).long()),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_what_would_part_elements_and_weights_raises_and_changes_nothing(change):
    target = numbered(4)
    with pytest.raises(UnweightedLossError, match=r"flowdata\.reweight\.plain\(target\)"):
        change(target)
    assert plain(target).tolist() == target.weights.tolist() == [1, 2, 3, 4]


def test_other_memory_that_torch_does_not_tell_of_shows_in_the_loss():
    target = numbered(4)
    target.set_(torch.tensor([1, 2]))
    with pytest.raises(UnweightedLossError, match=r"shape \(2,\) has weights of shape \(4,\)"):
        F.cross_entropy(torch.zeros(2, 5), target)


def set_ones(rows, target):
    rows[torch.arange(len(target)), target] = 1


def put_ones(rows, target):
    index = (torch.arange(len(target)), target)
    rows.index_put_(index, torch.ones((), dtype=rows.dtype))


def put_ones_by_names(rows, target):
    index = (torch.arange(len(target)), target)
    rows.index_put_(indices=index, values=torch.ones((), dtype=rows.dtype))


ROWS_IN_PLACE = {
    "scatter_": lambda rows, target: rows.scatter_(1, target[:, None], 1),
    "scatter_ by names": lambda rows, target: rows.scatter_(dim=1, index=target[:, None], value=1),
    "[arange, target] =": set_ones,
    "index_put_": put_ones,
    "index_put_ by names": put_ones_by_names,
}


@pytest.mark.parametrize("change", ROWS_IN_PLACE.values(), ids=ROWS_IN_PLACE)
def test_a_plain_tensor_never_becomes_one_hot_rows_without_weights(change):
    rows, target = torch.zeros(3, 5), numbered(3)
    with pytest.raises(
        UnweightedLossError, match=r"zeros\.scatter\(1, target\.unsqueeze\(1\), 1\.0\)"
    ):
        change(rows, target)
    assert type(rows) is torch.Tensor
    assert not rows.any()
    change(rows, plain(target))
    assert rows.sum() == 3


@pytest.mark.parametrize("kind", [torch.long, torch.uint8, torch.bool])
@pytest.mark.parametrize("change", ROWS_IN_PLACE.values(), ids=ROWS_IN_PLACE)
def test_one_hot_rows_that_can_have_no_gradient_are_set_and_plain(change, kind):
    rows, expected, target = torch.zeros(3, 5).to(kind), torch.zeros(3, 5).to(kind), numbered(3)
    change(rows, target)
    change(expected, plain(target))
    assert type(rows) is torch.Tensor
    assert torch.equal(rows, expected)
    assert rows.sum() == 3


@pytest.mark.parametrize("kind", [torch.long, torch.float32])
def test_a_target_is_copied_into_a_plain_tensor_only_where_gradients_are_off(kind):
    buffer, target = torch.zeros(3, dtype=kind), numbered(3)
    with pytest.raises(UnweightedLossError, match=r"copy_.*torch\.cat.*pad.*plain\(target\)"):
        buffer.copy_(target)
    assert not buffer.any()
    buffer[0].copy_(target[2])
    assert buffer.tolist() == [3, 0, 0]
    with torch.no_grad():
        buffer.copy_(target)
    assert buffer.tolist() == [1, 2, 3]
    assert type(buffer) is torch.Tensor


def counted(counts, target):
    counts[torch.tensor([0, 1, 1]), target] += 1
    for label in target:
        counts[label, label] += 1


def test_what_is_counted_or_copied_into_a_plain_tensor_is_plain():
    """Confusion matrices, padded batches and shifted inputs of a decoder."""
    counts, padded, target = torch.zeros(5, 5), torch.zeros(5).long(), numbered(3)
    counted(counts, target)
    assert counts.sum() == 6
    padded[1:4] = target
    padded.scatter_(0, target, 1)
    assert padded.tolist() == [0, 1, 1, 1, 0]
    assert type(counts) is type(padded) is torch.Tensor
