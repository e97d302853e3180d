"""Which framework is calling, and what it is doing: read off the call stack.

A framework is known by the function that iterates; one that is merely installed, or imported for
something else, is not found. Whatever is not as expected in another release of a framework is
not found either, so that the guards that rely on it are silent.
"""

import contextlib
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

from flowdata.guards.stack import frames
from flowdata.guards.switch import enabled

# torch 2.13, torch/utils/data/_utils/fetch.py: `_IterableDatasetFetcher.fetch` takes as many items
# from a stream as its argument `possibly_batched_index` has places, one where the loader has
# batch_size=None (`auto_collation` False).
_FETCHERS = "torch.utils.data._utils.fetch"
_STREAM_FETCHER = "_IterableDatasetFetcher"
# accelerate 1.15, accelerate/data_loader.py. `BatchSamplerShard` iterates over a whole batch
# sampler on every rank, and keeps every n-th batch. `DataLoaderDispatcher` reads on rank 0, and
# sends the other ranks their parts. `IterableDatasetShard` (also in transformers 5.23,
# trainer_pt_utils.py) reads a stream on every rank, and keeps a part of each batch.
_ACCELERATE = "accelerate.data_loader"
_BATCH_SHARD = "BatchSamplerShard"
_DISPATCHER = "DataLoaderDispatcher"
_STREAM_SHARD = "IterableDatasetShard"
# Lightning 2.6, fabric/utilities/distributed.py: `_DatasetSamplerWrapper` lists a sampler on every
# rank, for `DistributedSamplerWrapper` to keep a part; pytorch/loops/fit_loop.py: `_FitLoop`.
# The same code comes as `lightning`, `pytorch_lightning` and `lightning_fabric`.
_FABRIC = ("lightning.fabric.", "lightning_fabric.")
_WRAPPER = "_DatasetSamplerWrapper"
# fabric/wrappers.py: names the epoch to the sampler, by its own number of passes.
_FABRIC_LOADER = "_FabricDataLoader.__iter__"
_WRAPPER_MODULE = "utilities.distributed"
_FIT_LOOP = "_FitLoop."
# pytorch/tuner: tries learning rates and batch sizes with other callbacks than the trainer's.
_TUNER = ".tuner."
# torchdata 0.11, stateful_dataloader: an iterator of a loader saves and loads the state of its
# `_index_sampler` (a batch sampler), or of `_sampler_iter`. Where neither has one, it goes over
# the batches that it has given out before, by an islice in the place of the latter. Its own batch
# sampler does the same for its sampler, in `_BatchSamplerIterator.load_state_dict`.
_STATEFUL = "torchdata.stateful_dataloader."
_ITERATOR = "_StatefulBaseDataLoaderIter._next_index"
_BATCHES = "_BatchSamplerIterator."
# torch 2.13, torch/utils/data/sampler.py, and torchdata 0.11; that of accelerate is one of torch's.
_RANDOM = "RandomSampler.__iter__"
_DRAWS = ("flowdata.map_style.dataset", "flowdata.map_style.packs")
# transformers 5.23, trainer_pt_utils.py: both samplers read the length of every item when they
# are built, which `Trainer._get_train_sampler` does.
_LENGTH_READERS = (
    "LengthGroupedSampler.",
    "DistributedLengthGroupedSampler.",
    "Trainer._get_train_",
)

SETS_EPOCHS = "sets_epochs_of_flowdata"
"""Attribute, True, of a Lightning callback that sets the epochs itself."""


