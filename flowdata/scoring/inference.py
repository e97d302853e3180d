"""Running a model over a data set in order, without touching what it was before."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode; each module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def batches(
    dataset: Any,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    progress: bool,
    what: str,
) -> Iterator[tuple[int, int, Any]]:
    """Batches of a map-style data set in its order: (first row, rows, batch on the device)."""
    _check_data(dataset)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate_fn,
        # The loader seeds its workers from here, and the caller's random numbers stay untouched.
        generator=torch.Generator(),
    )
    rows = len(dataset)
    with tqdm(total=rows, desc=what, unit="samples", disable=not progress) as bar:
        for start, batch in zip(range(0, rows, batch_size), loader, strict=True):
            size = min(batch_size, rows - start)
            yield start, size, move(batch, device)
            bar.update(size)


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device asked for, else that of the model's first parameter, else the CPU."""
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def move(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on ``device``."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: move(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(move(value, device) for value in batch)
    return batch


def _check_data(dataset: Any) -> None:
    if isinstance(dataset, DataLoader):
        raise TypeError(
            "pass the data set, not a DataLoader (its shuffling would lose which loss belongs to "
            "which row); batch_size, collate_fn and num_workers are arguments of their own"
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"a map-style data set is needed, got {type(dataset)}")
    if len(dataset) == 0:
        raise ValueError("the data set is empty: there is nothing to score")
