"""``flowdata demo``: real digits, a harmful fine-tuning set, one training loop, five loaders."""

import contextlib
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from tqdm.auto import tqdm

from flowdata.core.weights import FlowWeights
from flowdata.files import replacing
from flowdata.map_style.sampler import FlowSampler
from flowdata.report.plots import plot_kept_against_learned, plot_losses
from flowdata.report.summary import text_table
from flowdata.scoring import score
from flowdata.table.loss_table import LossTable

_PRE_TRAINING, _FINE_TUNING = 800, 500
_OFF_DOMAIN = 50
_WRONG_LABELS = 0.4
_ANGLE = 30.0
_BATCH = 25
_PRE_TRAINING_EPOCHS = 30
_EPOCHS = 20
_LEARNING_RATE = 0.02

_PRE_TRAINED = "pre-trained"
_STANDARD = "shuffle=True"
_FLOW = "FlowSampler"
_DISTINCT = 'FlowSampler, "distinct"'
_SMALLER_RATE = "control: lr x mean(w)"
_FEWER_STEPS = "control: steps x mean(w)"


def train(model: nn.Module, loader: DataLoader[Any], *, learning_rate: float, epochs: int) -> None:
    """An ordinary training loop. It knows nothing of FLOW; the loader does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    model.train()
    for _ in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


@dataclass(frozen=True)
class Task:
    """One split of the digits; images are float32 of shape (n, 1, 8, 8).

    Attributes:
        pre_training: upright digits.
        fine_tuning: turned digits, some with wrong labels, and pieces of photographs.
        harmful: which rows of ``fine_tuning`` are wrong or off-domain.
        old: upright test digits.
        new: the same test digits, turned.
    """

    pre_training: TensorDataset
    fine_tuning: TensorDataset
    harmful: NDArray[np.bool_]
    old: TensorDataset
    new: TensorDataset


@dataclass(frozen=True)
class Result:
    """What one model knows: accuracies in percent, and what its training took."""

    old: float
    new: float
    hardest: float
    samples: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Mean of old and new."""
        return (self.old + self.new) / 2


@dataclass(frozen=True)
class Run:
    """All methods on one split."""

    task: Task
    losses: NDArray[np.float32]
    weights: FlowWeights
    results: dict[str, Result]


def run(*, seeds: int, output: Path) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    digits, photos = read_digits(), read_photographs()
    runs = []
    with _one_thread(), tqdm(total=seeds * 6, desc="demo", unit="trainings") as bar:
        for seed in range(seeds):
            runs.append(_run_once(make_task(seed, *digits, photos), seed, output, bar))
    _draw(runs, output / "demo.png")
    return runs


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads of so small a network spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_task(seed: int, images: Tensor, labels: Tensor, photos: list[Tensor]) -> Task:
    """Split the digits and make the fine-tuning set, as a function of the seed."""
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    first, second, test = order.tensor_split([_PRE_TRAINING, _PRE_TRAINING + _FINE_TUNING])
    given = labels[second].clone()
    wrong = torch.from_numpy(random.random(_FINE_TUNING) < _WRONG_LABELS)
    shifts = torch.from_numpy(random.integers(1, 10, _FINE_TUNING))
    given[wrong] = (given[wrong] + shifts[wrong]) % 10
    off_domain = _photo_pieces(photos, _OFF_DOMAIN, random)
    arbitrary = torch.from_numpy(random.integers(0, 10, _OFF_DOMAIN))
    return Task(
        pre_training=TensorDataset(images[first], labels[first]),
        fine_tuning=TensorDataset(
            torch.cat([turn(images[second]), off_domain]), torch.cat([given, arbitrary])
        ),
        harmful=torch.cat([wrong, torch.ones(_OFF_DOMAIN, dtype=torch.bool)]).numpy(),
        old=TensorDataset(images[test], labels[test]),
        new=TensorDataset(turn(images[test]), labels[test]),
    )


def load_task(seed: int) -> Task:
    """The task of one seed, from the digits and photographs that come with scikit-learn."""
    return make_task(seed, *read_digits(), read_photographs())


