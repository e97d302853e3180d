"""A training whose loss flowdata cannot see gets a warning at its third step; no other does."""

import copy
import ctypes
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from weighted_loading import weighted_loader

from flowdata import FlowDataWarning
from flowdata.reweight import UnweightedLossError, WeightedTarget

ROWS, CLASSES, BATCH = 12, 5, 4

# The copies, and the losses that it warns about, are what is tested.
pytestmark = [
    pytest.mark.guard,
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("always::flowdata.FlowDataWarning"),
]


class Training:
    """A model, its optimizer and a loader of weighted batches, three an epoch."""

    def __init__(self, **options):
        data = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % CLASSES)
        options = {"batch_size": BATCH} | options
        self.loader = weighted_loader(data, np.linspace(0.1, 2, ROWS), **options)
        self.model = nn.Linear(3, CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def epochs(self, loss, count=1):
        for _ in range(count):
            for inputs, targets in self.loader:
                self.step(loss(self.model(inputs), targets))

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def own(outputs, targets: torch.Tensor):
    return -outputs.log_softmax(1).gather(1, targets[:, None]).mean()


scripted = torch.jit.script(own)
"""A function that takes the memory of the targets, as a fused kernel does."""


def one_hot(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(targets.long(), CLASSES).float())


def memory(targets):
    """What is at the address, as a kernel reads it."""
    numbers = ctypes.c_int64 * len(targets)
    return torch.frombuffer(numbers.from_address(targets.data_ptr()), dtype=torch.int64).clone()


def set_in_another(targets):
    made = torch.empty_like(targets)
    made[:] = targets
    return made


COPIES = {
    "tensor": torch.tensor,
    "as_tensor of another kind": lambda y: torch.as_tensor(y, dtype=torch.float32),
    "Variable": torch.autograd.Variable,
    "new_tensor": lambda y: y.new_tensor(y),
    "LongTensor of a list": lambda y: torch.LongTensor(y.tolist()),
    "NumPy": lambda y: torch.from_numpy(y.numpy()),
    "into another": set_in_another,
    "dlpack, as nn.DataParallel": lambda y: torch.from_dlpack(torch.utils.dlpack.to_dlpack(y)),
    "memory": memory,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_loop_over_copies_of_its_targets_gets_a_warning(copied):
    with pytest.warns(FlowDataWarning, match="an optimizer took 3 steps without them"):
        Training().epochs(lambda outputs, targets: one_hot(outputs, copied(targets)))


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
    "loss",
    [lambda outputs, y: Square.apply(outputs[:, 0], y.float()), CrossEntropy.apply],
    ids=["of its own", "by hand"],
)
def test_a_custom_autograd_function_gets_a_warning(loss):
    with pytest.warns(FlowDataWarning, match="custom autograd function"):
        Training().epochs(loss)


@pytest.mark.parametrize("batches", [1, 2])
def test_steps_after_a_function_that_takes_the_batch_get_a_warning(batches):
    training = Training(batch_size=2)
    found = iter(training.loader)

    def loop():
        for _ in range(3):
            for _ in range(batches):
                inputs, targets = next(found)
                scripted(training.model(inputs), targets).backward()
            training.optimizer.step()
            training.optimizer.zero_grad()

    with pytest.warns(FlowDataWarning, match="took 3 steps without them"):
        loop()


@pytest.mark.parametrize("gradients", [True, False])
def test_a_weighted_loss_that_is_only_logged_does_not_count(gradients):
    def loss(outputs, targets):
        with torch.set_grad_enabled(gradients):
            assert F.cross_entropy(outputs, targets).item() > 0
        return scripted(outputs, targets)

    with pytest.warns(FlowDataWarning, match="took 3 steps without them"):
        Training().epochs(loss)


def test_joined_targets_that_are_trained_on_unseen_get_a_warning():
    training = Training(batch_size=2)
    found = iter(training.loader)

    def loop():
        for (x, y), (other_x, other_y) in zip(found, found, strict=True):
            together = torch.cat([y, other_y])
            training.step(scripted(training.model(torch.cat([x, other_x])), together))

    with pytest.warns(FlowDataWarning, match="took 3 steps without them"):
        loop()


def test_the_warning_names_the_rows_and_comes_once_for_each_reweight():
    for _ in range(2):
        training = Training()
        with pytest.warns(FlowDataWarning) as caught:
            training.epochs(scripted, 4)
        [message] = [str(warning.message) for warning in caught]
        assert "the batch of 4 samples, rows 8, 9, 10, 11 did" in message


def test_the_rows_come_with_batches_of_workers():
    # Of two workers the second may be first, and both batches are read before the first step.
    training = Training(batch_size=9, num_workers=1)
    with pytest.warns(FlowDataWarning, match=r"the batch of 9 samples, rows 0, 1, .*7, \.\.\. did"):
        training.epochs(scripted, 2)


def test_weights_of_early_epochs_do_not_hide_later_ones_without(recwarn):
    training = Training()
    training.epochs(F.cross_entropy)
    assert warnings_in(recwarn) == []
    training.epochs(scripted)
    [message] = warnings_in(recwarn)
    assert "took 3 steps without them" in message


def warnings_in(recwarn):
    found = [str(each.message) for each in recwarn if each.category is FlowDataWarning]
    recwarn.clear()
    return found


def test_a_weighted_training_beside_does_not_hide_one_without(recwarn):
    training, other = Training(), Training()
    for (inputs, targets), (other_inputs, others) in zip(
        training.loader, other.loader, strict=True
    ):
        training.step(F.cross_entropy(training.model(inputs), targets))
        other.step(scripted(other.model(other_inputs), others))
    assert len(warnings_in(recwarn)) == 1


LOOKS = {
    "size": lambda y: (len(y), y.size(), y.size(0), y.shape, y.numel(), y.stride()),
    "kind": lambda y: (y.dtype, y.is_floating_point(), y.is_contiguous(), y.is_pinned()),
    "like": lambda y: (torch.zeros_like(y), y.new_ones(2), torch.zeros(len(y), 1).view_as(y)),
    "text": repr,
    "elements": lambda y: (y.tolist(), y.unique(), y.numpy(), y == 1, y.data_ptr()),
    "loss": lambda y: F.cross_entropy(torch.zeros(len(y), 5, requires_grad=True), y),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_targets_may_be_looked_at_with_gradients_on(look, recwarn):
    training = Training()
    for _ in range(2):
        for _, targets in training.loader:
            look(targets)
        training.epochs(F.cross_entropy)
    assert warnings_in(recwarn) == []


WAYS = [copy.copy, copy.deepcopy, lambda y: y[:2], lambda y: y.to("cpu"), lambda y: y.clone()]
WAYS += [lambda y: pickle.loads(pickle.dumps(y)), lambda y: torch.cat([y, y])[: len(y)]]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_cut_from_a_batch_carries_its_weights(way, recwarn):
    def loss(outputs, targets):
        part = way(targets)
        return F.cross_entropy(outputs[: len(part)], part)

    Training().epochs(loss)
    assert warnings_in(recwarn) == []


def test_batches_of_two_data_sets_that_are_joined_are_of_both(recwarn):
    training, other = Training(), Training()
    for (x, y), (other_x, other_y) in zip(training.loader, other.loader, strict=True):
        together = torch.cat([y, other_y])
        training.step(F.cross_entropy(training.model(torch.cat([x, other_x])), together))
    assert warnings_in(recwarn) == []


def test_targets_joined_after_their_loss_get_no_warning(recwarn):
    training, targets, joined = Training(), [], None

    def loss(outputs, target):
        nonlocal joined
        joined = target if joined is None else torch.cat([joined, target])
        targets.append(target)
        return F.cross_entropy(outputs, target)

    training.epochs(loss)
    assert (torch.cat(targets) == joined).all()
    assert torch.cat(targets).tolist() == [row % CLASSES for row in range(ROWS)]
    assert len(joined.origin.reweight_ids) == 1
    assert warnings_in(recwarn) == []


def test_what_trains_beside_gets_no_warning(recwarn):
    """Other models, evaluations, validation losses with gradients on, and batches left over."""
    training, other = Training(), Training()
    plain = torch.randn(BATCH, 3)
    leftover = next(iter(other.loader))
    for _ in range(5):
        for _ in range(12):
            other.step(other.model(plain).square().mean())
        training.epochs(F.cross_entropy)
        for inputs, targets in other.loader:
            with torch.no_grad():
                assert F.cross_entropy(other.model(inputs), targets) > 0
        for inputs, targets in training.loader:
            outputs = training.model(inputs)
            assert F.cross_entropy(outputs, targets) > 0
            assert 0 <= (outputs.argmax(1) == targets).float().mean() <= 1
    del leftover
    assert warnings_in(recwarn) == []


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_training_with_batches_read_ahead_gets_no_warning(ahead, recwarn):
    """Another optimizer steps in between, as of a GAN; some batches are never used."""
    training, other = Training(batch_size=1), Training()
    loader = iter(training.loader)
    read = [next(loader) for _ in range(ahead)]
    for batch in loader:
        read.append(batch)
        inputs, targets = read.pop(0)
        other.step(other.model(inputs).sum())
        loss = F.cross_entropy(training.model(inputs), targets)
        assert 0 <= (training.model(inputs).argmax(1) == targets).float().mean() <= 1
        training.step(loss)
    for _ in range(9):
        other.step(other.model(torch.randn(BATCH, 3)).sum())
    assert warnings_in(recwarn) == []


def test_evaluation_between_trainings_without_weights_gets_no_warning(recwarn):
    training = Training()
    for _ in range(4):
        with torch.no_grad():
            for inputs, targets in training.loader:
                assert F.cross_entropy(training.model(inputs), targets) > 0
        training.step(training.model(inputs).square().mean())
    assert warnings_in(recwarn) == []


def test_after_an_error_there_is_no_warning_too(recwarn):
    with pytest.raises(UnweightedLossError, match=r"predicted\.detach\(\)"):
        Training().epochs(own)
    assert warnings_in(recwarn) == []


def test_with_guards_off_nothing_warns(monkeypatch, recwarn):
    monkeypatch.setenv("FLOWDATA_GUARDS", "off")
    Training().epochs(scripted)
    assert warnings_in(recwarn) == []


def test_targets_made_by_hand_get_a_warning_too():
    training = Training()

    def loop():
        for row in range(3):
            target = WeightedTarget(torch.tensor([row]), torch.ones(1))
            training.step(scripted(training.model(torch.randn(1, 3)), target))

    with pytest.warns(FlowDataWarning, match="weights of a batch did not come into any loss"):
        loop()


@pytest.mark.slow
def test_a_script_gets_one_warning_and_ends_quietly():
    script = """
        import numpy, torch
        from torch.nn import functional as F
        from torch.utils.data import DataLoader, TensorDataset
        from flowdata.reweight import WeightedTarget, reweight
        data = TensorDataset(torch.randn(12, 3), torch.arange(12) % 5)
        data, collate = reweight(data, numpy.ones(12))
        model = torch.nn.Linear(3, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for inputs, targets in DataLoader(data, batch_size=4, collate_fn=collate):
            F.cross_entropy(model(inputs), torch.from_numpy(targets.numpy())).backward()
            optimizer.step()
        part, unused = targets[:2], WeightedTarget(torch.arange(3), torch.ones(3))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr.count("did not come into any loss") == 1
    assert "rows 8, 9, 10, 11" in ended.stderr
    assert "ignored" not in ended.stderr
