"""What tensor subclasses need of torch that has no public name: all of it, in one place."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

Anything = TypeVar("Anything", bound=Callable[..., Any])


def subclasses_off() -> AbstractContextManager[None]:
    """Inside it, operations see tensors of our classes as plain ones, and ask them nothing."""
    # torch 2.13: its notes "Extending PyTorch" give this as the way for subclasses.
    return torch._C.DisableTorchFunctionSubclass()  # noqa: SLF001


def left_to_eager_mode(function: Anything) -> Anything:
    """A function that torch.compile calls as it is, where its graph breaks.

    Without torch's decorator it is the function itself.
    """
    # torch 2.13, `torch._compile._disable_dynamo`, by which torch.optim leaves its own
    # steps to eager mode. The public `torch.compiler.disable` is the same, but imports the
    # compiler at once, which takes seconds; this imports it with the first call.
    decorate = getattr(getattr(torch, "_compile", None), "_disable_dynamo", None)
    return function if decorate is None else cast(Anything, decorate(function))