def pre_trained(task: Task, seed: int) -> nn.Module:
    """A small convolutional network that has learned to read the upright digits of a task."""
    torch.manual_seed(seed)
    network = _network()
    upright = DataLoader(task.pre_training, batch_size=_BATCH, shuffle=True)
    train(network, upright, learning_rate=_LEARNING_RATE, epochs=_PRE_TRAINING_EPOCHS)
    return network


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Percent of the samples that a classifier gets right."""
    return _scores_in_percent(model, data).mean().item()


def _run_once(task: Task, seed: int, output: Path, bar: "tqdm[Any]") -> Run:
    network = pre_trained(task, seed)
    bar.update()

    path = output / f"losses-{seed}.parquet"
    score(network, task.fine_tuning, progress=False).save(path)
    losses = LossTable.load(path, dataset=task.fine_tuning, model=network)
    weights = losses.weights()

    hardest = _hardest(network, task.new)
    results = {_PRE_TRAINED: Result(*_accuracies(network, task, hardest))}
    for method, loader, learning_rate in _methods(task.fine_tuning, weights, seed):
        model = copy.deepcopy(network)
        # The same random numbers for each method: only the loader makes a difference.
        torch.manual_seed(seed)
        started = time.perf_counter()
        train(model, loader, learning_rate=learning_rate, epochs=_EPOCHS)
        seconds = time.perf_counter() - started
        samples = _EPOCHS * len(loader.sampler)  # type: ignore[arg-type]
        results[method] = Result(*_accuracies(model, task, hardest), samples, seconds)
        bar.update()
    return Run(task, losses.losses, weights, results)


def _methods(
    data: TensorDataset, weights: FlowWeights, seed: int
) -> Iterator[tuple[str, DataLoader[Any], float]]:
    """(name, loader, learning rate); only the loader differs, but for one control."""
    shuffled = DataLoader(data, batch_size=_BATCH, shuffle=True)
    flow = FlowSampler(weights, seed=seed)
    distinct = FlowSampler(weights, seed=seed, epoch_size="distinct")
    fewer = RandomSampler(data, num_samples=round(weights.mean * len(data)))
    yield _STANDARD, shuffled, _LEARNING_RATE
    yield _FLOW, DataLoader(data, batch_size=_BATCH, sampler=flow), _LEARNING_RATE
    yield _DISTINCT, DataLoader(data, batch_size=_BATCH, sampler=distinct), _LEARNING_RATE
    yield _SMALLER_RATE, shuffled, _LEARNING_RATE * weights.mean
    yield _FEWER_STEPS, DataLoader(data, batch_size=_BATCH, sampler=fewer), _LEARNING_RATE


def _network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def read_digits() -> tuple[Tensor, Tensor]:
    """1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn, values in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target)


def read_photographs() -> list[Tensor]:
    """The two photographs that come with scikit-learn, grey, values in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [
        torch.tensor(photo, dtype=torch.float32).mean(dim=2) / 255
        for photo in load_sample_images()["images"]
    ]


def _photo_pieces(photos: list[Tensor], number: int, random: np.random.Generator) -> Tensor:
    pieces = []
    for _ in range(number):
        photo = photos[random.integers(len(photos))]
        side = int(random.integers(16, 64))
        top, left = (int(random.integers(length - side)) for length in photo.shape)
        piece = photo[top : top + side, left : left + side]
        pieces.append(F.adaptive_avg_pool2d(piece[None], 8))
    return torch.stack(pieces)


def turn(images: Tensor) -> Tensor:
    """The images turned by `_ANGLE` degrees, with black where there was nothing."""
    angle = np.deg2rad(_ANGLE)
    rotation = torch.tensor(
        [[np.cos(angle), -np.sin(angle), 0.0], [np.sin(angle), np.cos(angle), 0.0]],
        dtype=images.dtype,
    )
    grid = F.affine_grid(
        rotation.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return F.grid_sample(images, grid, align_corners=False)


def _hardest(model: nn.Module, data: TensorDataset) -> NDArray[np.int64]:
    """Rows of the tenth of the samples that the pre-trained model finds hardest."""
    losses = score(model, data, progress=False).losses
    return np.argsort(losses)[-len(losses) // 10 :]


def _accuracies(
    model: nn.Module, task: Task, hardest: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Old, new, and hardest new, in percent."""
    old, new = (_scores_in_percent(model, data) for data in (task.old, task.new))
    return old.mean().item(), new.mean().item(), new[hardest].mean().item()


