"""How many processes train together."""

import os

import torch.distributed as dist


def group_size() -> int:
    """Ranks of torch.distributed's process group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def run_size() -> int:
    """Ranks of this run, also in a loader worker, which has no process group of its own."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))
