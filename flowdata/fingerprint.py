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


def model_fingerprint(model: nn.Module) -> str:
    """A hash of all parameters and buffers: names, shapes, dtypes and values."""
    digest = _digest()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _feed(digest, tensor)
    return digest.hexdigest()


def dataset_fingerprint(dataset: Any) -> str | None:
    """A hash of the length and of up to 16 rows spread evenly over a map-style data set.

    A ``datasets.Dataset`` keeps a fingerprint of its own, which is used instead. None where a
    sample is of a kind that cannot be hashed, or reads differently twice (random augmentation).
    """
    own = getattr(dataset, "_fingerprint", None)
    if isinstance(own, str):
        return own
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
        dense = value.detach().cpu().contiguous().reshape(-1)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        digest.update(dense.view(torch.uint8).numpy().data)
    elif isinstance(value, np.ndarray | np.generic) and value.dtype != object:
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
    elif isinstance(value, Sequence):
        digest.update(f"sequence {len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif hasattr(value, "tobytes") and hasattr(value, "size"):
        digest.update(f"image {getattr(value, 'mode', '')} {value.size}".encode())
        digest.update(value.tobytes())
    else:
        raise _Unhashable(type(value))
