"""The samplers, data sets and streams of flowdata inside a framework's DataLoader."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeAlias, TypeGuard

from flowdata.map_style.dataset import FlowDataset
from flowdata.map_style.sampler import FlowSampler

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


class Stream(Protocol):
    """What a framework needs of FlowShards, which is not imported for it."""

    @property
    def num_replicas(self) -> int:
        """Ranks that an epoch is divided between."""

    @property
    def draws_an_item(self) -> int:
        """Draws in each item: more than one where the stream makes batches."""

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one."""

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """The state at a position of an epoch."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Go on from a state."""


Positioned: TypeAlias = FlowSampler | Stream
"""Those that go on at a position inside an epoch."""
Source: TypeAlias = Positioned | FlowDataset[Any]
"""What draws rows, whatever stands around it."""


def sources_of(*loaders: Any) -> list[Source]:
    """Every FlowSampler, FlowDataset and FlowShards that the loaders draw from, each once."""
    found: dict[int, Source] = {}
    for part in _parts(list(loaders), set()):
        if isinstance(part, (FlowSampler, FlowDataset)) or is_stream(part):
            found[id(part)] = part
    return list(found.values())


def is_stream(part: Any) -> TypeGuard[Stream]:
    """Whether this is a FlowShards, by its class: views of one pass on what they do not have."""
    return hasattr(type(part), "draws_an_item")


def _parts(thing: Any, seen: set[int]) -> Iterator[Any]:
    if thing is None or id(thing) in seen:
        return
    seen.add(id(thing))
    yield thing
    if isinstance(thing, (FlowSampler, FlowDataset)) or is_stream(thing):
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
