"""Which of the replicas of a run this process is."""

import os

import torch.distributed as dist


def size_and_rank(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Number of ranks, and which this is: as given, or as torch.distributed or torchrun has it.

    Raises:
        ValueError: for one without the other, or a rank that there is not.
    """
    if (num_replicas is None) != (rank is None):
        raise ValueError("give both num_replicas and rank, or neither")
    if num_replicas is None or rank is None:
        if dist.is_available() and dist.is_initialized():
            num_replicas, rank = dist.get_world_size(), dist.get_rank()
        else:
            num_replicas = int(os.environ.get("WORLD_SIZE", "1"))
            rank = int(os.environ.get("RANK", "0"))
    if not 0 <= rank < num_replicas:
        raise ValueError(
            f"rank must be in [0, num_replicas), got rank={rank}, num_replicas={num_replicas}"
        )
    return num_replicas, rank


def require_rank(divided: tuple[int, int]) -> None:
    """Make sure that this process has the number of ranks, and the rank, that was assumed.

    Raises:
        RuntimeError: where torch.distributed says otherwise.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    if (now := size_and_rank(None, None)) != divided:
        raise RuntimeError(
            f"this FlowShards was built for rank {divided[1]} of {divided[0]}, but is used on "
            f"rank {now[1]} of {now[0]}: build it after torch.distributed is initialised, or "
            "give it num_replicas= and rank="
        )
