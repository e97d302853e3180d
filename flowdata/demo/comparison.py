"""What the demos share: real digits and photographs, one training loop, tables and a picture."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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

BATCH = 25
EPOCHS = 20
LEARNING_RATE = 0.02
PRE_TRAINING_EPOCHS = 30
OFF_DOMAIN = 50
_WRONG_LABELS = 0.4

STANDARD = "shuffle=True"
FLOW = "FlowSampler"
OWN_ROWS = "FlowSampler, own rows"
SMALLER_RATE = "control: lr x mean(w)"
FEWER_STEPS = "control: steps x mean(w)"


@dataclass(frozen=True)
class Task:
    """One split of the digits; images are float32 of shape (n, 1, 8, 8).

    Attributes:
        pre_training: digits of the old task.
        fine_tuning: digits of the new one, some with wrong labels, and pieces of photographs.
        harmful: which rows of ``fine_tuning`` are wrong or off-domain.
        old, new: test digits of either task.
    """

    pre_training: TensorDataset
    fine_tuning: TensorDataset
    harmful: NDArray[np.bool_]
    old: TensorDataset
    new: TensorDataset


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
    """All methods on one split.

    Attributes:
        harmful: which rows of the fine-tuning data are, shape (n,).
        losses, weights: of these rows.
        results: of each method.
        own_rows: weights by a new head that was scored on the rows that it was fitted on.
    """

    harmful: NDArray[np.bool_]
    losses: NDArray[np.float32]
    weights: FlowWeights
    results: dict[str, Result]
    own_rows: FlowWeights | None = None

    def drawn(self, weights: FlowWeights) -> float:
        """Which share of what is drawn by weights is harmful."""
        return float(weights.values[self.harmful].sum() / weights.values.sum())


MakeTask: TypeAlias = Callable[[int, Tensor, Tensor, list[Tensor]], Task]
"""(seed, images, labels, photographs) -> task."""
RunOnce: TypeAlias = Callable[[Task, int, Path, "tqdm[Any]"], Run]
"""(task, seed, folder of loss tables, progress bar of trainings) -> run."""


def run_seeds(
    make_task: MakeTask, run_once: RunOnce, *, seeds: int, output: Path, start: str
) -> list[Run]:
    """Run everything; write the loss tables and ``demo.png`` to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    digits, photos = read_digits(), read_photographs()
    runs = []
    with _one_thread(), tqdm(total=seeds * 6, desc="demo", unit="trainings") as bar:
        for seed in range(seeds):
            runs.append(run_once(make_task(seed, *digits, photos), seed, output, bar))
    draw(runs, output / "demo.png", start=start)
    return runs


def fine_tuned(
    network: nn.Module,
    methods: Iterable[tuple[str, DataLoader[Any], float]],
    knows: Callable[[nn.Module], tuple[float, float, float]],
    seed: int,
    bar: "tqdm[Any]",
) -> dict[str, Result]:
    """What copies of a network know after each method; ``knows`` tells of old, new and hardest."""
    results = {}
    for method, loader, learning_rate in methods:
        model = copy.deepcopy(network)
        # The same random numbers for each method: only the loader makes a difference.
        torch.manual_seed(seed)
        started = time.perf_counter()
        train(model, loader, learning_rate=learning_rate, epochs=EPOCHS)
        seconds = time.perf_counter() - started
        samples = EPOCHS * len(loader.sampler)  # type: ignore[arg-type]
        results[method] = Result(*knows(model), samples, seconds)
        bar.update()
    return results


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads of so small a network spend their time waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loaders(
    data: TensorDataset, weights: FlowWeights, seed: int, learning_rate: float
) -> Iterator[tuple[str, DataLoader[Any], float]]:
    """(name, loader, learning rate) of plain training, FLOW and the two controls."""
    shuffled = DataLoader(data, batch_size=BATCH, shuffle=True)
    fewer = RandomSampler(data, num_samples=round(weights.mean * len(data)))
    yield STANDARD, shuffled, learning_rate
    yield FLOW, batches(data, FlowSampler(weights, seed=seed)), learning_rate
    yield SMALLER_RATE, shuffled, learning_rate * weights.mean
    yield FEWER_STEPS, batches(data, fewer), learning_rate


def batches(data: TensorDataset, sampler: Any) -> DataLoader[Any]:
    """Batches in the order of a sampler."""
    return DataLoader(data, batch_size=BATCH, sampler=sampler)


