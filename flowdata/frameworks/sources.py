"""The samplers, data sets and streams of flowdata inside a framework's DataLoader."""

from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any, Protocol, TypeAlias, TypeGuard

from torch import nn

from flowdata.map_style.epoch_items import EpochItems
from flowdata.map_style.plan_sampler import PlanSampler

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


_MOST_LOADERS = 1000


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


Positioned: TypeAlias = PlanSampler[Any] | Stream
"""Those that go on at a position inside an epoch."""
Source: TypeAlias = Positioned | EpochItems[Any, Any]
"""What draws rows, or packs of them, whatever stands around it."""


def sources_of(*loaders: Any) -> list[Source]:
    """Every sampler, data set and stream of flowdata that the loaders draw from, each once."""
    found: dict[int, Source] = {}
    for part in _parts(list(loaders), set()):
        if isinstance(part, (PlanSampler, EpochItems)) or is_stream(part):
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
    if isinstance(thing, (PlanSampler, EpochItems)) or is_stream(thing):
        return
    for part in _inside(thing):
        if isinstance(part, (list, tuple, dict)) or hasattr(part, "__dict__"):
            yield from _parts(part, seen)


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, (dict, list, tuple)):
        # One with more entries is data.
        entries = thing.values() if isinstance(thing, dict) else thing
        return list(entries) if len(thing) <= _MOST_LOADERS else []
    known = [part for name in _WRAPPED if (part := getattr(thing, name, None)) is not None]
    if known or isinstance(thing, (nn.Module, ModuleType, FunctionType, type)):
        return known
    # One of the user's own: what it has may be a loader.
    return list(vars(thing).values())