@dataclass
class Caller:
    """What the frameworks on the call stack are doing."""

    accelerate_iterates: bool = False
    """A loader of accelerate iterates (under transformers too)."""
    accelerate_builds_loader: bool = False
    """A loader of accelerate is being built, whose workers may start at once."""
    accelerate_started_workers: bool = False
    """Those of a loader of accelerate that names an epoch run already, and will draw first."""
    accelerate_skips: bool = False
    """That loader leaves out what a run before this one has trained on."""
    fabric_iterates: bool = False
    """A loader that Lightning's Fabric has set up begins a pass."""
    lightning_fits: bool = False
    """A Lightning trainer is running, without FlowCallback."""
    callback_sets_epoch: bool = False
    """A Lightning trainer is running with FlowCallback, which sets the epochs."""
    lightning_resumes: bool = False
    """The trainer without it goes on from a checkpoint, in the first epoch after."""
    lightning_restarts_workers: bool = False
    """That trainer starts its workers anew once it has set the epoch."""
    splits_draws: str = ""
    """The framework that divides the draws between ranks after they were drawn, if one does."""
    batch_shard: Any = None
    """The BatchSamplerShard of accelerate that does."""
    reads_lengths: bool = False
    """A sampler of transformers reads the length of every item."""
    sampler_iterates: bool = False
    """A sampler of torch begins a pass."""
    sampler_shuffles: bool = False
    """A sampler of torch or torchdata begins a pass in a random order."""
    forgetting_part: str = ""
    """The class between torchdata's StatefulDataLoader and a sampler that has no state."""
    fast_forwards: bool = False
    """The batches before a saved place are drawn, and left out, because of that."""


def find_caller() -> Caller:
    """Who called the function that asks, directly or not; an empty Caller if guards are off."""
    caller = Caller()
    for module, function, frame in frames() if enabled() else ():
        inspect = _FRAMEWORKS.get(module.partition(".")[0])
        if inspect is not None:
            # What a framework has renamed is an AttributeError or KeyError here.
            with contextlib.suppress(Exception):
                inspect(caller, module, function, frame)
    return caller


def can_see_splits() -> bool:
    """Whether whoever divides draws would be found: no framework that is there has renamed it."""
    for module, names in (
        (_ACCELERATE, (_BATCH_SHARD, _DISPATCHER)),
        *((f"{fabric}{_WRAPPER_MODULE}", (_WRAPPER,)) for fabric in _FABRIC),
    ):
        if module in sys.modules and not _has(module, names):
            return False
    return True


def items_per_fetch() -> int | None:
    """Items that a DataLoader takes at a time from the stream that asks; None if none does.

    Where something stands between the two, what a loader takes are not items of the stream.
    """
    calls = frames() if enabled() else iter(())
    outside = (call for call in calls if not call[0].startswith("flowdata."))
    module, function, frame = next(outside, ("", "", None))
    if frame is not None and (module, function) == (_FETCHERS, f"{_STREAM_FETCHER}.fetch"):
        with contextlib.suppress(Exception):
            asked = frame.f_locals["possibly_batched_index"]
            return len(asked) if frame.f_locals["self"].auto_collation else 1
    return None


def stream_divider() -> str:
    """The framework that divides a stream between ranks, if one does."""
    for module, function, _ in frames() if enabled() else ():
        package = module.partition(".")[0]
        if package in ("accelerate", "transformers") and function.startswith(
            (f"{_STREAM_SHARD}.", f"{_DISPATCHER}.")
        ):
            return package
    return ""


def _has(module: str, names: Sequence[str]) -> bool:
    """Whether a module is loaded and has these names; what it raises instead is a no."""
    with contextlib.suppress(Exception):
        return all(hasattr(sys.modules[module], name) for name in names)
    return False


def _inspect_accelerate(caller: Caller, module: str, function: str, frame: FrameType) -> None:
    if module != _ACCELERATE:
        return
    if function.endswith(".__iter__"):
        caller.accelerate_iterates = True
        caller.accelerate_skips |= _skips_batches(frame.f_locals.get("self"))
    caller.accelerate_builds_loader |= function == "DataLoaderAdapter.__init__"
    if function.endswith((".__iter__", ".set_epoch")):
        # torchdata 0.11, stateful_dataloader.py: `StatefulDataLoader.state_dict` starts the workers
        # of the next pass.
        loader = frame.f_locals["self"].base_dataloader
        started = loader.num_workers and vars(loader).get("_initial_iter_for_state_dict", False)
        caller.accelerate_started_workers |= bool(started)
    if function.startswith(f"{_BATCH_SHARD}."):
        caller.splits_draws = "accelerate"
        caller.batch_shard = frame.f_locals.get("self")
    elif function.startswith(f"{_DISPATCHER}."):
        caller.splits_draws = "accelerate"


