"""ShardRows: tar shards as a map-style data set, for the scoring pass."""

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from flowdata.errors import ShardError
from flowdata.shards.index import ShardIndex


class ShardRows(Dataset[Any]):
    """Samples of local, uncompressed tar shards by row number.

    A sample is what WebDataset makes of it, ``{"__key__": ..., "__url__": ..., "jpg": bytes}``,
    given to ``decode``. Nothing is decoded, and nothing unpickled, unless ``decode`` does. A
    loss table scored over it holds shard, key, offset and size of each row.

    Args:
        shards: paths, or one path with braces, ``"data-{000..009}.tar"``.
        decode: makes an item of a raw sample; default the raw sample.
        progress: show a progress bar while the headers are read.

    Raises:
        ShardError: for shards that cannot be read, or a key twice in one.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        *,
        decode: Callable[[dict[str, Any]], Any] | None = None,
        progress: bool = True,
    ) -> None:
        self._paths = _expanded(shards)
        self._decode = decode
        self.index = ShardIndex.of(self._paths, progress=progress)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, row: int) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} is outside {len(self):,} samples")
        path = self._paths[self.index.shard[row]]
        with path.open("rb") as file:
            file.seek(self.index.offsets[row])
            content = file.read(self.index.sizes[row])
        sample = self._parsed(content, path, self.index.key(row))
        return sample if self._decode is None else self._decode(sample)

    def _parsed(self, content: bytes, path: Path, key: str) -> dict[str, Any]:
        from webdataset.tariterators import group_by_keys, tar_file_iterator

        members = (
            member | {"__url__": str(path)} for member in tar_file_iterator(io.BytesIO(content))
        )
        try:
            samples: list[dict[str, Any]] = list(group_by_keys(members))
        except tarfile.TarError:
            samples = []
        if [sample["__key__"] for sample in samples] != [key]:
            raise ShardError(
                f"{path} has changed since it was indexed: {key!r} is not where it was"
            )
        return samples[0]


def _expanded(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    from braceexpand import braceexpand

    if isinstance(shards, str | Path):
        shards = [shards]
    paths = [Path(path) for shard in shards for path in braceexpand(str(shard))]
    for path in paths:
        if not path.is_file():
            raise ShardError(f"there is no shard {path}")
    return paths