def _scores_in_percent(model: nn.Module, data: TensorDataset) -> Tensor:
    """100 for each sample whose class is predicted, 0 for any other."""
    images, labels = data.tensors
    model.eval()
    with torch.inference_mode():
        scores: Tensor = 100.0 * (model(images).argmax(dim=1) == labels)
    return scores


def report(runs: list[Run]) -> str:
    """The setting, a table of all methods, and what came out in words."""
    rows = [
        [
            method,
            *(_spread(runs, method, name) for name in ("old", "new", "mean", "hardest")),
            f"{np.mean([run.results[method].samples for run in runs]):,.0f}",
            f"{np.mean([run.results[method].seconds for run in runs]):.1f}",
        ]
        for method in runs[0].results
    ]
    head = ["training", "old task", "new task", "mean", "hardest 10 %", "samples", "seconds"]
    return "\n\n".join([_setting(runs), text_table(head, rows), _verdict(runs)])


def _spread(runs: list[Run], method: str, name: str) -> str:
    """Mean and standard deviation over the runs."""
    values = [getattr(run.results[method], name) for run in runs]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}"


def _setting(runs: list[Run]) -> str:
    harmful = np.mean([run.task.harmful.mean() for run in runs])
    drawn = np.mean(
        [run.weights.values[run.task.harmful].sum() / run.weights.values.sum() for run in runs]
    )
    mean_weight = np.mean([run.weights.mean for run in runs])
    ess = np.mean([run.weights.ess / len(run.weights) for run in runs])
    return (
        f"Old task: upright digits. New task: digits turned by {_ANGLE:.0f} degrees. Accuracy in "
        f"percent, mean ± standard deviation of {len(runs)} seeds.\n"
        f"Harmful samples (wrong label or photograph): {harmful:.0%} of the fine-tuning data, "
        f"{drawn:.0%} of what FlowSampler draws.\n"
        f"Mean weight {mean_weight:.2f}, effective sample size {ess:.0%} of the data."
    )


def _verdict(runs: list[Run]) -> str:
    """What came out, in words, whatever it is."""

    def average(method: str, name: str) -> float:
        return float(np.mean([getattr(run.results[method], name) for run in runs]))

    lines = []
    for rival in (_STANDARD, _SMALLER_RATE, _FEWER_STEPS):
        kept = average(_FLOW, "old") - average(rival, "old")
        learned = average(_FLOW, "new") - average(rival, "new")
        wins = sum(run.results[_FLOW].old > run.results[rival].old for run in runs)
        lines.append(
            f"FlowSampler against {rival}: old task {kept:+.1f}, new task {learned:+.1f} points; "
            f"kept more in {wins} of {len(runs)} runs."
        )
    lost = average(_STANDARD, "hardest") - average(_FLOW, "hardest")
    lines.append(
        f"The price: {lost:.1f} points on the hardest tenth of the new task, which FLOW rarely "
        "draws."
    )
    return "\n".join(lines)


def _draw(runs: list[Run], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(12.5, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    left, right = figure.subplots(1, 2)
    first = runs[0]
    plot_losses(
        left,
        {
            "right label": first.losses[~first.task.harmful],
            "wrong label or photograph": first.losses[first.task.harmful],
        },
        first.weights,
    )
    left.set_title("What is drawn: samples the pre-trained model finds easy")
    trainings = {
        method: [(run.results[method].new, run.results[method].old) for run in runs]
        for method in first.results
    }
    start = np.mean(trainings.pop(_PRE_TRAINED), axis=0)
    plot_kept_against_learned(right, trainings, start=(float(start[0]), float(start[1])))
    right.set_title("What it does: kept against learned, percent, a point a run")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
