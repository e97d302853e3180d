"""WebDataset shards: what lies where in a tar file, and its samples by row."""

from flowdata.shards.index import ShardIndex
from flowdata.shards.rows import ShardRows

__all__ = ["ShardIndex", "ShardRows"]
