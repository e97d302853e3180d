"""loss="model": the loss that a model itself computes, one sample at a time."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.models.forward import run_forward
from flowdata.scoring.models.inference import out_of_memory, require_read, to_device
from flowdata.scoring.models.own_loss import (
    SAMPLES_TRIED,
    keeping_problem_type,
    loss_in,
    parameters_of_forward,
    rounding,
)
from flowdata.scoring.models.row_batches import CollateEach
from flowdata.table.scored_rows import ScoredRows

_OWN = "pass loss=function(model, batch) -> losses"


class ModelLossPass:
    """Scores each row by the loss that the model gives for a batch of that row alone."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        rows_per_read: int,
        collate: Callable[[list[Any]], Any],
        read_first: Callable[[int], list[Any]],
    ) -> None:
        self.rows_per_read = rows_per_read
        self.collate = CollateEach(collate)
        self._model = model
        self._device = device
        self._batch = collate
        self._read_first = read_first
        self._problem_type: Any = None
        self._checked = False

    def score_rows(self, rows: NDArray[np.int64], read: list[Any]) -> Iterator[ScoredRows]:
        """Losses of rows, of each of which a batch was made.

        Raises:
            MemoryError: naming the row, when it does not fit.
            ValueError: naming the row, for one that the model does not take or gives no loss for,
                and for a loss that is not one of a sample.
        """
        if not self._checked:
            self._check()
            self._checked = True
        for place, batch in enumerate(read):
            loss = self._loss(int(rows[place]), batch)
            yield ScoredRows(
                rows[place : place + 1], np.array([loss.float().item()], dtype=np.float32)
            )

    def _loss(self, row: int, batch: Any) -> Tensor:
        with self._as_first_rows():
            try:
                return loss_of(self._model, to_device(batch, self._device))
            except (RuntimeError, MemoryError, ValueError) as error:
                if out_of_memory(error):
                    raise MemoryError(f"row {row} does not fit into memory") from error
                if not isinstance(error, ValueError):
                    raise
                raise ValueError(f"row {row}: {error}") from error

    @contextlib.contextmanager
    def _as_first_rows(self) -> Iterator[None]:
        """Take labels for what those of the first row were taken for, whichever are scored here."""
        with keeping_problem_type(self._model):
            if self._problem_type is not None:
                self._model.config.problem_type = self._problem_type  # type: ignore[union-attr]
            yield
            self._problem_type = getattr(getattr(self._model, "config", None), "problem_type", None)

    def _check(self) -> None:
        """Make sure of a few rows that their losses are those of a sample.

        A loss that is a mean or a sum over the samples of a batch is that of one row, or twice
        that, for a batch of two copies of it. One that compares samples, as contrastive losses do,
        is not: for a single row it means nothing.
        """
        name = type(self._model).__name__
        for row, sample in enumerate(self._read_first(SAMPLES_TRIED)):
            batch = require_read(self._batch([sample]), np.array([row]))
            alone, again = (self._loss(row, batch) for _ in range(2))
            if not (alone.isfinite() and again.isfinite()):
                continue
            if not _are_close(alone, again):
                raise ValueError(
                    f"the loss that {name} computes of row {row} is random: {alone.item():.6g}, "
                    f"and {again.item():.6g} the second time, in evaluation mode; {_OWN} that "
                    "draws the same numbers for the same row, or averages over many draws"
                )
            try:
                twice = self._loss(row, self._batch([sample, sample]))
            # Whatever is raised by a model, or a collate_fn, that takes one sample at a time.
            except Exception:
                continue
            if not any(_are_close(twice, one) for one in (alone, 2 * alone)):
                raise ValueError(
                    f"the loss that {name} computes is not one of a sample: {alone.item():.6g} for "
                    f"row {row} alone, {twice.item():.6g} for two copies of it. It compares the "
                    f"samples of a batch, as contrastive losses do; {_OWN} that says what the loss "
                    "of one sample is"
                )


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model gives for a batch: a dict, or (input, target).

    Raises:
        ValueError: for a batch that the model does not take, or gives no loss for.
    """
    if isinstance(batch, Mapping):
        output = run_forward(model, **batch)
    elif isinstance(batch, list | tuple) and len(batch) == 2:
        inputs, target = batch
        if "labels" in parameters_of_forward(model):
            output = run_forward(model, inputs, labels=target)
        else:
            output = run_forward(model, inputs, target)
    else:
        output = run_forward(model, *(batch if isinstance(batch, list | tuple) else [batch]))
    loss = loss_in(output)
    if loss is None:
        has = f"{[*output]}" if isinstance(output, Mapping) else type(output).__name__
        raise ValueError(
            f"{type(model).__name__} gives no loss for the batch in evaluation mode, but {has}. It "
            f"needs labels, under the name that its forward has for them, and the batch "
            f"{_names_in(batch)}; else {_OWN}"
        )
    return loss


def _names_in(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"had {[*batch]}"
    return f"was {type(batch).__name__}"


def _are_close(one: Tensor, other: Tensor) -> bool:
    # Sums of batches of other sizes are rounded otherwise.
    return abs(one.item() - other.item()) <= 10 * max(rounding(one), rounding(other))
