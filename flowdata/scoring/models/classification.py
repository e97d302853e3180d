"""Per-sample losses of models that map an input to logits or values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.models import loss_formulas as formulas
from flowdata.scoring.models.batch_dependence import require_losses_of_samples
from flowdata.scoring.models.forward import ONE_BY_ONE, OWN_FUNCTION, predict
from flowdata.scoring.models.inference import to_device
from flowdata.scoring.models.loss_formulas import IGNORED, Formula, UnscorableSample
from flowdata.scoring.models.own_loss import (
    SAMPLES_TRIED,
    differs_from_own,
    ignored_by,
    losses_side_by_side,
    parameters_of_forward,
    samples_of,
    target_of,
)
from flowdata.scoring.models.row_batches import split_batch
from flowdata.table.scored_rows import ScoredRows

LossFunction: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> losses of shape (batch size,); the batch is what the collate_fn made."""

_NAMES = {
    "cross-entropy": "cross_entropy",
    "cross-entropy over the last axis": "cross_entropy",
    "cross-entropy with probabilities": "cross_entropy",
    "binary cross-entropy": "bce",
    "squared error": "mse",
}
_PIXELS = "cross-entropy of pixels"
_NEXT = "cross-entropy of the next token"


def _known_formulas(model: nn.Module, batch: Any, ignored: int) -> dict[str, Formula]:
    """What a model's own loss is compared with."""
    found: tuple[Formula, ...] = (
        partial(formulas.of_classes, ignored=ignored),
        partial(formulas.of_last_axis, ignored=ignored),
        *(formulas.of_probabilities, formulas.of_flags, formulas.of_single_values),
    )
    named: dict[str, Formula] = dict(zip(_NAMES, found, strict=True))
    own = ignored_by(model, target_of(batch))
    pixels = partial(formulas.of_upsampled, ignored=own, also_ignored=ignored)
    # First: of logits of full size both hold, but for pixels that the model leaves out.
    return {_PIXELS: pixels, **named, _NEXT: partial(formulas.of_next, ignored=ignored)}


class Classification:
    """Cross-entropy, binary cross-entropy or squared error: one of them for a whole pass.

    Where the model computes a loss itself from ``labels`` (as those of transformers do), it is
    the one that gives the same numbers. Else the type of the target decides: class indices
    (integers, one axis fewer than the logits) mean cross-entropy; booleans, or integers of the
    shape of the logits, binary cross-entropy with logits; floats squared error, or cross-entropy
    where they are probabilities of classes. Further axes (pixels, labels, tokens) are averaged.
    What may mean two of these is refused.
    """

    def __init__(self, ignored: int = IGNORED) -> None:
        self._ignored = ignored
        self._formula: Formula | None = None
        self._is_own = False
        self._batches = 0

    @property
    def is_chosen(self) -> bool:
        """Whether it is decided which loss it is."""
        return self._formula is not None

    def choose(self, model: nn.Module, batches: Sequence[Any]) -> None:
        """Decide by a batch, or by several of one shape each, which loss it is."""
        own = _own_formula(model, batches, self._ignored)
        # The first of the largest: one sample may mean what many do not.
        batch = max(batches, key=samples_of)
        self._formula = own or _formula_by_type(*predict(model, batch), self._ignored)
        self._is_own = own is not None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Losses of a batch, of shape (batch size,).

        The first samples have shown what the model's own loss is; whether it still is that is
        looked at in batches ever farther apart.

        Raises:
            UnscorableSample: for a sample whose own loss is another one.
        """
        if self._formula is None:
            self.choose(model, [batch])
            assert self._formula is not None
        losses = self.unchecked(model, batch)
        self._batches += 1
        if self._is_own and self._batches.bit_count() == 1:
            unlike = differs_from_own(model, batch, self._ignored, losses)
            if unlike:
                raise UnscorableSample(
                    len(losses) - 1,
                    f"{unlike}, by the formula that gave its own loss of the first samples: pass "
                    f"{ONE_BY_ONE}",
                )
        return losses

    def unchecked(self, model: nn.Module, batch: Any) -> Tensor:
        """The same, once it is decided which loss it is, without a look at the model's own."""
        assert self._formula is not None
        return self._formula(*predict(model, batch))


def classification(model: nn.Module, batch: Any) -> Tensor:
    """The losses of one batch, see `Classification`."""
    return Classification()(model, batch)


