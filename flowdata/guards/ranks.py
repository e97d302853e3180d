"""How many processes train together, and how many of them on data of their own."""

import contextlib
import gc
import os
import sys
from typing import Any

import torch.distributed as dist
from torch import nn

# The dimensions of a mesh along which ranks are given the same batches, by how libraries name them.
_SHARED = ("tp", "tensor", "cp", "context", "sp", "sequence", "pp", "pipeline", "mp", "model")


def group_size() -> int:
    """Ranks of torch.distributed's process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def run_size() -> int:
    """Ranks of this run, also in a loader worker, which has no process group of its own."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def data_ranks(ranks: int) -> int:
    """Of so many ranks, those that are given different data: those that share a model are one.

    It may take a tenth of a second on several ranks, so it is asked for before a warning only.
    """
    shared = 1
    if ranks > 1:
        # What is named in another way in another release is not found.
        with contextlib.suppress(Exception):
            shared = max(_by_accelerate(), _by_meshes_and_models())
    return max(ranks // shared, 1)


def _by_accelerate() -> int:
    """Ranks that share one model and its data, as accelerate was told.

    accelerate 1.15, parallelism_config.py: tensor, context and sequence parallel ranks.
    """
    module: Any = sys.modules.get("accelerate.state")
    if module is None or not module.is_initialized():
        return 1
    config = module.AcceleratorState().parallelism_config
    return 1 if config is None else int(config.non_data_parallel_size)


def _by_meshes_and_models() -> int:
    """The same, of the device meshes and models that there are; only their names tell.

    torch 2.13, distributed/device_mesh.py: `DeviceMesh`. transformers 5.23, modeling_utils.py:
    a model that was loaded in parallel has `_tp_size`, and its mesh may have no names.
    """
    module: Any = sys.modules.get("torch.distributed.device_mesh")
    mesh_type = getattr(module, "DeviceMesh", None)
    shared = 1
    for thing in gc.get_objects():
        if type(thing) is mesh_type:
            shared = max(shared, _shared_by_mesh(thing))
        elif issubclass(type(thing), nn.Module):
            shared = max(shared, vars(thing).get("_tp_size") or 1)
    return shared


def _shared_by_mesh(mesh: Any) -> int:
    shared = 1
    for name, size in zip(mesh.mesh_dim_names or (), mesh.shape, strict=False):
        if name.lower().startswith(_SHARED):
            shared *= size
    return shared
