"""Content hashes by which a loss table recognises its model and its data set."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from flowdata.table.digest import Digest

RANDOM = "random"
"""Fingerprint of a transform that makes something else of a row each time."""

_ROWS_READ = 16


def model_fingerprint(model: nn.Module, *, adapters: bool = False) -> str:
    """A hash of all parameters and saved buffers: names, shapes, dtypes and values.

    A PEFT model has the hash of its base model, unless ``adapters`` are to count; a model that
    is compiled or wrapped for several devices has that of the model inside.
    """
    model = _unwrap(model)
    state: dict[str, torch.Tensor] = model.state_dict()
    if not adapters and hasattr(model, "peft_config"):
        state = _base_state(model)
    # torch 2.13, OptimizedModule: a compiled module, also one inside, is under _orig_mod.
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    digest = Digest()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.mark(name)
            digest.feed(tensor)
    return digest.hexdigest()


def _unwrap(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _base_state(model: Any) -> dict[str, torch.Tensor]:
    """The state of the model inside a PEFT model, under the names it had before."""
    # peft 0.21: a tuned layer (BaseTunerLayer) keeps the layer it replaced as base_layer, one that
    # is trained whole (ModulesToSaveWrapper) its first state as original_module.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    adapted = {
        f"{name}." for name, module in inner.named_modules() if hasattr(module, "base_layer")
    } | {f"{name}." for name, module in inner.named_modules() if hasattr(module, "original_module")}
    kept = {}
    for name, tensor in inner.state_dict().items():
        plain = name
        for prefix in adapted:
            if name.startswith(prefix):
                part, _, rest = name.removeprefix(prefix).partition(".")
                plain = prefix + rest if part in ("base_layer", "original_module") else ""
        if plain:
            kept[plain] = tensor
    return kept


def dataset_fingerprint(dataset: Any) -> str | None:
    """A hash of the length and of up to 16 rows spread evenly over a map-style data set.

    None where nothing in the rows has content that can be hashed, or they read differently twice
    (random augmentation). A ``datasets.Dataset`` is read without its format and transform: the
    fingerprint it keeps itself changes with the time stamp of its file.
    """
    plain = getattr(dataset, "with_format", None)
    dataset = plain(None) if callable(plain) else dataset
    first, again = _hash_rows(dataset), _hash_rows(dataset)
    same = first.hexdigest() == again.hexdigest()
    return first.hexdigest() if same and first.has_content else None


def transform_fingerprint(dataset: Any) -> str | None:
    """A hash of what the transform of a ``datasets.Dataset`` makes of up to 16 rows.

    None for data without a transform, `RANDOM` where it makes something else each time.
    """
    known = getattr(dataset, "format", None)
    if not isinstance(known, Mapping) or known.get("type") != "custom":
        return None
    first, again = _hash_rows(dataset).hexdigest(), _hash_rows(dataset).hexdigest()
    return first if first == again else RANDOM


def code_fingerprint(function: Any) -> str:
    """A hash of what a function computes: its code, constants, defaults and closure.

    Functions it calls by name are not followed. It differs between versions of Python.
    """
    digest = Digest()
    digest.feed_callable(function)
    return digest.hexdigest()


def reads_the_same_twice(dataset: Any) -> bool:
    """Whether row 0 has the same content when it is read again; True if it cannot be told."""
    first, again = _hash_rows(dataset, most=1), _hash_rows(dataset, most=1)
    return first.hexdigest() == again.hexdigest()


def _hash_rows(dataset: Any, most: int = _ROWS_READ) -> Digest:
    length = len(dataset)
    digest = Digest()
    digest.mark(str(length))
    digest.has_content = length == 0
    for row in rows_read(length, most):
        digest.feed(dataset[row])
    return digest


def rows_read(length: int, most: int = _ROWS_READ) -> list[int]:
    """The rows by which a data set of so many is recognised."""
    rows: list[int] = np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist()
    return rows
