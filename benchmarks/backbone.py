"""Backbone: EfficientNet-Lite0 with ImageNet weights and batch norms, and two tasks for it."""

from typing import Any

import numpy as np
import torch
from assets import efficientnet_lite0, fashion_mnist
from pictures import SIZE, photographs
from tasks import Sizes, Task, damaged, samples_of, task_of
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import TensorDataset

HEAD = "_fc"
CLOTHES, WRONG_CLOTHES = "ImageNet to clothes", "ImageNet to clothes, wrong labels"
TASKS = (CLOTHES, WRONG_CLOTHES)
SIZES = Sizes(1000, 500, 1000)
WRONG = 0.4
# As the network was trained: pixels from -1 to 1.
MEAN, SCALE = 127.0, 128.0

ABOUT = f"""\
EfficientNet-Lite0 (4.65 M parameters, batch norms, dropout and stochastic depth as published) with
ImageNet weights is fine-tuned on {SIZES.data:,} pictures of clothes with a new head of ten
classes, and measured on {SIZES.new:,} others ("new"). "Old" is how many of 478 crops of 239 natural
photographs (animals, monuments, landscapes, things) it gives the ImageNet class that it gave them
before: agreement with its own first choice, as they have no ImageNet labels. The photographs come
with Debian's gcompris-qt-data (GPL-3+, CC-BY-SA, public domain). Clothes are Fashion-MNIST (MIT):
photographs, but grey ones of 28 x 28 pixels, enlarged to {SIZE} x {SIZE} like all pictures here.
The package registries have no labelled photographs in colour that are as many (CIFAR, flowers and
the like cannot be had from them), so this is none of the paper's tasks.

- {CLOTHES}: right labels.
- {WRONG_CLOTHES}: {WRONG:.0%} of the labels wrong.
"""


def fetch() -> None:
    """Have everything at hand, before processes ask for it side by side."""
    fashion_mnist()
    photographs()
    efficientnet_lite0(SIZE)


def make_task(name: str, seed: int, device: str = "cpu", sizes: Sizes = SIZES) -> Task:
    """Data, starting point and weights, as a function of the seed."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model: Any = efficientnet_lite0(SIZE).to(device).eval()
    crops = scaled(torch.from_numpy(photographs()).float())
    with torch.inference_mode():
        first = [model(part.to(device)).argmax(dim=1).cpu() for part in crops.split(100)]
    old = TensorDataset(crops, torch.cat(first))

    seen = sizes.data + sizes.held_out
    pixels, classes = (torch.from_numpy(part.copy()) for part in fashion_mnist())
    chosen = torch.from_numpy(random.permutation(len(pixels))[: sum(sizes)])
    images, labels = enlarged(pixels[chosen]), classes[chosen]
    share = WRONG if name == WRONG_CLOTHES else 0.0
    labels[:seen], harmful = damaged(labels[:seen], share, random)
    samples = samples_of(images, labels, harmful, sizes)
    return task_of(model, HEAD, samples, old, classes=10, seed=seed)


def enlarged(pixels: Tensor) -> Tensor:
    """Grey images in [0, 1] as the network takes them, its three channels alike."""
    size = (SIZE, SIZE)
    large = F.interpolate(pixels.unsqueeze(1), size, mode="bilinear", align_corners=False)
    return scaled(255 * large).expand(-1, 3, -1, -1)


def scaled(pixels: Tensor) -> Tensor:
    """Pixels from 0 to 255 as the network was trained on them."""
    return (pixels - MEAN) / SCALE
