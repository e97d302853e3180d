"""WebDataset shards: what lies where in a tar file, by row or as a stream of weighted draws."""

from flowdata.shards.index import ShardIndex
from flowdata.shards.rows import ShardRows
from flowdata.shards.transport import Access

__all__ = ["Access", "ShardIndex", "ShardRows"]
