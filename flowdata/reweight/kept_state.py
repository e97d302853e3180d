"""A function is called once more, for a check, and leaves no trace: random numbers, counters."""

import functools
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DEPTH, _OBJECTS = 4, 500
"""How far, and to how many objects, it is followed what a function holds."""
_SIZE = 1 << 16
"""Elements of the largest array, list or dict that is kept."""

_Restore = Callable[[], object]
_FIXED = str | bytes | int | float | complex | type | types.ModuleType | types.BuiltinFunctionType
_LIBRARIES = frozenset("builtins flowdata numpy tokenizers torch transformers trl".split())
"""Where no functions are followed."""
_MISSING = object()


@contextmanager
def kept_state(function: Any) -> Iterator[bool]:
    """Give whether a function can be called inside without a trace; what it changes is put back.

    That is the state of random generators, attributes, variables of a closure, globals, small
    containers and arrays, as far as it holds them itself. An iterator cannot be put back.
    """
    restores, repeatable = _restores(function)
    try:
        yield repeatable
    finally:
        for restore in reversed(restores):
            restore()


def _restores(function: Any) -> tuple[list[_Restore], bool]:
    restores = _of_libraries()
    left, seen = [(function, 0)], dict[int, Any]()
    while left and len(seen) < _OBJECTS:
        value, depth = left.pop(0)
        if id(value) in seen or isinstance(value, _FIXED):
            continue
        seen[id(value)] = value
        if isinstance(value, Iterator):
            return restores, False
        restore, held = _kept(value)
        restores += restore
        if depth < _DEPTH:
            left += [(each, depth + 1) for each in held]
    return restores, True


def _kept(value: Any) -> tuple[list[_Restore], list[Any]]:
    """How to put back what may change in an object, and the objects that it holds."""
    match value:
        case torch.Generator():
            return [functools.partial(value.set_state, value.get_state())], []
        case np.random.RandomState():
            return [functools.partial(value.set_state, value.get_state())], []
        case random.Random():
            return [functools.partial(value.setstate, value.getstate())], []
        case np.random.Generator():
            return [functools.partial(setattr, value.bit_generator, "state", _state(value))], []
        case Tensor():
            kept = value.layout == torch.strided and value.numel() <= _SIZE
            # What processes share may change by another one.
            kept = kept and not value.is_shared()  # type: ignore[no-untyped-call]
            return [_of_array(value.data, value.detach().clone())] if kept else [], []
        case np.ndarray():
            kept = value.size <= _SIZE and value.flags.writeable
            return [_of_array(value, value.copy())] if kept else [], []
        case functools.partial():
            return [], [value.func, *value.args, *value.keywords.values()]
        case types.MethodType():
            return [], [value.__self__, value.__func__]
        case types.FunctionType():
            return _of_function(value)
        case dict():
            return _of_names(value) if len(value) <= _SIZE else ([], [])
        case list() | set() | deque():
            return ([_of_container(value)], list(value)) if len(value) <= _SIZE else ([], [])
        case tuple():
            return [], list(value[:_OBJECTS])
    restores, held = _of_names(value.__dict__) if hasattr(value, "__dict__") else ([], [])
    for base in type(value).__mro__:
        if not _is_of_library(base):
            held += [each for each in vars(base).values() if isinstance(each, types.FunctionType)]
    return restores, held


def _is_of_library(value: Any) -> bool:
    return str(value.__module__).partition(".")[0] in _LIBRARIES


def _of_function(function: types.FunctionType) -> tuple[list[_Restore], list[Any]]:
    restores, held = list[_Restore](), list[Any]()
    if _is_of_library(function):
        return restores, held
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        restores.append(functools.partial(setattr, cell, "cell_contents", value))
        held.append(value)
    space = function.__globals__
    named = {name: space[name] for name in _names(function.__code__) if name in space}
    restores.append(functools.partial(_put_back, space, named))
    return restores, held + list(named.values()) + list(function.__defaults__ or ())


def _names(code: types.CodeType) -> set[str]:
    inner = [_names(each) for each in code.co_consts if isinstance(each, types.CodeType)]
    return set(code.co_names).union(*inner)


def _of_array(array: Any, before: Any) -> _Restore:
    def restore() -> None:
        # One that nobody may write, a mapped file for one, has not changed.
        if bool(((array != before) & ((array == array) | (before == before))).any()):
            array[...] = before

    return restore


def _of_names(space: dict[Any, Any]) -> tuple[list[_Restore], list[Any]]:
    before = dict(space)

    def restore() -> None:
        for name in [name for name in space if name not in before]:
            del space[name]
        _put_back(space, before)

    return [restore], list(before.values())


def _put_back(space: dict[Any, Any], before: dict[Any, Any]) -> None:
    for name, value in before.items():
        if space.get(name, _MISSING) is not value:
            space[name] = value


def _of_container(values: Any) -> _Restore:
    before = list(values)

    def restore() -> None:
        if list(values) != before:
            values.clear()
            (values.update if isinstance(values, set) else values.extend)(before)

    return restore


def _state(generator: np.random.Generator) -> Any:
    return generator.bit_generator.state


def _of_libraries() -> list[_Restore]:
    """The generators of torch, numpy and Python that all share."""
    restores: list[_Restore] = [
        functools.partial(torch.set_rng_state, torch.get_rng_state()),
        functools.partial(np.random.set_state, np.random.get_state()),  # noqa: NPY002
        functools.partial(random.setstate, random.getstate()),
    ]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        restores.append(functools.partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state()))
    return restores
