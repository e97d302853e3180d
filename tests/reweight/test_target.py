"""Target and weights stay in step, or part together."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch_release import needs

from flowdata.reweight import UnweightedLossError, WeightedTarget, plain
from flowdata.reweight.weighted_losses import WeightedLosses


def numbered(*shape):
    """A target whose weights are its own values, so that any slip shows."""
    values = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape)
    return WeightedTarget(values, values.double())


def in_step(target):
    """Whether weights are those of the elements; padding has 0 for both."""
    assert type(target) is WeightedTarget
    assert target.weights.shape == target.shape
    assert type(target.weights) is torch.Tensor
    return torch.equal(plain(target).double(), target.weights)


def written_back(target):
    """Elements read, changed and set in their places, as `labels[mask] += 1` does it."""
    part = target[:1].clone()
    part += 0
    target[:1] = part
    return target


OPERATIONS = {
    "view": lambda t: t.contiguous().view(-1),
    "reshape": lambda t: t.reshape(-1, 2) if t.numel() % 2 == 0 else t.reshape(-1),
    "transpose": lambda t: t.transpose(0, -1),
    "permute": lambda t: t.permute(*reversed(range(t.ndim))),
    "contiguous": lambda t: t.contiguous(),
    "flatten": torch.flatten,
    "unsqueeze": lambda t: t.unsqueeze(0),
    "squeeze": torch.squeeze,
    "first": lambda t: t[:1],
    "last": lambda t: t[..., -1:],
    "every second": lambda t: t[::2],
    "none": lambda t: t[None],
    "fancy": lambda t: t[torch.tensor([0, -1, 0])],
    "mask": lambda t: t[plain(t) % 3 != 0] if (plain(t) % 3 != 0).any() else t,
    "pad": lambda t: F.pad(t, (1, 2), value=0),
    "cat": lambda t: torch.cat([t, t]),
    "stack": lambda t: torch.stack([t, t], dim=-1),
    "chunk": lambda t: torch.cat(t.chunk(2)[::-1]),
    "split": lambda t: t.split(1)[0],
    "unbind": lambda t: torch.stack(t.unbind(0)),
    "iterate": lambda t: torch.stack(list(t)),
    "flip": lambda t: t.flip(0),
    "roll": lambda t: torch.roll(t, 1, 0),
    "expand": lambda t: t.expand(2, *t.shape),
    "repeat": lambda t: t.repeat(2, *[1] * (t.ndim - 1)),
    "repeat_interleave": lambda t: torch.repeat_interleave(t, 2, dim=0),
    "index_select": lambda t: t.index_select(0, torch.tensor([0])),
    "clone": lambda t: t.clone(),
    "detach": lambda t: t.detach(),
    "long": lambda t: t.long(),
    "to": lambda t: t.to("cpu", torch.int32),
    "cpu": lambda t: t.cpu(),
    "data": lambda t: t.data,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "pad_sequence": lambda t: torch.nn.utils.rnn.pad_sequence(list(t[None]), batch_first=True),
    "squeeze_": lambda t: t.clone().squeeze_(),
    "unsqueeze_": lambda t: t.clone().unsqueeze_(0),
    "transpose_": lambda t: t.clone().transpose_(0, -1),
    "copy_": lambda t: (t.clone() * 0).copy_(t),
    "set": lambda t: written_back(t.clone()),
    "uint64": lambda t: t.long().view(torch.uint64).view(torch.int64),
    "swap": lambda t: torch.swapaxes(t, 0, -1),
    "atleast": torch.atleast_2d,
}


def set_in_a_plain_tensor(target):
    """As a model makes the inputs of its decoder."""
    made = target.new_zeros(target.shape)
    made[..., 1:] = target[..., :-1].clone()
    return made


DROPPING = {
    "sort": lambda t: t.sort().values,
    "unique": torch.unique,
    "cumsum": lambda t: t.cumsum(0),
    "equal": lambda t: t == t,
    "maximum": lambda t: torch.maximum(t, torch.tensor(2)),
    "sum": torch.sum,
    "new": lambda t: t.new_zeros(3),
    "like": torch.ones_like,
    "nonzero": torch.nonzero,
    "where": lambda t: torch.where(t)[0],
    "into a plain tensor": set_in_a_plain_tensor,
    "bytes": lambda t: t.reshape(-1).clone().view(torch.int8),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
    "read of a row": lambda t: torch.arange(40_000)[t],
    "plain": lambda t: t.as_subclass(torch.Tensor),
}


@examples(300)
@given(
    st.sampled_from([(6,), (4, 3), (2, 3, 2), (1, 5)]),
    st.lists(st.sampled_from(sorted(OPERATIONS)), max_size=6),
    st.sampled_from(["", *sorted(DROPPING)]),
)
def test_chains_of_operations_keep_target_and_weights_in_step(shape, chain, drop):
    """What drops the weights leaves those of the target that it was given."""
    target = numbered(*shape)
    for name in chain:
        if target.ndim == 0 or target.numel() > 20_000:
            break
        target = OPERATIONS[name](target)
        assert in_step(target), name
    if drop and target.ndim:
        dropped = DROPPING[drop](target)
        assert type(dropped) is torch.Tensor
        assert not hasattr(dropped, "weights")
        assert in_step(target)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_do_to_the_target_what_they_do_to_a_tensor(name):
    target = numbered(4, 3)
    expected = OPERATIONS[name](plain(target))
    assert torch.equal(plain(OPERATIONS[name](target)), expected)


@pytest.mark.parametrize("name", DROPPING)
def test_operations_of_no_rule_give_a_plain_tensor_without_weights(name):
    dropped = DROPPING[name](numbered(4, 3))
    assert type(dropped) is torch.Tensor
    assert not hasattr(dropped, "weights")
    assert torch.equal(dropped, DROPPING[name](plain(numbered(4, 3))))


def test_arithmetic_with_constants_keeps_the_weights():
    target = numbered(4).double()
    for changed in (target * 2, 1 - target, target / 3, target.clamp(max=2), -target, target**2):
        assert type(changed) is WeightedTarget
        assert torch.equal(changed.weights, target.weights)
    masked = torch.where(plain(target) > 2, target, torch.tensor(-100.0))
    assert torch.equal(masked.weights, target.weights)
    hot = F.one_hot(numbered(4), 6)
    assert hot.shape == hot.weights.shape == (4, 6)
    assert torch.equal(hot.weights[:, 0], target.weights)


def test_what_has_no_weights_counts_fully_when_it_is_joined():
    joined = torch.cat([torch.full((2,), -100), numbered(2)])
    assert joined.weights.tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize("name", ["tensors", ""])
@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_targets_are_joined_into_memory_that_is_there(join, name):
    """As `default_collate` does it in a worker, where that memory is shared."""
    parts = [numbered(3), numbered(3) + 1]
    expected = join(plain(parts))
    out = torch.zeros_like(expected)
    joined = join(tensors=parts, dim=0, out=out) if name else join(parts, out=out)
    assert torch.equal(out, expected)
    assert type(out) is torch.Tensor
    assert joined.data_ptr() == out.data_ptr()
    assert torch.equal(joined.weights, join([part.weights for part in parts]))


@pytest.mark.parametrize("workers", [0, 2])
def test_items_that_are_weighted_targets_are_collated_by_default(workers):
    items = [numbered(3) for _ in range(4)]
    for batch in DataLoader(items, batch_size=2, num_workers=workers):
        assert in_step(batch)
        assert batch.shape == (2, 3)


def test_comparisons_and_metrics_see_a_plain_target():
    from sklearn.metrics import accuracy_score, confusion_matrix

    labels = torch.tensor([0, 1, 2, 1])
    target = WeightedTarget(labels, torch.tensor([1.0, 0.5, 0.1, 2.0]))
    predicted = torch.tensor([0, 1, 1, 1])
    for found in (predicted == target, target.ne(1), target > 0, target.sum(), target.max()):
        assert type(found) is torch.Tensor
    assert (predicted == target).float().mean() == 0.75
    assert target.tolist() == [0, 1, 2, 1]
    assert accuracy_score(target, predicted) == 0.75
    expected = confusion_matrix(labels, predicted)
    assert (confusion_matrix(target.numpy(), predicted) == expected).all()
    assert np.asarray(target).tolist() == labels.tolist()
    assert torch.bincount(target).tolist() == [1, 2, 1]
    assert [target.shape, target.dtype, target.ndim, len(target)] == [(4,), torch.int64, 1, 4]
    assert "weights" in repr(target)


def test_weights_must_fit_the_leading_dimensions():
    assert WeightedTarget(torch.zeros(2, 3), torch.ones(2)).weights.shape == (2, 3)
    for shape in ((3,), (2, 1), (2, 3, 1)):
        with pytest.raises(ValueError, match="leading dimensions"):
            WeightedTarget(torch.zeros(2, 3), torch.ones(shape))


def test_targets_of_different_weights_are_not_mixed():
    with pytest.raises(UnweightedLossError, match="different weights"):
        numbered(3) + WeightedTarget(torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("weights_only", [True, False])
def test_it_is_saved_and_loaded_by_torch_with_its_weights(weights_only):
    first = WeightedTarget(torch.tensor([1, 2, 3]), torch.arange(1.0, 4), "a batch", "one")
    file = io.BytesIO()
    torch.save({"labels": torch.cat([first, numbered(3) + 0])}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)["labels"]
    assert in_step(loaded[:3])
    assert loaded.tolist() == [1, 2, 3, 1, 2, 3]
    assert loaded.origin == torch.cat([first, numbered(3)]).origin


def test_it_is_a_key_of_dicts_as_tensors_are():
    target = numbered(3)
    assert {target: "found"}[target] == "found"
    assert hash(target) != hash(numbered(3))


def test_one_hot_rows_have_the_weights_of_their_targets():
    target = WeightedTarget(torch.tensor([2, 0, 1]), torch.tensor([0.5, 1.0, 3.0]))
    made = [
        torch.zeros(3, 4).scatter(1, target[:, None], 1.0),
        torch.zeros(3, 4).scatter(dim=1, index=target[:, None].expand(3, 4), value=1.0),
        torch.scatter(torch.zeros(3, 4), 1, target[:, None], 1.0),
        F.one_hot(target, 4).float(),
        torch.eye(4)[target],
        torch.eye(4)[target,],
        torch.eye(4).index_select(0, target),
        torch.index_select(torch.eye(4), dim=0, index=target),
    ]
    for rows in made:
        assert type(rows) is WeightedTarget
        assert torch.equal(plain(rows), torch.eye(4)[plain(target)])
        assert torch.equal(rows.weights, target.weights[:, None].expand(3, 4))
        with pytest.raises(UnweightedLossError):
            (rows * torch.zeros(3, 4, requires_grad=True)).sum()
    image = numbered(2, 3)
    assert torch.equal(torch.eye(7)[image].weights[..., 2], image.weights)


def test_what_is_read_or_counted_by_a_target_is_plain():
    target = numbered(3)
    for found in (
        torch.arange(5.0)[target],
        torch.eye(5)[target, target],
        torch.arange(5.0).index_select(0, target),
        torch.zeros(5).scatter_(0, target, 1.0),
        torch.zeros(2, 5).scatter(1, numbered(2, 3) % 5, 1.0),
        torch.eye(3)[WeightedTarget(torch.tensor([True, False, True]), torch.ones(3))],
        torch.eye(5).index_select(1, target),
    ):
        assert type(found) is torch.Tensor


def test_soft_targets_keep_the_weights_of_their_samples():
    logits = WeightedTarget(torch.rand(3, 4), torch.tensor([0.5, 1.0, 3.0]))
    for soft in (logits.softmax(1), F.log_softmax(logits, dim=1), logits.sigmoid()):
        assert torch.equal(soft.weights, logits.weights)
    assert type(logits.softmax(0)) is torch.Tensor


def test_predictions_may_take_shape_and_kind_from_the_target():
    target = numbered(4).double()
    predicted = torch.zeros(4, 1, requires_grad=True)
    for found in (
        predicted.view_as(target),
        predicted.reshape_as(target),
        predicted.squeeze(1).expand_as(target),
        predicted.type_as(target),
        predicted.to(target),
    ):
        assert type(found) is torch.Tensor
        assert found.requires_grad


class Recording(TorchDispatchMode):
    """Keeps the memory that was in use on a stream."""

    def __init__(self):
        super().__init__()
        self.used = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not torch.ops.aten.record_stream.default:
            return func(*args, **kwargs or {})
        self.used.append(args[0].data_ptr())
        return None


def has_subclasses_under_modes():
    with Recording():
        try:
            torch.zeros(1).as_subclass(WeightedLosses)
        except RuntimeError:
            return False
    return True


@needs(has_subclasses_under_modes(), "tensor subclasses made under a dispatch mode")
def test_memory_in_use_on_a_stream_is_that_of_target_and_weights():
    target = numbered(3)
    with Recording() as recording:
        target.record_stream(torch.Stream(device="cpu"))
    assert recording.used == [target.data_ptr(), target.weights.data_ptr()]
