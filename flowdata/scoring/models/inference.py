"""Running a model over a data set in order, without touching what it was before."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

_Item = TypeVar("_Item")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; each module gets its own mode back.

    Not inference mode: what a module keeps from its first forward pass (rotary tables, masks)
    could never take part in a training again.
    """
    # Each its own: fine-tuning often keeps, say, batch norm in evaluation mode.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Switch the adapters of a PEFT model off: its base is the pre-trained model."""
    disable = getattr(model, "disable_adapter", None)
    # transformers 5.23, PeftAdapterMixin.add_adapter sets it; such a model has no disable_adapter.
    added = getattr(model, "_hf_peft_config_loaded", False)
    if not (callable(disable) or added):
        yield
        return
    # peft 0.21, BaseTunerLayer.enable_adapters: switching adapters on goes through set_adapter,
    # which makes them trainable, whatever they were.
    trained = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        if callable(disable):
            with disable():
                yield
        elif all(
            getattr(module, "disable_adapters", False) is True
            for module in model.modules()
            if hasattr(module, "base_layer")
        ):
            # They are off already, and enable_adapters after the pass would switch them on.
            yield
        else:
            model.disable_adapters()
            try:
                yield
            finally:
                model.enable_adapters()
    finally:
        for parameter, was in trained.items():
            parameter.requires_grad_(was)


def read_batches(
    dataset: Any,
    rows: NDArray[np.int64],
    *,
    size: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    num_workers: int,
) -> Iterator[tuple[NDArray[np.int64], Any]]:
    """Rows of a map-style data set, ``size`` at a time: (row numbers, what collate_fn made)."""
    batches = [rows[start : start + size] for start in range(0, rows.size, size)]
    read = read_these(dataset, batches, collate_fn=collate_fn, num_workers=num_workers)
    return zip(batches, read, strict=True)


def read_these(
    dataset: Any,
    batches: Sequence[NDArray[np.int64]],
    *,
    collate_fn: Callable[[list[Any]], Any] | None,
    num_workers: int,
) -> Iterator[Any]:
    """What ``collate_fn`` makes of each batch of rows of a map-style data set."""
    loader = DataLoader(
        dataset,
        batch_sampler=cast("Any", (batch.tolist() for batch in batches)),
        num_workers=num_workers,
        collate_fn=collate_fn,
        # The loader seeds its workers from here, and the caller's random numbers stay untouched.
        generator=torch.Generator(),
        worker_init_fn=_tokenize_alone,
    )
    return map(require_read, iter(loader), batches)


class UnreadableBatch(NamedTuple):
    """Why no batch can be made of some rows, and the place among them of the one it is due to.

    Rows are read in loader workers, which see rows without their numbers.
    """

    place: int
    kind: type[Exception]
    reason: str


def require_read(found: Any, rows: NDArray[np.int64]) -> Any:
    """What was made of some rows, one batch or, in a list, one of each.

    Raises:
        TypeError, ValueError: naming the row that is unreadable.
    """
    for place, each in enumerate(found if isinstance(found, list) else [found]):
        if isinstance(each, UnreadableBatch):
            raise each.kind(f"row {rows[place + each.place]}: {each.reason}")
    return found


def _tokenize_alone(_: int) -> None:
    # tokenizers 0.22: the threads of a process that has tokenized are not there in its fork, which
    # waits for them forever where a user has set this to true.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def unwrap_model(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, whose forward passes wait for other ranks.

    Raises:
        TypeError: for parameters sharded over ranks: ranks score at their own pace; for no model.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"the model is a {type(model).__name__}, not a torch.nn.Module: load it, as by "
            "AutoModelForCausalLM.from_pretrained, and pass what that gives"
        )
    # By name: DTensor is of torch.distributed.tensor, FlatParameter of FSDP 1 in torch.distributed,
    # and neither need be there in a build without distributed.
    if any(
        type(parameter).__name__ in ("DTensor", "FlatParameter") for parameter in model.parameters()
    ):
        raise TypeError(
            "the parameters are sharded over ranks (FSDP, tensor parallel), so that ranks could "
            "not score at their own pace: score before the model is sharded, one model a rank"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TypeError(
            "parameters of the model are on the meta device, which has no values: load it with "
            "from_pretrained, and without offloading to CPU or disk, onto devices that hold it"
        )
    return model


def device_of(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """The device asked for, else that of the model's first parameter, else the CPU."""
    if device is not None:
        return torch.device(device)
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor in it on ``device``."""
    if isinstance(batch, torch.Tensor):
        return move(batch, device)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        # A named tuple is made of its fields, any other tuple of one iterable.
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on a device; to a GPU without waiting for what it is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        # A copy from memory that can be swapped out waits for the kernels before it.
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Arriving:
    """A tensor on its way from a device to host memory, while the device goes on."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """The values, once they are there."""
        if self._arrived is None:
            return self._tensor.cpu().numpy()
        self._arrived.synchronize()
        # Pinned memory is scarce, and is wanted for the next batch.
        return self._tensor.numpy().copy()


def one_behind(items: Iterator[_Item]) -> Iterator[_Item]:
    """The items, each when the one after it is made: a GPU always has a batch to go on with.

    Where making one fails, the one before comes first.
    """
    held: list[_Item] = []
    try:
        for item in items:
            yield from held
            held = [item]
    except Exception:
        yield from held
        raise
    yield from held


def count_rows(dataset: Any) -> int:
    """The length of a map-style data set that is not empty."""
    if isinstance(dataset, DataLoader):
        raise TypeError(
            "pass the data set, not a DataLoader (its shuffling would lose which loss belongs to "
            "which row); batch_size, collate_fn and num_workers are arguments of their own"
        )
    if isinstance(dataset, Mapping):
        raise TypeError(
            f"the data is a {type(dataset).__name__} of {list(dataset)[:5]}: pass one data set, as "
            f"one split of a DatasetDict, or rows: datasets.Dataset.from_dict(columns)"
        )
    if hasattr(dataset, "iloc"):
        raise TypeError(
            f"a {type(dataset).__name__} has no rows by number: pass "
            'datasets.Dataset.from_pandas(frame), or frame.to_dict("records")'
        )
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"a map-style data set is needed, got {type(dataset)}; a stream of dicts is scored "
            "with key=, the column that has the key of each row"
        )
    form = getattr(dataset, "format", None)
    if isinstance(form, Mapping) and (kind := form.get("type")) in ("arrow", "polars"):
        raise TypeError(
            f"the rows of a data set with_format({kind!r}) are tables: pass "
            "dataset.with_format(None)"
        )
    rows = len(dataset)
    if rows == 0:
        raise ValueError("the data set is empty: there is nothing to score")
    return rows


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the host or of a device, ran out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in str(error) or "out of memory" in str(error)
    )
