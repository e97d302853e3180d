"""A model in a worker process of an engine: Ray, Spark, datasets; what is given it is scored."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import nn

from flowdata.scoring.language.named_losses import LanguageLoss
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.inference import (
    device_of,
    evaluating,
    unwrap_model,
    without_adapters,
)
from flowdata.scoring.models.loss_formulas import IGNORED
from flowdata.scoring.models.pretrained import warn_if_parameters_are_new
from flowdata.scoring.parts.row_blocks import Block
from flowdata.scoring.passes.scoring_pass import ScoringPass, score_blocks
from flowdata.scoring.scorer import describe_loss, dtype_of, make_pass
from flowdata.table.provenance import Provenance
from flowdata.table.scored_rows import ScoredRows, concatenate_parts, sort_by_row


@dataclass(frozen=True)
class EngineOptions:
    """What a worker makes losses by. It goes to another process.

    Attributes:
        make_model: makes the model, there.
        rest: see `flowdata.score`.
    """

    make_model: Callable[[], nn.Module]
    loss: str | LossFunction | LanguageLoss
    batch_size: int = 64
    collate_fn: Callable[[list[Any]], Any] | None = None
    device: torch.device | str | None = None
    ignore_index: int = IGNORED
    adapters: bool = False
    model_name: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.make_model, nn.Module) or not callable(self.make_model):
            raise TypeError(
                f"make_model= is a function that makes the model in each worker, got a "
                f"{type(self.make_model).__name__}: pass lambda: load_my_model(), or "
                "functools.partial(AutoModelForCausalLM.from_pretrained, name)"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        # What is wrong is said here, not by a hundred workers.
        self.describe_loss()

    def describe_loss(self) -> tuple[str, str | None]:
        """Name and options of the loss, for the provenance."""
        return describe_loss(self.loss, self.collate_fn, self.ignore_index)


class EngineWorker:
    """A model, made here, and the pass that scores rows by it; several threads may use it.

    Args:
        options: how.
        dataset: whose first rows decide what ``loss="classification"`` is.
        rank: of this process among those that share the devices of a machine, if an engine says.
    """

    def __init__(self, options: EngineOptions, dataset: Any, rank: int | None = None) -> None:
        model = unwrap_model(options.make_model())
        device = device_of(model, options.device)
        if options.device is None and device.type == "cpu":
            device = assigned_device(rank)
        if device != device_of(model, None):
            model = model.to(device)
        warn_if_parameters_are_new(model)
        self._options, self._model = options, model
        self._lock = Lock()
        with self._running():
            self.scoring_pass: ScoringPass = make_pass(
                *(options.loss, model, dataset, device),
                *(options.batch_size, options.collate_fn, options.ignore_index, options.key),
            )

    def provenance(self, rows: int, dataset: Any = None, **how: Any) -> Provenance:
        """That of losses which are made here, see `Provenance.now`."""
        options = self._options
        name, described = options.describe_loss()
        return Provenance.now(
            rows,
            dataset=dataset,
            model=self._model,
            adapters=options.adapters,
            model_name=options.model_name or type(self._model).__name__,
            loss=name,
            options=described,
            dtype=dtype_of(self._model),
            key=options.key,
            **how,
        )

    def score(self, rows: list[Any]) -> ScoredRows:
        """Losses of some rows, which are numbered from 0: read and batched as a data set of these.

        Raises:
            TypeError, ValueError: naming the row, as `flowdata.score`.
        """
        size = self.scoring_pass.rows_per_read
        numbers = np.split(np.arange(len(rows)), range(size, len(rows), size))
        blocks = [
            Block(some, np.ones(some.size, dtype=np.bool_), ((0.0, 1.0),)) for some in numbers
        ]
        return sort_by_row(self.score_blocks(rows, blocks))

    def score_blocks(self, dataset: Any, blocks: Sequence[Block]) -> ScoredRows:
        """Losses of what is left of some blocks of a data set.

        Raises:
            TypeError, ValueError: naming the row, as `flowdata.score`.
        """
        with self._lock, self._running():
            scored = [*score_blocks(self.scoring_pass, dataset, blocks, num_workers=0)]
        return concatenate_parts(scored)

    @contextmanager
    def _running(self) -> Iterator[None]:
        # For each call: whether gradients are made is known of a thread.
        with ExitStack() as stack:
            stack.enter_context(evaluating(self._model))
            stack.enter_context(
                nullcontext() if self._options.adapters else without_adapters(self._model)
            )
            yield


def assigned_device(rank: int | None = None) -> torch.device:
    """The device that an engine has given this process; else a GPU, if there is one.

    Args:
        rank: number of this process, as datasets gives it: GPUs are taken in turn.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # Not imported: where an engine runs this, it is there.
    if (ray := sys.modules.get("ray")) is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.get_task_id() is not None:
            # Ray shows a worker its own GPUs alone, by CUDA_VISIBLE_DEVICES.
            own = context.get_accelerator_ids().get("GPU")
            return torch.device("cuda:0" if own and gpus else "cpu")
    if (spark := sys.modules.get("pyspark")) is not None and gpus:
        task = spark.TaskContext.get()
        if task is not None and "gpu" in task.resources():
            return torch.device("cuda", int(task.resources()["gpu"].addresses[0]) % gpus)
    return torch.device("cuda", (rank or 0) % gpus) if gpus else torch.device("cpu")
