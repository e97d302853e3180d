"""The loss that a model computes itself when it is given labels, sample by sample."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowdata.scoring.models.loss_formulas import IGNORED, Formula

SAMPLES_TRIED = 3
"""Samples of a batch that are tried: two losses may be alike by chance on one."""

_FLAGS = "multi_label_classification"
_AXES_OF_PIXELS = 3
_ROUNDING = 1e-5
# Another loss, not another order of sums: TF32 moves losses by some tenths of a percent.
UNLIKE = 0.05


def losses_side_by_side(
    model: nn.Module,
    batch: Any,
    ignored: int,
    formulas: Mapping[str, Formula],
    predict: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
) -> Iterator[tuple[int, float, float, dict[str, float]]]:
    """Of a few samples: (place, the model's own loss, its rounding, the loss by each formula).

    Nothing for a model whose ``forward`` takes no ``labels``, or gives no loss for these. Each
    sample is alone in its batch: a mean over several could not be told apart.

    Raises:
        ValueError: for labels that do not suit what the configuration calls the problem.
    """
    if "labels" not in parameters_of_forward(model):
        return
    size = samples_of(batch)
    tried = 0
    for place in range(size):
        alone = some_samples(batch, place, size)
        try:
            own = _own_loss(model, alone, ignored)
        # Whatever a model raises for labels that it does not take.
        except Exception as error:
            kind = getattr(getattr(model, "config", None), "problem_type", None)
            if kind is None:
                return
            # What is wrong with the inputs is said here.
            predict(model, alone)
            raise ValueError(
                f"{type(model).__name__} is configured for the problem_type {kind!r}, and takes no "
                f"such labels for it: {error}"
            ) from error
        if own is None:
            return
        if not own.isfinite():
            continue
        # Without labels, as the pass runs it: a decoder may be fed with them.
        output, target = predict(model, alone)
        yield place, own.item(), rounding(own), _by_each(formulas, output, target)
        tried += 1
        if tried == SAMPLES_TRIED:
            return


def differs_from_own(model: nn.Module, batch: Any, ignored: int, losses: Tensor) -> str:
    """How the last loss of a batch differs from the model's own, in words; "" where it does not.

    Nothing where that is a matter of rounding: in low precision, which moves the losses of a batch
    against those of a sample alone.
    """
    place = samples_of(batch) - 1
    if place < 0 or not is_precise(model, losses.device):
        return ""
    found, name = losses[place], type(model).__name__
    try:
        own = _own_loss(model, some_samples(batch, place, place + 1), ignored)
    # Whatever a model raises for labels that it does not take.
    except Exception as error:
        return f"{name} computes no loss of it: {error}"
    if own is None or not (own.isfinite() and found.isfinite()):
        return ""
    if abs(own.item() - found.item()) <= UNLIKE * (abs(own.item()) + 0.1):
        return ""
    return f"{name} computes the loss {own.item():.6g} of it, not {found.item():.6g}"


def is_precise(model: nn.Module, device: torch.device) -> bool:
    """Whether a model computes in single precision at least, as far as one can see."""
    return not torch.is_autocast_enabled(device.type) and all(
        parameter.dtype.itemsize >= 4
        for parameter in model.parameters()
        if parameter.is_floating_point()
    )


def ignored_by(model: Any, target: Any) -> int:
    """The index of a class that the model's own loss leaves out of such targets."""
    config = getattr(model, "config", None)
    if getattr(target, "ndim", 0) == _AXES_OF_PIXELS:
        # transformers 5.23: SegformerForSemanticSegmentation and UperNetForSemanticSegmentation.
        for name in ("semantic_loss_ignore_index", "loss_ignore_index"):
            if isinstance(found := getattr(config, name, None), int):
                return found
    return IGNORED


def loss_in(output: Any) -> Tensor | None:
    """The loss in what forward gave: under its name, or first of a tuple; None without one."""
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        first = output[0] if output else None
        # Logits of one sample may be one number too, and have an axis.
        return first.detach() if isinstance(first, Tensor) and not first.ndim else None
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    return loss.detach().reshape(())


@contextlib.contextmanager
def keeping_problem_type(model: Any) -> Iterator[None]:
    """Leave the configuration of a model as it was.

    transformers 5.23, ForSequenceClassificationLoss: the first labels decide on the problem_type,
    which stays in the configuration and would be saved with the model.
    """
    config = getattr(model, "config", None)
    known = getattr(config, "problem_type", None)
    try:
        yield
    finally:
        if config is not None and hasattr(config, "problem_type"):
            config.problem_type = known


def rounding(loss: Tensor) -> float:
    """By how much a loss of this type may differ from ours, which is of float32."""
    share = max(4 * torch.finfo(loss.dtype).eps, _ROUNDING)
    return share * (abs(loss.item()) + 0.01)


def parameters_of_forward(model: Any) -> frozenset[str]:
    """Names of the parameters of forward, of the model that is inside wrappers."""
    while True:
        if isinstance(model, nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            break
    try:
        return frozenset(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # Not written in Python.
        return frozenset()


def _own_loss(model: nn.Module, batch: Any, ignored: int) -> Tensor | None:
    """The loss that the model gives for one sample; None where it gives none for such labels."""
    with keeping_problem_type(model):
        if isinstance(batch, Mapping):
            labels = _as_labels(model, batch["labels"], ignored)
            return loss_in(model(**{**batch, "labels": labels}))
        inputs, target = batch
        return loss_in(model(inputs, labels=_as_labels(model, target, ignored)))


def _as_labels(model: Any, target: Any, ignored: int) -> Any:
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        return target
    # transformers 5.23, ForSequenceClassificationLoss: it takes flags that are floats alone.
    if getattr(getattr(model, "config", None), "problem_type", None) == _FLAGS:
        return target.float()
    return target.long().masked_fill(target == ignored, ignored_by(model, target))


def _by_each(formulas: Mapping[str, Formula], output: Tensor, target: Tensor) -> dict[str, float]:
    found = {}
    for name, formula in formulas.items():
        try:
            found[name] = formula(output, target).item()
        except ValueError:  # Not for these shapes or values.
            continue
    return found


def target_of(batch: Any) -> Any:
    """The target of a batch; None of one of a kind that is not known here."""
    if isinstance(batch, Mapping):
        return batch.get("labels")
    return batch[1] if isinstance(batch, list | tuple) and len(batch) == 2 else None


def samples_of(batch: Any) -> int:
    """Samples of a batch; 0 of one of a kind that is not known here."""
    target = target_of(batch)
    return len(target) if isinstance(target, Tensor) and target.ndim else 0


def some_samples(value: Any, place: int, size: int, count: int = 1) -> Any:
    """One sample of a batch of this size, or ``count`` of them, as a batch."""
    if isinstance(value, Tensor):
        return value[place : place + count] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {name: some_samples(part, place, size, count) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(some_samples(part, place, size, count) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(some_samples(part, place, size, count) for part in value)
    return value
