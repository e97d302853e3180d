"""SharedArray: numbers in memory that worker processes share, however these are started."""

from typing import Any

import torch
from numpy.typing import NDArray


class SharedArray:
    """A numpy array, `values`, of zeros that forked and spawned workers read and write too.

    A copy has memory of its own, which its workers share. No operation of torch runs: in a
    process that was forked after its parent had computed, an operation with several threads
    (torch's zeros of 32,768 numbers, its `share_memory_`) waits for ever for threads that a fork
    does not copy.

    Args:
        length: how many.
        dtype: of each.
    """

    def __init__(self, length: int, dtype: torch.dtype) -> None:
        self._tensor = _shared_zeros(length, dtype)
        self.values: NDArray[Any] = self._tensor.numpy()

    def __deepcopy__(self, _: dict[int, Any]) -> "SharedArray":
        copied = SharedArray(len(self.values), self._tensor.dtype)
        copied.values[:] = self.values
        return copied

    def __getstate__(self) -> torch.Tensor:
        # torch tells a spawned process where the memory is, and copies for anyone else.
        return self._tensor

    def __setstate__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        if not tensor.is_shared():  # type: ignore[no-untyped-call]
            self._tensor = _shared_zeros(len(tensor), tensor.dtype)
            self._tensor.numpy()[:] = tensor.numpy()
        self.values = self._tensor.numpy()


def _shared_zeros(length: int, dtype: torch.dtype) -> torch.Tensor:
    # torch 2.13, torch/storage.py: `_new_shared` maps a new file of zeros, for `default_collate`.
    allocate = getattr(torch.UntypedStorage, "_new_shared", None)
    if allocate is None:
        zeros = torch.zeros(length, dtype=dtype)
        return zeros.share_memory_()  # type: ignore[no-any-return, no-untyped-call]
    # `set_` has no type for a storage that is untyped.
    empty: Any = torch.tensor([], dtype=dtype)
    shared: torch.Tensor = empty.set_(allocate(length * dtype.itemsize), 0, (length,))
    return shared
