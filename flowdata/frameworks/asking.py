"""Who is asking for draws: read off the call stack, as no framework tells a sampler.

Each framework is recognised by the function that iterates; a framework that is merely installed,
or imported for something else, is not.
"""

import sys
from dataclasses import dataclass

import torch.distributed as dist

_ACCELERATE = "accelerate.data_loader"
_LIGHTNING = ("lightning.pytorch.", "pytorch_lightning.")
_FABRIC = ("lightning.fabric.", "lightning_fabric.")
_LENGTHS = ("LengthGroupedSampler.", "DistributedLengthGroupedSampler.", "Trainer._get_train_")


@dataclass(frozen=True)
class Asker:
    """The frameworks on the call stack, by what they do."""

    accelerate: bool
    """A loader of accelerate iterates (under transformers too)."""
    preparing: bool
    """A loader of accelerate is being built, whose workers may start at once."""
    lightning: bool
    """A Lightning trainer is running."""
    splits: str
    """What divides the draws between ranks after they were drawn; "" for nobody."""
    lengths: bool
    """A sampler of transformers reads the length of every item."""


def asker() -> Asker:
    """Who called this function, directly or not."""
    accelerate = preparing = lightning = lengths = False
    splits = ""
    frame = sys._getframe(1).f_back
    while frame is not None:
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_qualname
        if module == _ACCELERATE:
            accelerate |= name.endswith(".__iter__")
            preparing |= name == "DataLoaderAdapter.__init__"
            if name.startswith(("BatchSamplerShard.", "DataLoaderDispatcher.")):
                splits = "accelerate"
        elif module.startswith(_LIGHTNING):
            lightning = True
        elif module.startswith(_FABRIC) and name.startswith("_DatasetSamplerWrapper."):
            splits = "Lightning"
        elif module.startswith("transformers.") and name.startswith(_LENGTHS):
            lengths = True
        frame = frame.f_back
    return Asker(accelerate, preparing, lightning, splits, lengths)


def ranks() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
