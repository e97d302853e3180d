"""The loss that a model computes itself when it is given labels, sample by sample."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowdata.scoring.loss_formulas import Formula

_SAMPLES = 3
"""Samples of a batch that are tried: two losses may be alike by chance on one."""


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
    """
    if "labels" not in parameters_of_forward(model):
        return
    size = _batch_size(batch)
    tried = 0
    for place in range(size):
        alone = _sample(batch, place, size)
        own = _own_loss(model, alone, ignored)
        if own is None:
            return
        if not own.isfinite():
            continue
        # Without labels, as the pass runs it: a decoder may be fed with them.
        output, target = predict(model, alone)
        yield place, own.item(), _rounding(own), _by_each(formulas, output, target)
        tried += 1
        if tried == _SAMPLES:
            return


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
    # transformers 5.23, ForSequenceClassificationLoss: the first labels decide on the
    # problem_type, which stays in the configuration and would be saved with the model.
    config = getattr(model, "config", None)
    known = getattr(config, "problem_type", None)
    try:
        if isinstance(batch, Mapping):
            output = model(**{**batch, "labels": _as_labels(batch["labels"], ignored)})
        else:
            inputs, target = batch
            output = model(inputs, labels=_as_labels(target, ignored))
    # Whatever a model raises for labels that it does not take.
    except Exception:
        return None
    finally:
        if config is not None and hasattr(config, "problem_type"):
            config.problem_type = known
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    return loss.detach().reshape(())


def _as_labels(target: Any, ignored: int) -> Any:
    if not isinstance(target, Tensor) or target.is_floating_point() or target.dtype == torch.bool:
        return target
    return target.long().masked_fill(target == ignored, -100)


def _by_each(formulas: Mapping[str, Formula], output: Tensor, target: Tensor) -> dict[str, float]:
    found = {}
    for name, formula in formulas.items():
        try:
            found[name] = formula(output, target).item()
        except ValueError:  # Not for these shapes or values.
            continue
    return found


def _rounding(loss: Tensor) -> float:
    """By how much a loss of this type may differ from ours, which is of float32."""
    share = max(4 * torch.finfo(loss.dtype).eps, 1e-4)
    return share * (abs(loss.item()) + 0.01)


def _batch_size(batch: Any) -> int:
    """Samples of a batch; 0 for one of a kind that is not known here."""
    if isinstance(batch, Mapping):
        target = batch.get("labels")
    else:
        target = batch[1] if isinstance(batch, list | tuple) and len(batch) == 2 else None
    return len(target) if isinstance(target, Tensor) and target.ndim else 0


def _sample(value: Any, place: int, size: int) -> Any:
    """One sample of a batch, as a batch of one."""
    if isinstance(value, Tensor):
        return value[place : place + 1] if value.ndim and len(value) == size else value
    if isinstance(value, Mapping):
        return {name: _sample(part, place, size) for name, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_sample(part, place, size) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_sample(part, place, size) for part in value)
    return value
