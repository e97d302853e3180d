"""What the forward of a language model takes, and samples as it takes them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.language.causality import NotCausalError
from flowdata.scoring.layouts.token_rows import IGNORED, MEDIA, Tokens
from flowdata.scoring.models.inference import out_of_memory

ANY = np.iinfo(np.int64).min
"""The least label, where all below 0 say that a token is not scored."""


def accepted_names(model: Any) -> frozenset[str]:
    """Names of what a model can be given, also through the keyword arguments it passes on."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    names, passes_on = _parameters(inner)
    if passes_on:
        for module in inner.modules():
            of_module, _ = _parameters(module)
            if "input_ids" in of_module:
                names |= of_module
    return frozenset(names)


def _parameters(module: nn.Module) -> tuple[set[str], bool]:
    """Names of the arguments of forward, and whether it takes any other."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # Not written in Python.
        return set(), False
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return (
        {parameter.name for parameter in parameters if parameter.kind not in variable},
        any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters),
    )


def pad_right(values: Sequence[Tensor], with_value: float = 0) -> Tensor:
    """Values of several rows as one tensor, padded on the right."""
    return nn.utils.rnn.pad_sequence([*values], batch_first=True, padding_value=with_value)


def pad_tokens(
    samples: Sequence[Tokens], pad: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and labels of shape (samples, longest), padded on the right."""
    width = max(max(sample.ids.size for sample in samples), 1)
    ids = np.full((len(samples), width), pad, dtype=np.int64)
    labels = np.full((len(samples), width), IGNORED, dtype=np.int64)
    for number, sample in enumerate(samples):
        ids[number, : sample.ids.size] = sample.ids
        labels[number, : sample.labels.size] = sample.labels
    return ids, labels


def require_known(
    rows: NDArray[np.int64],
    values: Sequence[NDArray[np.int64]],
    limit: int | None,
    *,
    what: str = "token",
    least: int = 0,
) -> None:
    """Make sure that a model knows all tokens, or labels, of some rows.

    Args:
        rows: numbers of the rows.
        values: those of each row.
        limit: how many there are; None where that is not known.
        what: is counted.
        least: of the values; labels may be below 0.

    Raises:
        ValueError: naming the row.
    """
    joined = np.concatenate(values)
    unknown = joined < least if limit is None else (joined < least) | (joined >= limit)
    if unknown.any():
        place = int(unknown.argmax())
        row = np.repeat(rows, [part.size for part in values])[place]
        of_whom = (
            "the tokenizer is not that of the model, or tokens were added to it and not to the "
            "model (resize_token_embeddings)"
            if what == "token"
            else "-100 is the label of what is not scored"
        )
        raise ValueError(
            f"row {row} has {what} {joined[place]}, the model knows {what}s 0 to "
            f"{(limit or 0) - 1}: {of_whom}"
        )


class ModelInputs:
    """Makes of the further inputs of samples what the model takes as a batch.

    A row has its image as (channels, height, width) or (images, channels, height, width), and its
    floats in single precision. Models differ in whether images of several samples follow each other
    or have an axis of samples, and in whether they convert floats, so that the form a model takes
    is found out by trying.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._taken: dict[frozenset[tuple[str, int]], int] = {}

    def call(
        self, samples: Sequence[Tokens], forward: Callable[[Mapping[str, Tensor]], Tensor]
    ) -> Tensor:
        """What ``forward`` gives for the inputs of samples that can be one batch.

        Raises:
            ValueError: when the model takes them in no form.
        """
        if not samples[0].inputs:
            return forward({})
        if samples[0].alone:
            (sample,) = samples
            forms = self._forms(sample)
        else:
            forms = [_pad_inputs(samples)]
        kind = frozenset((name, value.ndim) for name, value in samples[0].inputs.items())
        order = sorted(range(len(forms)), key=lambda number: number != self._taken.get(kind))
        reason: Exception | None = None
        for number in order:
            try:
                found = forward(self._to_device(forms[number]))
            # What a model raises for a shape, a type or a value is up to its code.
            except Exception as error:
                if out_of_memory(error) or isinstance(error, NotCausalError):
                    raise
                reason = reason or error
                continue
            self._taken[kind] = number
            return found
        given = "; ".join(map(_describe, *zip(*samples[0].inputs.items(), strict=True)))
        raise ValueError(f"the model does not take {given}, of the row: {reason}") from reason

    def _forms(self, sample: Tokens) -> list[dict[str, Tensor]]:
        plain = [_one_image_after_another(sample), _with_axis_of_samples(sample)]
        converted = [
            {
                name: value.to(self._dtype) if value.is_floating_point() else value
                for name, value in form.items()
            }
            for form in plain
        ]
        forms: dict[tuple[Any, ...], dict[str, Tensor]] = {}
        for form in plain + converted:
            forms.setdefault(tuple((v.shape, v.dtype) for v in form.values()), form)
        return list(forms.values())

    def _to_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.to(self._device) for name, value in inputs.items()}


def _describe(name: str, value: Tensor) -> str:
    least, most = value.double().aminmax()
    return f"{name} of shape {tuple(value.shape)}, {least:.4g} to {most:.4g}"


def _pad_inputs(samples: Sequence[Tokens]) -> dict[str, Tensor]:
    """One number a token, padded on the right: no token before sees the padding."""
    return {
        name: pad_right([sample.inputs[name] for sample in samples]) for name in samples[0].inputs
    }


def _one_image_after_another(sample: Tokens) -> dict[str, Tensor]:
    """What is one for each image stays as it is: transformers' Llava, Qwen2-VL, Gemma 3."""

    def form(name: str, value: Tensor) -> Tensor:
        one_of_many = {"pixel_values": 3, "pixel_values_videos": 4, "input_features": 2}
        if name.endswith(("_grid_thw", "_sizes")) or name == "feature_attention_mask":
            one = value.ndim == 1
        elif name.startswith(MEDIA):
            one = value.ndim == one_of_many.get(name, 0)
        else:
            return _with_axis(name, value)
        return value[None] if one else value

    return {name: form(name, value) for name, value in sample.inputs.items()}


def _with_axis_of_samples(sample: Tokens) -> dict[str, Tensor]:
    """All of a row is one sample: transformers' default_data_collator, Idefics, Mllama."""
    return {name: _with_axis(name, value) for name, value in sample.inputs.items()}


def _with_axis(name: str, value: Tensor) -> Tensor:
    if name != "position_ids" or value.ndim == 1:
        return value[None]
    # transformers 5.23, Qwen2VLModel.forward: positions in time, height and width, (3, B, T).
    return value[:, None] if value.ndim == 2 and value.shape[0] > 1 else value
