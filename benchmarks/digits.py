"""Digits and clothes: a network that reads MNIST digits, and three tasks for it."""

import functools
from typing import Any

import numpy as np
import torch
from assets import fashion_mnist, mnist_digits, mnist_network
from tasks import Sizes, Task, damaged, samples_of, task_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

TURNED, CLOTHES, WRONG_CLOTHES = (
    "turned digits, harmful samples",
    "clothes",
    "clothes, wrong labels",
)
TASKS = (TURNED, CLOTHES, WRONG_CLOTHES)
SIZES = Sizes(1000, 500, 2000)
WRONG, OFF_DOMAIN, ANGLE = 0.4, 0.1, 40.0

ABOUT = f"""\
A convolutional network (0.42 M parameters) that was trained on MNIST is fine-tuned on
{SIZES.data:,} samples. "Old" is its accuracy on {SIZES.new:,} digits, "new" on as many samples
of the new task, rightly labelled.

- {TURNED}: digits turned by {ANGLE:.0f} degrees, {WRONG:.0%} with wrong
  labels, and {OFF_DOMAIN:.0%} pictures of clothes with arbitrary labels; the head stays.
- {CLOTHES}: Fashion-MNIST with right labels and a new head.
- {WRONG_CLOTHES}: the same, {WRONG:.0%} of the labels wrong.
"""


class Network(nn.Module):
    """The network of ccexam; ``classifier[2]`` is the head."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (n, 10), of images of shape (n, 1, 28, 28)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def fetch() -> None:
    """Have everything at hand, before processes ask for it side by side."""
    for needed in (mnist_digits, fashion_mnist, mnist_network):
        needed()


def make_task(name: str, seed: int, device: str = "cpu", sizes: Sizes = SIZES) -> Task:
    """Data, starting point and weights, as a function of the seed."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    digits, clothes = pictures()
    order = torch.from_numpy(random.permutation(len(digits[0])))
    old = TensorDataset(*(part[order[-sizes.new :]] for part in digits))
    if name == TURNED:
        images, labels = turned(digits[0][order]), digits[1][order]
    else:
        shuffled = torch.from_numpy(random.permutation(len(clothes[0])))
        images, labels = (part[shuffled] for part in clothes)
    seen = sizes.data + sizes.held_out
    images, labels = images[: sum(sizes)].clone(), labels[: sum(sizes)].clone()
    share = 0.0 if name == CLOTHES else WRONG
    labels[:seen], harmful = damaged(labels[:seen], share, random)
    if name == TURNED:
        foreign = torch.from_numpy(random.random(seen) < OFF_DOMAIN).nonzero()[:, 0]
        images[foreign] = clothes[0][: len(foreign)]
        labels[foreign] = torch.from_numpy(random.integers(0, 10, len(foreign)))
        harmful[foreign] = True
    samples = samples_of(images, labels, harmful, sizes)
    model = Network()
    model.load_state_dict(mnist_network())
    classes = None if name == TURNED else 10
    return task_of(model.to(device), "classifier.2", samples, old, classes=classes, seed=seed)


@functools.cache
def pictures() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Digits and clothes with their labels, as the network was trained on them."""
    digits, clothes = (as_tensors(*data) for data in (mnist_digits(), fashion_mnist()))
    return digits, clothes


def as_tensors(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Images as the network was trained on them."""
    pixels = (torch.from_numpy(images.copy()).unsqueeze(1) - 0.1307) / 0.3081
    return pixels, torch.from_numpy(labels.copy())


def turned(images: Tensor) -> Tensor:
    """Images turned by `ANGLE`."""
    angle = np.deg2rad(ANGLE)
    rotation = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]],
        dtype=images.dtype,
    )
    size = list(images.shape)
    grid = F.affine_grid(rotation.expand(len(images), 2, 3), size, align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")
