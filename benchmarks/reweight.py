#!/usr/bin/env python
"""Reweighting: what a WeightedTarget costs a training step."""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from assets import smollm2
from measure import Machine, Table, Target, canvas, horizontal_bars, number
from publishing import command_line, publish
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from flowdata import WeightedTarget

Step = Callable[[Tensor], None]

HELP = """\
Time training steps (forward, loss, backward, optimizer) with a plain target and with a
WeightedTarget, in turn, in one process.
"""

ABOUT = """\
Steps with a plain target and with a WeightedTarget alternate; "ratio" is the median over pairs of
steps. The residual network has three stages of two blocks (16, 32, 64 channels) on images of
32 x 32, batches of 64; the language model is SmolLM2-135M-Instruct on 4 x 256 tokens.
"""


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.around = nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Shape (n, outputs, height / stride, width / stride)."""
        return F.relu(self.body(images) + self.around(images))


def main() -> None:
    """Measure, write."""
    options = parser().parse_args()
    machine = Machine.here()
    ratios = {"residual network": paired(*vision_step(), options.steps)}
    if not options.small:
        ratios["language model"] = paired(*language_step(), max(options.steps // 10, 5))
    goals = [
        Target(f"{name}: step, weighted / plain", 1.03, row[2]) for name, row in ratios.items()
    ]
    rows = [
        [name, number(1e3 * plain), number(1e3 * weighted), f"{ratio:.4f}"]
        for name, (plain, weighted, ratio) in ratios.items()
    ]
    header = ["", "plain, ms a step", "weighted, ms a step", "ratio"]
    publish(
        options.output,
        "reweight",
        ABOUT,
        [Table("A training step", header, rows)],
        {"seconds": ratios},
        partial(draw, ratios),
        machine=machine,
        goals=goals,
    )


def draw(ratios: dict[str, tuple[float, float, float]], path: Path) -> None:
    """The ratio of both models."""
    with canvas(path, rows=1, columns=1) as (_, axes):
        values = [ratio for _, _, ratio in ratios.values()]
        horizontal_bars(
            axes, "A step with a WeightedTarget", "times a plain one", list(ratios), values
        )


def paired(step: Step, target: Tensor, steps: int) -> tuple[float, float, float]:
    """Seconds of a plain and of a weighted step, and the median ratio of neighbours."""
    weighted = WeightedTarget(target, torch.linspace(0.5, 1.5, len(target)))
    for warm in (target, weighted):
        step(warm)
    taken: dict[bool, list[float]] = {False: [], True: []}
    for number_ in tqdm(range(steps), unit="pair"):
        # Who goes first changes, so that neither always follows the other.
        for with_weights in (number_ % 2 == 0, number_ % 2 == 1):
            started = time.perf_counter()
            step(weighted if with_weights else target)
            taken[with_weights].append(time.perf_counter() - started)
    ratios = [slow / fast for slow, fast in zip(taken[True], taken[False], strict=True)]
    medians = (statistics.median(taken[False]), statistics.median(taken[True]))
    return (*medians, statistics.median(ratios))


def vision_step() -> tuple[Step, Tensor]:
    """A step of a small residual network, and its target."""
    torch.manual_seed(0)
    sizes = [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    blocks = [Block(*size) for size in sizes]
    model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randn(64, 3, 32, 32)

    def step(target: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), target).backward()
        optimizer.step()

    return step, torch.randint(0, 10, (64,))


def language_step() -> tuple[Step, Tensor]:
    """A step of a real language model on 1,024 tokens, and its labels."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    tokens = torch.randint(1, 40_000, (4, 256), generator=torch.Generator().manual_seed(0))

    def step(target: Tensor) -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=target).loss.backward()
        optimizer.step()

    return step, tokens.clone()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = command_line(HELP)
    made.add_argument("--steps", type=int, default=100, help="pairs of steps (default 100)")
    made.add_argument("--small", action="store_true", help="without the language model")
    return made


if __name__ == "__main__":
    main()
