"""Trainings whose loss flowdata cannot see are warned of; others are not, whatever they look at."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from flowdata import FlowDataWarning
from flowdata.reweight import UnweightedLossError, reweighting_loader

ROWS, CLASSES, BATCH = 12, 5, 4

# The copies, and the losses that are warned of, are what is tested.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor"),
    pytest.mark.filterwarnings("always::flowdata.FlowDataWarning"),
]


class Training:
    """A model, its optimizer and a loader of weighted batches."""

    def __init__(self, batch_size=BATCH):
        data = TensorDataset(torch.randn(ROWS, 3), torch.arange(ROWS) % CLASSES)
        self.loader = reweighting_loader(data, np.linspace(0.1, 2, ROWS), batch_size=batch_size)
        self.model = nn.Linear(3, CLASSES)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)

    def epoch(self, loss):
        for inputs, targets in self.loader:
            self.step(loss(self.model(inputs), targets))

    def step(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def own(outputs, targets: torch.Tensor):
    return -outputs.log_softmax(1).gather(1, targets[:, None]).mean()


scripted = torch.jit.script(own)


def one_hot(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(targets.long(), CLASSES).float())


COPIES = {
    "tensor": torch.tensor,
    "as_tensor of another kind": lambda y: torch.as_tensor(y, dtype=torch.float32),
    "Variable": torch.autograd.Variable,
    "new_tensor": lambda y: y.new_tensor(y),
    "LongTensor of a list": lambda y: torch.LongTensor(y.tolist()),
    "NumPy": lambda y: torch.from_numpy(y.numpy()),
    "into another": lambda y: torch.empty_like(y).copy_(y),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_loop_over_copies_of_its_targets_is_warned_of(watched, copied):
    training = Training()

    def loop():
        for inputs, targets in training.loader:
            targets = copied(targets)
            training.step(one_hot(training.model(inputs), targets))

    with pytest.warns(FlowDataWarning, match="an optimizer took steps without them"):
        loop()


@pytest.mark.parametrize("batches", [1, 2])
def test_steps_after_a_function_that_takes_the_batch_are_warned_of(watched, batches):
    training = Training(batch_size=2)
    found = iter(training.loader)

    def gradients():
        inputs, targets = next(found)
        scripted(training.model(inputs), targets).backward()

    def loop():
        for _ in range(3):
            for _ in range(batches):
                gradients()
            training.optimizer.step()
            training.optimizer.zero_grad()

    with pytest.warns(FlowDataWarning, match="took steps without them"):
        loop()


def test_a_weighted_loss_that_is_only_logged_does_not_count(watched):
    training = Training()

    def loss(outputs, targets):
        assert F.cross_entropy(outputs, targets).item() > 0
        return scripted(outputs, targets)

    with pytest.warns(FlowDataWarning, match="took steps without them"):
        training.epoch(loss)


def test_weights_of_early_epochs_do_not_hide_later_ones_without(watched, recwarn):
    training = Training()
    training.epoch(F.cross_entropy)
    for _ in range(10):
        training.epoch(scripted)
    assert of_flowdata(recwarn) == []
    for _ in range(10):
        training.epoch(scripted)
    [message] = of_flowdata(recwarn)
    assert "took steps without them" in message


def of_flowdata(recwarn):
    found = [str(each.message) for each in recwarn if each.category is FlowDataWarning]
    recwarn.clear()
    return found


def test_a_look_does_not_mute_the_warning_of_a_training(watched, recwarn):
    training = Training()
    for _, targets in training.loader:
        assert len(targets.unique()) == len(targets.tolist())
    del targets
    [message] = of_flowdata(recwarn)
    assert "looked at where gradients are on" in message
    for _ in range(2):
        training.epoch(scripted)
    [message] = of_flowdata(recwarn)
    assert "took steps without them" in message


ABOUT = {
    "len": len,
    "size": lambda y: (y.size(), y.size(0), y.shape, y.ndim, y.dim()),
    "numel": lambda y: (y.numel(), y.nelement(), y.element_size(), y.stride()),
    "kind": lambda y: (y.dtype, y.is_floating_point(), y.is_contiguous(), y.is_pinned()),
    "like": lambda y: (torch.zeros_like(y), y.new_ones(2)),
    "shape for another": lambda y: torch.zeros(len(y), 1).view_as(y),
    "text": repr,
}


@pytest.mark.parametrize("use", ABOUT.values(), ids=ABOUT)
def test_what_a_target_is_may_be_asked_with_gradients_on(watched, use, recwarn):
    for _, targets in Training().loader:
        use(targets)
    del targets
    assert of_flowdata(recwarn) == []


def test_targets_joined_after_their_loss_are_not_warned_of(watched, recwarn):
    training, targets, joined = Training(), [], None

    def loss(outputs, target):
        nonlocal joined
        joined = target if joined is None else torch.cat([joined, target])
        targets.append(target)
        return F.cross_entropy(outputs, target)

    training.epoch(loss)
    assert (torch.cat(targets) == joined).all()
    assert torch.cat(targets).tolist() == [row % CLASSES for row in range(ROWS)]
    targets.clear()
    joined = None
    assert of_flowdata(recwarn) == []


def test_joined_targets_that_are_trained_on_unseen_are_warned_of(watched):
    training = Training(batch_size=2)
    found = iter(training.loader)

    def step():
        (x, y), (other_x, other_y) = next(found), next(found)
        together = torch.cat([y, other_y])
        del y, other_y
        training.step(scripted(training.model(torch.cat([x, other_x])), together))

    with pytest.warns(FlowDataWarning, match="took steps without them"):
        step()


def test_what_trains_beside_is_not_warned_of(watched, recwarn):
    """Other models, evaluations, validation losses with gradients on, and batches left over."""
    training, other = Training(), Training()
    plain = torch.randn(BATCH, 3)
    leftover = next(iter(other.loader))
    del leftover
    for _ in range(3):
        for _ in range(12):
            other.step(other.model(plain).square().mean())
        training.epoch(F.cross_entropy)
        for inputs, targets in other.loader:
            with torch.no_grad():
                assert F.cross_entropy(other.model(inputs), targets) > 0
        for inputs, targets in training.loader:
            outputs = training.model(inputs)
            assert F.cross_entropy(outputs, targets) > 0
            assert 0 <= (outputs.argmax(1) == targets).float().mean() <= 1
        del targets
    assert of_flowdata(recwarn) == []


def test_evaluation_between_trainings_without_weights_is_not_warned_of(watched, recwarn):
    training = Training()
    for _ in range(4):
        with torch.no_grad():
            for inputs, targets in training.loader:
                assert F.cross_entropy(training.model(inputs), targets) > 0
        training.step(training.model(inputs).square().mean())
    assert of_flowdata(recwarn) == []


def test_after_an_error_there_is_no_warning_too(watched, recwarn):
    with pytest.raises(UnweightedLossError, match=r"predicted\.detach\(\)"):
        Training().epoch(own)
    assert of_flowdata(recwarn) == []


def test_the_last_batch_of_a_script_is_warned_of_and_ends_quietly():
    script = """
        import numpy, torch
        from torch.nn import functional as F
        from flowdata.reweight import WeightedTarget, reweighting_loader
        data = torch.utils.data.TensorDataset(torch.randn(4, 3), torch.arange(4))
        model = torch.nn.Linear(3, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for inputs, targets in reweighting_loader(data, numpy.ones(4), batch_size=4):
            F.cross_entropy(model(inputs), torch.from_numpy(targets.numpy())).backward()
            optimizer.step()
        part, unused = targets[:2], WeightedTarget(torch.arange(3), torch.ones(3))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stderr.count("did not come into any loss") == 1
    assert "rows 0, 1, 2, 3" in ended.stderr
    assert "ignored" not in ended.stderr