class CrossEntropy:
    """Cross-entropy of logits (B, C, ...) with class indices (B, ...) or probabilities.

    Where the classes are last, as in models of transformers that score tokens, that axis is taken.
    """

    def __init__(self, ignored: int = IGNORED) -> None:
        self._ignored = ignored

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Losses of a batch, of shape (batch size,)."""
        output, target = predict(model, batch)
        if target.is_floating_point():
            return formulas.of_probabilities(output, target)
        # Models of transformers that score tokens give (B, T, C), whatever T is.
        tokens = output.ndim == 3 and "labels" in parameters_of_forward(model)
        last = _fits_last_axis(output, target) and (tokens or not _fits(output, target))
        formula = formulas.of_last_axis if last else formulas.of_classes
        return formula(output, target, self._ignored)


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """The losses of one batch, see `CrossEntropy`."""
    return CrossEntropy()(model, batch)


def bce(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy of logits with 0/1 targets of the same shape, averaged per sample."""
    return formulas.of_flags(*predict(model, batch))


def mse(model: nn.Module, batch: Any) -> Tensor:
    """Squared error of outputs and targets of the same shape, averaged per sample."""
    return formulas.of_values(*predict(model, batch))


LOSS_FUNCTIONS: dict[str, LossFunction] = {
    "classification": classification,
    "cross_entropy": cross_entropy,
    "bce": bce,
    "mse": mse,
}


def loss_function(name: str, ignored: int = IGNORED) -> LossFunction:
    """The loss of this name for one pass, with the class index that it leaves out."""
    if name == "classification":
        return Classification(ignored)
    return CrossEntropy(ignored) if name == "cross_entropy" else LOSS_FUNCTIONS[name]


def require_loss_of_batches(function: Any) -> None:
    """Refuse a loss of torch, which takes outputs and targets, in place of a function of a batch.

    Raises:
        TypeError: for such a loss.
    """
    while isinstance(function, partial):
        function = function.func
    kind = function if hasattr(function, "__qualname__") else type(function)
    if getattr(kind, "__module__", "") not in ("torch.nn.functional", "torch.nn.modules.loss"):
        return
    raise TypeError(
        f"{kind.__qualname__} takes outputs and targets: pass the name of a loss, "
        '"cross_entropy", "bce" or "mse", or a function that takes a model and a batch, '
        f"{OWN_FUNCTION} of shape (batch size,)"
    )


def _own_formula(model: nn.Module, batches: Sequence[Any], ignored: int) -> Formula | None:
    """The formula of the loss that the model computes itself; None where it computes none."""
    agreeing: dict[str, Formula] | None = None
    tried = 0
    for batch in batches:
        known = _known_formulas(model, batch, ignored)
        for _, own, rounding, ours in losses_side_by_side(model, batch, ignored, known, predict):
            tried += 1
            found = {name for name, loss in ours.items() if abs(loss - own) <= rounding}
            agreeing = {
                name: formula
                for name, formula in (known if agreeing is None else agreeing).items()
                if name in found
            }
            if not agreeing:
                raise ValueError(_no_formula(model, own, ours))
        if tried >= SAMPLES_TRIED:
            break
    if not agreeing:
        return None
    name, formula = next(iter(agreeing.items()))
    if name == _NEXT:
        raise ValueError(
            f'{type(model).__name__} predicts the next token: pass loss="causal_lm", which scores '
            "rows with input_ids and labels, or CausalLM() with its options"
        )
    return formula


def _no_formula(model: nn.Module, own: float, ours: Mapping[str, float]) -> str:
    near = "; ".join(
        f'{name} gives {loss:.6g} (loss="{_NAMES[name]}")'
        for name, loss in ours.items()
        if name in _NAMES
    )
    # transformers 5.23, EmbeddingAccessMixin: models of language have such a head.
    find = getattr(model, "get_output_embeddings", None)
    of_language = callable(find) and find() is not None
    language = 'loss="causal_lm" or another one of language, ' if of_language else ""
    return (
        f"{type(model).__name__} computes a loss of its own that is none of those known here: "
        f"{own:.6g} for a sample of the first batch{near and ', where '}{near}; pass {language}"
        f"{ONE_BY_ONE}{near and ', name one of these'}, or pass {OWN_FUNCTION}"
    )


def _formula_by_type(output: Tensor, target: Tensor, ignored: int) -> Formula:
    if target.is_floating_point():
        return _formula_of_floats(output, target)
    if target.shape == output.shape and formulas.are_one_hot(target):
        raise ValueError(
            "targets with one 1 in each row may be classes or flags: give class indices, "
            'target.argmax(dim=1), for classes, or pass loss="bce" for flags'
        )
    if target.dtype == torch.bool:
        return formulas.of_flags
    single = output.numel() == len(output)
    if single and target.numel() == len(target):
        raise ValueError(
            f"one output and one integer target a sample (shapes {tuple(output.shape)} and "
            f"{tuple(target.shape)}) may be a flag or a number: pass targets of the shape of the "
            f'outputs and loss="bce" for flags, loss="mse" for numbers'
        )
    if target.shape == output.shape:
        return formulas.of_flags
    if _fits(output, target) and _fits_last_axis(output, target) and output.ndim == 3:
        raise ValueError(
            f"outputs of shape {tuple(output.shape)} with class indices {tuple(target.shape)} may "
            'have their classes in axis 1 or in the last one: pass loss="cross_entropy" for axis '
            f"1, as torch has it, or {OWN_FUNCTION}"
        )
    last = _fits_last_axis(output, target) and not _fits(output, target)
    return partial(formulas.of_last_axis if last else formulas.of_classes, ignored=ignored)


