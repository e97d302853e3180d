"""Parameters that no checkpoint gave: loading refuses them, scoring warns of them."""

import math
from typing import Any

from torch import Tensor, nn

from flowdata.errors import FlowDataError, warn

_MOST_NAMED = 5
# A standard deviation of n numbers that follow a law is within five of its own, sigma / sqrt(2 n):
# a false alarm in a million.
_SIGMAS = 5.0


def load_whole(kind: Any, name: str, what: str = "a causal language model", **options: Any) -> Any:
    """A model of transformers, all of whose parameters are in its checkpoint.

    Args:
        kind: class with ``from_pretrained``.
        name: folder or name on the hub.
        what: what it shall be, in words.
        options: for ``from_pretrained``.

    Raises:
        FlowDataError: for what cannot be loaded; naming the parameters that are not there, as
            the head of a model that was saved without one, or with another.
    """
    # transformers 5.23, from_pretrained: a parameter that is tied to one that is there is none
    # of the missing ones.
    model, found = _load(kind, name, what, output_loading_info=True, **options)
    if missing := sorted(found["missing_keys"]):
        saved = getattr(model.config, "architectures", None) or ["another class"]
        raise FlowDataError(
            f"{name} has no {_listed(missing)}: {type(model).__name__} would score with random "
            f"numbers there (it was saved as {saved[0]}); choose a checkpoint of {what} with "
            "its head"
        )
    return model


def load_config(kind: Any, name: str) -> Any:
    """A configuration of transformers.

    Raises:
        FlowDataError: for what cannot be loaded.
    """
    return _load(kind, name, "a model")


def load_tokenizer(kind: Any, name: str, **options: Any) -> Any:
    """A tokenizer of transformers.

    Raises:
        FlowDataError: for what cannot be loaded.
    """
    return _load(kind, name, "a tokenizer", **options)


def _load(kind: Any, name: str, what: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except (ImportError, MemoryError):
        raise
    # Whatever the hub, the configuration, the file of weights or its reader has to say.
    except Exception as error:
        raise FlowDataError(f"{name} cannot be loaded as {what}: {error}") from error


def warn_if_parameters_are_new(model: nn.Module) -> None:
    """Warn of weights that the checkpoint of a model did not have, and nothing has changed since.

    That can be known of models of transformers in the process that loaded them.
    """
    if new := _untouched(model):
        warn(
            f"{_listed(new)} of {type(model).__name__} were not in its checkpoint and are as they "
            "were drawn at random: the losses mean nothing. Load a checkpoint with its head, or "
            "fit a new one first, score_probe"
        )


def _untouched(model: Any) -> list[str]:
    # transformers 5.23, PreTrainedModel._initialize_missing_keys: what a checkpoint gave is marked
    # so, and nothing is in a model that is made from a configuration.
    parameters = dict(model.named_parameters())
    if not any(getattr(value, "_is_hf_initialized", False) for value in parameters.values()):
        return []
    scale = getattr(_config_of(model), "initializer_range", None)
    adapters = set(getattr(model, "peft_config", ()))
    return [
        name
        for name, value in parameters.items()
        if not getattr(value, "_is_hf_initialized", False)
        and not adapters.intersection(name.split("."))
        and _is_as_drawn(value, scale)
    ]


def _config_of(model: Any) -> Any:
    config = getattr(model, "config", None)
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else config


def _is_as_drawn(weight: Tensor, scale: Any) -> bool:
    """Whether a weight matrix was written once, by a law by which they are drawn at first."""
    if weight.ndim < 2 or not weight.is_floating_point() or weight.numel() < 2:
        return False
    # Tensor._version (torch 2.13) counts what was done in place: drawing it is one, a step of an
    # optimizer, a probe and a state that is loaded are others.
    if weight._version > 1:  # noqa: SLF001
        return False
    values = weight.detach().float()
    spread, mean = float(values.std()), float(values.mean())
    # nn.Linear.reset_parameters (torch 2.13): uniform up to 1 / sqrt(inputs).
    edge = 1 / math.sqrt(weight[0].numel())
    laws = [edge / math.sqrt(3)] if float(values.abs().max()) <= edge else []
    laws += [float(scale)] if isinstance(scale, int | float) else []
    return any(
        abs(spread - law) < _SIGMAS * law / math.sqrt(2 * values.numel()) + 2e-3 * law
        and abs(mean) < _SIGMAS * law / math.sqrt(values.numel())
        for law in laws
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
