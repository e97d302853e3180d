"""The samplers and data sets of flowdata inside a framework's DataLoader."""

from collections.abc import Iterator
from typing import Any

from flowdata.dataset import FlowDataset
from flowdata.sampler import FlowSampler

# Where torch, torchdata, accelerate and Lightning keep what they wrap.
_WRAPPED = (
    "base_dataloader",
    "batch_sampler",
    "sampler",
    "_sampler",
    "dataset",
    "datasets",
    "flattened",
)


def doors(*loaders: Any) -> list[FlowSampler | FlowDataset[Any]]:
    """Every FlowSampler and FlowDataset that the loaders draw from, each once."""
    found: dict[int, FlowSampler | FlowDataset[Any]] = {}
    for part in _parts(list(loaders), set()):
        if isinstance(part, (FlowSampler, FlowDataset)):
            found[id(part)] = part
    return list(found.values())


def _parts(thing: Any, seen: set[int]) -> Iterator[Any]:
    if thing is None or id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, (FlowSampler, FlowDataset)):
        return
    if isinstance(thing, dict):
        inner = list(thing.values())
    elif isinstance(thing, (list, tuple)):
        inner = list(thing)
    else:
        inner = [getattr(thing, name, None) for name in _WRAPPED]
    for part in inner:
        if isinstance(part, (list, tuple, dict)) or hasattr(part, "__dict__"):
            yield from _parts(part, seen)
