"""Digest: a hash of values by their content, the same in every process.

Not that of `datasets.fingerprint.Hasher` (datasets 5.2, dill 0.4), which hashes pickles. There the
frozenset that Python makes of ``x in {"a", "b"}`` is written in hash order, another one in each
process; an imported function is its name, whatever its code; and a function of a script is written
with the globals it names, be they a model of gigabytes, or a counter that changes with each call.
"""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType
from typing import Any
from uuid import UUID

import numpy as np
import torch
import xxhash
from torch import nn

# Values whose repr is their content.
_HASHED_BY_REPR = (
    *(type(None), bool, int, float, complex),
    *(date, time, timedelta, Decimal, UUID, PurePath, Enum),
)


class Digest:
    """A hash of values, each with its type and size, so that no two values look alike.

    A value whose content cannot be read leaves the name of its type; ``has_content`` tells
    whether there was any other.
    """

    def __init__(self) -> None:
        self._hash = xxhash.xxh3_128()
        self._inside: set[int] = set()
        self.has_content = False

    def hexdigest(self) -> str:
        """The hash of all that was added, 32 hexadecimal digits."""
        return self._hash.hexdigest()

    def mark(self, text: str) -> None:
        """Add a text that is no value: a name, or the type of what follows."""
        self._hash.update(text.encode())

    def feed(self, value: Any) -> None:
        """Add a value and all that is in it."""
        if self._feed_content(value):
            self.has_content = True
        # A list may hold itself.
        elif id(value) in self._inside:
            self.mark("again")
        else:
            self._inside.add(id(value))
            self._feed_parts(value)
            self._inside.remove(id(value))

    def feed_callable(self, function: Any) -> None:
        """Add what a function or an object that is called computes: code and what it holds.

        Functions that it calls by name are not followed.
        """
        known = isinstance(function, FunctionType | MethodType | partial | nn.Module)
        self.feed(function if known else _parts_of_instance(function))

    def _feed_content(self, value: Any) -> bool:
        """Add a value that has no parts; whether it is one."""
        if isinstance(value, torch.Tensor) and value.layout == torch.strided:
            # Views that conjugate, negate or transpose share their memory with other values.
            dense = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            self.mark(f"tensor {value.dtype} {tuple(value.shape)}")
            self._hash.update(dense.view(torch.uint8).numpy().data)
        elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            self.mark(f"array {value.dtype} {value.shape}")
            self._hash.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, bytes | str):
            # Half a character, as what was cut in JSON ends with, is no error of whoever hashes.
            content = value.encode(errors="surrogatepass") if isinstance(value, str) else value
            self.mark(f"{type(value).__name__} {len(content)} ")
            self._hash.update(content)
        elif isinstance(value, _HASHED_BY_REPR):
            self.mark(f"{type(value).__name__} {value!r} ")
        elif is_image(value):
            self.mark(f"image {getattr(value, 'mode', '')} {value.size}")
            self._hash.update(value.tobytes())
        else:
            return False
        return True

    def _feed_parts(self, value: Any) -> None:
        if isinstance(value, Mapping):
            self.mark(f"mapping {len(value)}")
            # A row is the same one in whatever order a file has its columns.
            for key in sorted(value, key=repr):
                # Keys alone are no content: a row of values that cannot be read has them too.
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
        elif (parts := _parts_of_function(value)) is not None:
            self.mark(f"code {type(value).__name__}")
            self.feed(parts)
        else:
            self.mark(f"kind {getattr(value, '__qualname__', type(value).__qualname__)} ")


def is_image(value: Any) -> bool:
    """Whether a value has bytes and a size, as images of PIL do, and is no array."""
    array = isinstance(value, np.ndarray | np.generic)
    return hasattr(value, "tobytes") and hasattr(value, "size") and not array


def _parts_of_function(value: Any) -> tuple[Any, ...] | None:
    """What decides what a function, or something made of functions, computes."""
    match value:
        # Not co_linetable: a comment that moves the lines changes nothing that is computed.
        case CodeType():
            return value.co_code, value.co_names, value.co_consts
        case FunctionType():
            return (
                value.__qualname__,
                value.__code__,
                value.__defaults__,
                value.__kwdefaults__,
                tuple(map(_cell_contents, value.__closure__ or ())),
            )
        case MethodType():
            return value.__func__, *_parts_of_instance(value.__self__)
        case partial():
            return value.func, value.args, value.keywords
        case nn.Module():
            # Hooks and other private state of torch differ from release to release, and the mode
            # is not the module's own: scoring sets it.
            names = ("_parameters", "_buffers", "_modules")
            public = {
                name: part
                for name, part in vars(value).items()
                if name in names or not (name.startswith("_") or name == "training")
            }
            return type(value).__qualname__, type(value).forward, public
    return None


def _parts_of_instance(value: Any) -> tuple[Any, ...]:
    """The class of an object that is called, its code, and what the object holds."""
    if isinstance(value, nn.Module):
        return (value,)
    call = getattr(type(value), "__call__", None)  # noqa: B004
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return name, call, getattr(value, "__dict__", None)


def _cell_contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # The variable has no value yet.
        return "empty"
