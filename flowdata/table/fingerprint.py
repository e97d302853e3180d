"""Content hashes by which a loss table knows its model and its data set again."""

import functools
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any
from uuid import UUID

import numpy as np
import torch
import xxhash
from torch import nn

RANDOM = "random"
"""Fingerprint of a transform that makes something else of a row each time."""

_ROWS_READ = 16

# Values whose repr is their content.
_WRITTEN = (
    *(type(None), bool, int, float, complex),
    *(date, time, timedelta, Decimal, UUID, PurePath, Enum),
)


def model_fingerprint(model: nn.Module, *, adapters: bool = False) -> str:
    """A hash of all parameters and saved buffers: names, shapes, dtypes and values.

    A PEFT model has the hash of its base model, unless ``adapters`` are to count; a model that
    is compiled or wrapped for several devices has that of the model inside.
    """
    model = _unwrapped(model)
    state: dict[str, torch.Tensor] = model.state_dict()
    if not adapters and hasattr(model, "peft_config"):
        state = _base_state(model)
    # Submodules may be compiled too.
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
    digest = _Digest()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            digest.mark(name)
            digest.feed(tensor)
    return digest.hexdigest()


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


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
    digest = _Digest()
    known = isinstance(function, FunctionType | MethodType | functools.partial | nn.Module)
    digest.feed(function if known else _instance(function))
    return digest.hexdigest()


def reads_the_same_twice(dataset: Any) -> bool:
    """Whether row 0 has the same content when it is read again; True if it cannot be told."""
    first, again = _hash_rows(dataset, most=1), _hash_rows(dataset, most=1)
    return first.hexdigest() == again.hexdigest()


def _hash_rows(dataset: Any, most: int = _ROWS_READ) -> "_Digest":
    length = len(dataset)
    digest = _Digest()
    digest.mark(str(length))
    digest.has_content = length == 0
    for row in np.unique(np.linspace(0, length - 1, min(length, most)).astype(int)).tolist():
        digest.feed(dataset[row])
    return digest


class _Digest:
    """A hash of values, each with its type and size, so that no two values look alike.

    A value whose content cannot be read leaves the name of its type; ``has_content`` tells
    whether there was any other.
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._inside: set[int] = set()
        self.has_content = False

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def mark(self, text: str) -> None:
        self._hash.update(text.encode())

    def feed(self, value: Any) -> None:
        """Add a value and all that is in it."""
        if self._feed_content(value):
            self.has_content = True
        elif id(value) in self._inside:
            self.mark("again")
        else:
            self._inside.add(id(value))
            self._feed_parts(value)
            self._inside.remove(id(value))

    def _feed_content(self, value: Any) -> bool:
        """Add a value that has no parts; whether it is one."""
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self.mark(f"tensor {value.dtype} {tuple(value.shape)}")
            self._hash.update(dense.view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            self.mark(f"array {value.dtype} {value.shape}")
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, bytes | str):
            content = value.encode() if isinstance(value, str) else value
            self.mark(f"{type(value).__name__} {len(content)} ")
            self._hash.update(content)
        elif isinstance(value, _WRITTEN):
            self.mark(f"{type(value).__name__} {value!r} ")
        elif _is_image(value):
            self.mark(f"image {getattr(value, 'mode', '')} {value.size}")
            self._hash.update(value.tobytes())
        else:
            return False
        return True

    def _feed_parts(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self.mark(f"mapping {len(value)}")
            for key in sorted(value, key=repr):
                before = self.has_content
                self.feed(key)
                self.has_content = before
                self.feed(value[key])
        elif isinstance(value, np.ndarray | np.generic):
            self.mark(f"objects {value.shape}")
            self.feed(value.ravel().tolist())
        elif isinstance(value, Sequence | AbstractSet):
            ordered = isinstance(value, Sequence)
            self.mark(f"{'sequence' if ordered else 'set'} {len(value)}")
            for item in value if ordered else sorted(value, key=repr):
                self.feed(item)
        elif is_dataclass(value) and not isinstance(value, type):
            self.mark(type(value).__qualname__)
            self.feed({field.name: getattr(value, field.name) for field in fields(value)})
        elif (parts := _parts_of_code(value)) is not None:
            self.mark(f"code {type(value).__name__}")
            self.feed(parts)
        else:
            self.mark(f"kind {getattr(value, '__qualname__', type(value).__qualname__)} ")


def _is_image(value: Any) -> bool:
    array = isinstance(value, np.ndarray | np.generic)
    return hasattr(value, "tobytes") and hasattr(value, "size") and not array


def _parts_of_code(value: Any) -> tuple[Any, ...] | None:
    """What decides what a function, or something made of functions, computes."""
    match value:
        case CodeType():
            return value.co_code, value.co_names, value.co_consts
        case FunctionType():
            return (
                value.__qualname__,
                value.__code__,
                value.__defaults__,
                value.__kwdefaults__,
                tuple(map(_content, value.__closure__ or ())),
            )
        case MethodType():
            return value.__func__, *_instance(value.__self__)
        case functools.partial():
            return value.func, value.args, value.keywords
        case nn.Module():
            names = ("_parameters", "_buffers", "_modules")
            public = {
                name: part
                for name, part in vars(value).items()
                if name in names or not (name.startswith("_") or name == "training")
            }
            return type(value).__qualname__, type(value).forward, public
    return None


def _instance(value: Any) -> tuple[Any, ...]:
    """The class of an object that is called, its code, and what the object holds."""
    if isinstance(value, nn.Module):
        return (value,)
    call = getattr(type(value), "__call__", None)  # noqa: B004
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return name, call, getattr(value, "__dict__", None)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"