def _skips_batches(loader: Any) -> bool:
    """Whether a loader, or a sampler, of accelerate does not begin with its first batch.

    accelerate 1.15: `skip_first_batches` makes a `SkipDataLoader` or `SkipBatchSampler` with
    `skip_batches`; a loader with a state dict has one of torchdata in it, which keeps a loaded
    state as `next_iter_state` up to its next pass.
    """
    batches = getattr(loader, "batch_sampler", None)
    state = getattr(getattr(loader, "base_dataloader", None), "next_iter_state", None)
    # torchdata's own batch sampler, whose iterator has a state, and data sets of draws or packs
    # lead to the epoch that was saved.
    kinds = type(batches).__module__, type(getattr(loader, "dataset", None)).__module__
    has_state = _has_state(batches) or kinds[0].startswith(_STATEFUL) or kinds[1] in _DRAWS
    skips = state is not None and not has_state
    return skips or any(getattr(part, "skip_batches", 0) for part in (loader, batches))


def _has_state(part: Any) -> bool:
    return hasattr(part, "state_dict") and hasattr(part, "load_state_dict")


def _inspect_torchdata(caller: Caller, module: str, function: str, frame: FrameType) -> None:
    if not module.startswith(_STATEFUL):
        return
    caller.sampler_shuffles |= function == _RANDOM
    loop: Any = frame.f_locals.get("self")
    if function == _ITERATOR:
        over, through = vars(loop)["_sampler_iter"], vars(loop)["_index_sampler"]
        left_out = isinstance(over, itertools.islice)
    elif function.startswith(_BATCHES):
        over, through = loop.sampler_iter, loop.sampler
        left_out = function.endswith(".load_state_dict")
    else:
        return
    if not (_has_state(over) or _has_state(through)):
        caller.forgetting_part = type(through).__qualname__
        caller.fast_forwards = left_out


def _inspect_lightning(caller: Caller, module: str, function: str, frame: FrameType) -> None:
    if module.startswith(_FABRIC):
        if function.startswith(f"{_WRAPPER}."):
            caller.splits_draws = "Lightning"
        caller.fabric_iterates |= function == _FABRIC_LOADER
    elif function.startswith(_FIT_LOOP):
        loop: Any = frame.f_locals["self"]
        trainer = loop.trainer
        if any(getattr(callback, SETS_EPOCHS, False) for callback in trainer.callbacks):
            caller.callback_sets_epoch = True
            return
        # Lightning 2.6: `restarting` is set while the loops' progress is that of a checkpoint,
        # `is_resuming` where it lies inside an epoch. `_FitLoop.advance` calls iter() for every
        # epoch; before the first of a run, `setup_data` has done so, ahead of `set_epoch`.
        resuming = loop.restarting or getattr(loop, "is_resuming", False)
        resumes = bool(resuming and trainer.ckpt_path is not None)
        restarts_workers = trainer.current_epoch > 0 and not loop.restarting
        caller.lightning_fits = True
        caller.lightning_resumes = resumes
        caller.lightning_restarts_workers = restarts_workers
    elif _TUNER in module:
        # What is drawn does not count, and the callbacks are back when it ends.
        caller.lightning_fits = caller.lightning_resumes = False
        caller.callback_sets_epoch = True


def _inspect_transformers(caller: Caller, module: str, function: str, _: FrameType) -> None:
    caller.reads_lengths |= module.startswith("transformers.") and function.startswith(
        _LENGTH_READERS
    )


def _inspect_torch(caller: Caller, module: str, function: str, frame: FrameType) -> None:
    # torch 2.13, torch/utils/data/sampler.py: samplers ask the data set for its length in
    # `__iter__`, which a loader calls at the beginning of each pass.
    caller.sampler_iterates |= module.startswith("torch.utils.data.") and function.endswith(
        "Sampler.__iter__"
    )
    caller.sampler_shuffles |= function == _RANDOM
    if function == "DistributedSampler.__iter__":
        caller.sampler_shuffles |= frame.f_locals["self"].shuffle


_FRAMEWORKS = {
    "accelerate": _inspect_accelerate,
    "lightning": _inspect_lightning,
    "pytorch_lightning": _inspect_lightning,
    "lightning_fabric": _inspect_lightning,
    "transformers": _inspect_transformers,
    "torchdata": _inspect_torchdata,
    "torch": _inspect_torch,
}
