"""Who is asking for draws: read off the call stack, as no framework tells a sampler.

Each framework is recognised by the function that iterates; a framework that is merely installed,
or imported for something else, is not.
"""

import sys
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch.distributed as dist
from torch.utils.data._utils.fetch import _MapDatasetFetcher

_FETCH = _MapDatasetFetcher.fetch.__code__
_FABRIC = ("lightning.fabric.", "lightning_fabric.")
_LENGTHS = ("LengthGroupedSampler.", "DistributedLengthGroupedSampler.", "Trainer._get_train_")


@dataclass
class Asker:
    """The frameworks on the call stack, by what they do."""

    accelerate: bool = False
    """A loader of accelerate iterates (under transformers too)."""
    preparing: bool = False
    """A loader of accelerate is being built, whose workers may start at once."""
    skips: bool = False
    """That loader leaves out what a run before this one has trained on."""
    lightning: bool = False
    """A Lightning trainer is running, without FlowCallback."""
    watched: bool = False
    """A Lightning trainer is running with FlowCallback, which names the epochs."""
    resumes: bool = False
    """The trainer without it goes on from a checkpoint, in the first epoch after."""
    renews: bool = False
    """That trainer starts its workers anew once it has named the epoch."""
    splits: str = ""
    """What divides the draws between ranks after they were drawn; "" for nobody."""
    shard: Any = None
    """The BatchSamplerShard of accelerate that does."""
    lengths: bool = False
    """A sampler of transformers reads the length of every item."""
    passing: bool = False
    """A sampler of torch begins a pass."""


def asker() -> Asker:
    """Who called this function, directly or not."""
    found = Asker()
    frame = sys._getframe(1).f_back
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        look = _LOOKS.get(module.partition(".")[0])
        if look is not None:
            look(found, frame, module, frame.f_code.co_qualname)
        frame = frame.f_back
    return found


def fetching() -> bool:
    """Whether a DataLoader fetches an item, and nobody merely looks at one."""
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code is _FETCH:
            return True
        frame = frame.f_back
    return False


def ranks() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _accelerate(found: Asker, frame: FrameType, module: str, name: str) -> None:
    if module != "accelerate.data_loader":
        return
    if name.endswith(".__iter__"):
        found.accelerate = True
        found.skips |= _skips(frame.f_locals.get("self"))
    found.preparing |= name == "DataLoaderAdapter.__init__"
    if name.startswith("BatchSamplerShard."):
        found.splits = "accelerate"
        found.shard = frame.f_locals.get("self")
    elif name.startswith("DataLoaderDispatcher."):
        found.splits = "accelerate"


def _skips(loader: Any) -> bool:
    """Whether a loader, or a sampler, of accelerate does not begin with its first batch."""
    parts = loader, getattr(loader, "batch_sampler", None)
    state = getattr(getattr(loader, "base_dataloader", None), "next_iter_state", None)
    return state is not None or any(getattr(part, "skip_batches", 0) for part in parts)


def _lightning(found: Asker, frame: FrameType, module: str, name: str) -> None:
    if module.startswith(_FABRIC):
        if name.startswith("_DatasetSamplerWrapper."):
            found.splits = "Lightning"
    elif name.startswith("_FitLoop."):
        loop: Any = frame.f_locals["self"]
        trainer = loop.trainer
        ours: Any = sys.modules.get("flowdata.frameworks.lightning")
        if ours is not None and any(isinstance(c, ours.FlowCallback) for c in trainer.callbacks):
            found.watched = True
        else:
            found.lightning = True
            resuming = loop.restarting or getattr(loop, "is_resuming", False)
            found.resumes = resuming and trainer.ckpt_path is not None
            found.renews = trainer.current_epoch > 0 and not loop.restarting


def _transformers(found: Asker, _: FrameType, module: str, name: str) -> None:
    found.lengths |= module.startswith("transformers.") and name.startswith(_LENGTHS)


def _torch(found: Asker, _: FrameType, module: str, name: str) -> None:
    found.passing |= module.startswith("torch.utils.data.") and name.endswith("Sampler.__iter__")


_LOOKS = {
    "accelerate": _accelerate,
    "lightning": _lightning,
    "pytorch_lightning": _lightning,
    "lightning_fabric": _lightning,
    "transformers": _transformers,
    "torch": _torch,
}