def hardest_rows(model: nn.Module, data: TensorDataset) -> NDArray[np.int64]:
    """The tenth of the samples that a model finds hardest."""
    losses = score(model, data, progress=False).losses
    return np.argsort(losses)[-len(losses) // 10 :]


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """Percent of the samples that a classifier gets right."""
    return scores_in_percent(model, data).mean().item()


def scores_in_percent(model: nn.Module, data: TensorDataset) -> Tensor:
    """100 for each sample whose class is predicted, 0 for any other."""
    images, labels = data.tensors
    model.eval()
    with torch.inference_mode():
        scores: Tensor = 100.0 * (model(images).argmax(dim=1) == labels)
    return scores


def network(classes: int) -> nn.Module:
    """A small convolutional network for images of 8 x 8 pixels; its last layer is "8"."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
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


def with_harmful_samples(
    images: Tensor, labels: Tensor, photos: list[Tensor], classes: int, random: np.random.Generator
) -> tuple[TensorDataset, NDArray[np.bool_]]:
    """Digits of which some get wrong labels, then pieces of photographs; and which are harmful."""
    given = labels.clone()
    wrong = torch.from_numpy(random.random(len(given)) < _WRONG_LABELS)
    shifts = torch.from_numpy(random.integers(1, classes, len(given)))
    given[wrong] = (given[wrong] + shifts[wrong]) % classes
    off_domain = _photo_pieces(photos, OFF_DOMAIN, random)
    arbitrary = torch.from_numpy(random.integers(0, classes, OFF_DOMAIN))
    data = TensorDataset(torch.cat([images, off_domain]), torch.cat([given, arbitrary]))
    return data, torch.cat([wrong, torch.ones(OFF_DOMAIN, dtype=torch.bool)]).numpy()


def _photo_pieces(photos: list[Tensor], number: int, random: np.random.Generator) -> Tensor:
    pieces = []
    for _ in range(number):
        photo = photos[random.integers(len(photos))]
        side = int(random.integers(16, 64))
        top, left = (int(random.integers(length - side)) for length in photo.shape)
        piece = photo[top : top + side, left : left + side]
        pieces.append(F.adaptive_avg_pool2d(piece[None], 8))
    return torch.stack(pieces)


def report(setting: str, runs: list[Run]) -> str:
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
    return "\n\n".join([f"{setting}\n{_harmful(runs)}", text_table(head, rows), _verdict(runs)])


def _spread(runs: list[Run], method: str, name: str) -> str:
    """Mean and standard deviation over the runs."""
    values = [getattr(run.results[method], name) for run in runs]
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=min(1, len(values) - 1)):.1f}"


def _harmful(runs: list[Run]) -> str:
    """How many samples are harmful, and how many of those that are drawn."""
    harmful = np.mean([run.harmful.mean() for run in runs])
    drawn = np.mean([run.drawn(run.weights) for run in runs])
    mean_weight = np.mean([run.weights.mean for run in runs])
    ess = np.mean([run.weights.ess / len(run.weights) for run in runs])
    return (
        f"Harmful samples (wrong label or photograph): {harmful:.0%} of the fine-tuning data, "
        f"{drawn:.0%} of what FlowSampler draws.\n"
        f"Mean weight {mean_weight:.2f}, effective sample size {ess:.0%} of the data."
    )


def _verdict(runs: list[Run]) -> str:
    """What came out, in words, whatever it is."""

    def average(method: str, name: str) -> float:
        return float(np.mean([getattr(run.results[method], name) for run in runs]))

    lines = []
    for rival in (STANDARD, SMALLER_RATE, FEWER_STEPS):
        kept = average(FLOW, "old") - average(rival, "old")
        learned = average(FLOW, "new") - average(rival, "new")
        wins = sum(run.results[FLOW].old > run.results[rival].old for run in runs)
        lines.append(
            f"FlowSampler against {rival}: old task {kept:+.1f}, new task {learned:+.1f} points; "
            f"kept more in {wins} of {len(runs)} runs."
        )
    lost = average(STANDARD, "hardest") - average(FLOW, "hardest")
    lines.append(
        f"The price: {lost:.1f} points on the hardest tenth of the new task, which FLOW rarely "
        "draws."
    )
    return "\n".join(lines)


def draw(runs: list[Run], path: Path, *, start: str) -> None:
    """Losses of the first run, and what each training kept and learned from ``start``."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(12.5, 4.8), layout=ConstrainedLayoutEngine(w_pad=0.12))
    left, right = figure.subplots(1, 2)
    first = runs[0]
    plot_losses(
        left,
        {
            "right label": first.losses[~first.harmful],
            "wrong label or photograph": first.losses[first.harmful],
        },
        first.weights,
    )
    left.set_title("What is drawn: samples the pre-trained model finds easy")
    trainings = {
        method: [(run.results[method].new, run.results[method].old) for run in runs]
        for method in first.results
    }
    begin = np.mean(trainings.pop(start), axis=0)
    plot_kept_against_learned(right, trainings, start=(float(begin[0]), float(begin[1])))
    right.set_title("What it does: kept against learned, percent, a point a run")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
