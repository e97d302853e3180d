"""What a model gives for a batch: its output beside the target, whatever both are called."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

OWN_FUNCTION = "loss=function(model, batch) -> losses"
ONE_BY_ONE = 'loss="model" for the loss that the model itself computes, one sample at a time'


def predict(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """The output and the target of a batch: (input, target), or a dict with "labels".

    Raises:
        TypeError: for a batch of another kind; then a loss function of one's own is needed.
        ValueError: for inputs that the model does not take.
    """
    match batch:
        case (inputs, target):
            output = run_forward(model, inputs)
        case Mapping() if "labels" in batch:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            output, target = run_forward(model, **inputs), batch["labels"]
        case _:
            raise TypeError(
                f"a batch must be (input, target) or a dict with 'labels', got {type(batch)}"
                f"{_parts_of(batch)}; pass {ONE_BY_ONE}, or {OWN_FUNCTION} for any other kind"
            )
    logits = _logits_in(output)
    if not isinstance(logits, Tensor) or not isinstance(target, Tensor):
        raise TypeError(
            f"model output and target must be tensors, got {type(logits)} and {type(target)}; "
            f"pass {ONE_BY_ONE}, or {OWN_FUNCTION} for any other kind"
        )
    if not (logits.ndim and target.ndim) or len(logits) != len(target):
        raise ValueError(
            f"the model gave an output of shape {tuple(logits.shape)} for targets of shape "
            f"{tuple(target.shape)}: both need the samples of the batch as their first axis"
        )
    return logits.float(), target.to(logits.device)


def _parts_of(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f" with {[*map(str, batch)]}"
    return f" of {len(batch)}" if isinstance(batch, list | tuple) else ""


def _logits_in(output: Any) -> Any:
    """The logits in what a model gave, whatever it calls them."""
    # Models of transformers give an output object (ModelOutput), others the tensor itself.
    logits = getattr(output, "logits", output)
    if isinstance(logits, Mapping):
        # torchvision 0.28, segmentation models: out, and aux of a second head.
        if "out" in logits and logits.get("aux") is not None:
            raise ValueError(
                "the model gives an output and an auxiliary one (out, aux), whose losses are added "
                "in training: switch the second off (model.aux_classifier = None) for the loss of "
                f"the first, or pass {OWN_FUNCTION}"
            )
        logits = next((logits[name] for name in ("logits", "out") if name in logits), logits)
    return logits


class ModelInputError(ValueError, RuntimeError):
    """A batch that a model does not take. What torch raises of it is a RuntimeError."""


def run_forward(model: nn.Module, *inputs: Any, **named: Any) -> Any:
    """What a model gives for a batch.

    Raises:
        ValueError: saying what was given, for a batch that it does not take.
    """
    try:
        return model(*inputs, **named)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # Whatever the code of a model raises for a batch that it does not take.
    except Exception as error:
        given = [*map(_described, inputs), *(f"{key}={_described(named[key])}" for key in named)]
        advice = _advice(model, [*inputs, *named.values()], str(error))
        raise ModelInputError(
            f"{type(model).__name__} does not take the batch ({', '.join(given)}): "
            f"{str(error).rstrip('.') if advice else error}{advice}"
        ) from error


def _advice(model: Any, values: list[Any], said: str) -> str:
    # torch 2.13, default_collate: a list of numbers becomes a list of tensors, one a place.
    if any(map(_are_tensors_in_lists, values)):
        return '; give tensors instead of lists, as with_format("torch") does'
    # transformers 5.23, GenericForSequenceClassification.forward, and the like.
    if "no padding token" in said:
        return "; set model.config.pad_token_id = tokenizer.pad_token_id, or pass batch_size=1"
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        return '; an encoder-decoder that makes text is scored by loss="seq2seq", see Seq2Seq'
    return ""


def _are_tensors_in_lists(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return isinstance(value[0], Tensor) or _are_tensors_in_lists(value[0])


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return f"{name} {tuple(value.shape)} on {value.device}"
    return type(value).__name__
