"""Content hashes by which a loss table knows its model and its data set again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

_ROWS_READ = 16


class _Unhashable(Exception):
    """A sample of a kind that has no stable byte representation."""


def model_fingerprint(model: nn.Module, *, adapters: bool = False) -> str:
    """A hash of all parameters and saved buffers: names, shapes, dtypes and values.

    A PEFT model has the hash of its base model, unless ``adapters`` are to count.
    """
    state: dict[str, torch.Tensor] = model.state_dict()
    if not adapters and hasattr(model, "peft_config"):
        state = _base_state(model)
    digest = _digest()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(name.encode())
            _feed(digest, tensor)
    return digest.hexdigest()


def _base_state(model: Any) -> dict[str, torch.Tensor]:
    """The state of the model inside a PEFT model, under the names it had before."""
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

    None where a sample is of a kind that cannot be hashed, or reads differently twice (random
    augmentation). A ``datasets.Dataset`` is read without its format and transform: the
    fingerprint it keeps itself changes with the time stamp of its file.
    """
    plain = getattr(dataset, "with_format", None)
    dataset = plain(None) if callable(plain) else dataset
    try:
        first = _hash_rows(dataset)
        return first if first == _hash_rows(dataset) else None
    except _Unhashable:
        return None


def reads_the_same_twice(dataset: Any) -> bool:
    """Whether row 0 has the same content when it is read again; True if it cannot be told."""
    try:
        return _hash_rows(dataset, most=1) == _hash_rows(dataset, most=1)
    except _Unhashable:
        return True


def _hash_rows(dataset: Any, most: int = _ROWS_READ) -> str:
    length = len(dataset)
    digest = _digest()
    digest.update(str(length).encode())
    for row in np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist():
        _feed(digest, dataset[row])
    return digest.hexdigest()


def _digest() -> xxhash.xxh3_128:
    return xxhash.xxh3_128()


def _feed(digest: xxhash.xxh3_128, value: Any) -> None:
    """Feed a value with its type and size, so that no two values look alike."""
    if isinstance(value, torch.Tensor):
        if value.layout != torch.strided:
            raise _Unhashable(type(value))
        dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        digest.update(dense.view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        digest.update(f"array {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes | str):
        content = value.encode() if isinstance(value, str) else value
        digest.update(f"{type(value).__name__} {len(content)} ".encode() + content)
    elif value is None or isinstance(value, bool | int | float):
        digest.update(f"{type(value).__name__} {value!r} ".encode())
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)}".encode())
        for key in sorted(value, key=repr):
            _feed(digest, key)
            _feed(digest, value[key])
    elif isinstance(value, np.ndarray) and value.dtype == object:
        digest.update(f"objects {value.shape}".encode())
        _feed(digest, value.ravel().tolist())
    elif isinstance(value, Sequence):
        digest.update(f"sequence {len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "tobytes") and hasattr(value, "size") and not isinstance(value, np.ndarray):
        digest.update(f"image {getattr(value, 'mode', '')} {value.size}".encode())
        digest.update(value.tobytes())
    else:
        raise _Unhashable(type(value))