def _formula_of_floats(output: Tensor, target: Tensor) -> Formula:
    if target.shape == output.shape:
        last = target.ndim > 2 and formulas.are_probabilities(target.movedim(-1, 1))
        if formulas.are_probabilities(target):
            if last:
                raise ValueError(
                    f"targets of shape {tuple(target.shape)} are probabilities of classes in axis "
                    '1 and in the last one: pass loss="cross_entropy" for axis 1, as torch has it, '
                    f"or {OWN_FUNCTION}"
                )
            return formulas.of_probabilities
        if last:
            return formulas.of_last_probabilities
        if formulas.are_flags(target):
            raise ValueError(
                "float targets that are all 0 or 1 may be flags or numbers: pass "
                'loss="bce" for flags, loss="mse" for numbers'
            )
    return formulas.of_values


def _fits(output: Tensor, target: Tensor) -> bool:
    return target.shape == output.shape[:1] + output.shape[2:]


def _fits_last_axis(output: Tensor, target: Tensor) -> bool:
    return output.ndim > 2 and target.shape == output.shape[:-1]


@dataclass(frozen=True)
class FunctionPass:
    """Scores rows by a loss function; the rows that are read at a time are a batch."""

    function: LossFunction
    model: nn.Module
    device: torch.device
    rows_per_read: int
    collate: Callable[[list[Any]], Any] | None = None
    read_first: Callable[[int], Any] | None = None
    """Reads a batch of so many rows from the beginning of the data set."""
    compared: list[int] = field(default_factory=list, kw_only=True)
    """Rows of the batches of which losses were computed once more, in one batch and alone."""

    def __post_init__(self) -> None:
        require_loss_of_batches(self.function)

    def score_rows(self, rows: NDArray[np.int64], batch: Any) -> Iterator[ScoredRows]:
        """Losses of one batch.

        Raises:
            MemoryError: when the batch does not fit.
            ValueError: when the function does not return one loss a row, or, naming the row, for
                a target that the loss does not take.
        """
        try:
            self._choose(rows, batch)
            for places, part in split_batch(rows.size, batch):
                yield self._score_batch(rows[places], to_device(part, self.device))
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"a batch of {rows.size} rows does not fit into memory; pass a smaller batch_size"
            ) from error

    def _score_batch(self, rows: NDArray[np.int64], batch: Any) -> ScoredRows:
        try:
            losses = torch.as_tensor(self.function(self.model, batch))
        except UnscorableSample as error:
            raise ValueError(f"row {rows[error.place]}: {error}") from error
        if losses.shape != (rows.size,):
            raise ValueError(
                f"the loss function returned shape {tuple(losses.shape)} for a batch of "
                f'{rows.size} samples, ({rows.size},) is needed: use reduction="none" and '
                "average per sample"
            )
        self._compare(rows, batch, losses)
        # A copy: a loss function may give its own buffer, to be filled anew by the next batch.
        return ScoredRows(rows, losses.float().cpu().numpy().copy())

    def _compare(self, rows: NDArray[np.int64], batch: Any, losses: Tensor) -> None:
        """Make sure of the first batch, or of the first of several rows, of a named loss."""
        function = self.function
        if isinstance(function, Classification):
            function = function.unchecked
        elif not isinstance(function, CrossEntropy) and function not in (bce, mse):
            # What a function of the user's own computes is up to that user.
            return
        if not self.compared or max(self.compared) == 1 < rows.size:
            require_losses_of_samples(function, self.model, rows, batch, losses)
            self.compared.append(rows.size)

    def _choose(self, rows: NDArray[np.int64], batch: Any) -> None:
        """Choose the loss by the first rows of the data set, whichever are scored here.

        All ranks, and a pass that goes on, then take the same.
        """
        function = self.function
        if not isinstance(function, Classification) or function.is_chosen:
            return
        if self.read_first is not None and not np.array_equal(rows, np.arange(rows.size)):
            batch = self.read_first(self.rows_per_read)
        parts = [to_device(part, self.device) for _, part in split_batch(rows.size, batch)]
        function.choose(self.model, parts)
