"""Loss tables of made-up samples in shards that do not exist, as large as one likes.

They are computed a row group at a time by the code that saves any table: 10^8 rows take half a
minute and no memory to speak of. For measuring what tables cost, not what is in them.

    python benchmarks/synthetic_table.py --shards 100000 --rows-per-shard 1000 table.parquet
"""

import argparse
import time
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata import LossTable, Provenance, ShardIndex

_BLOCK = 1 << 15
_DIGITS = 10


class _Losses:
    """Gamma-distributed losses, computed when they are asked for."""

    dtype: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self._rows)
        blocks = range(start // _BLOCK, -(-stop // _BLOCK))
        losses = [
            np.random.default_rng(block).standard_gamma(2.0, _BLOCK, dtype=np.float32)
            for block in blocks
        ]
        first = blocks.start * _BLOCK
        return np.concatenate(losses)[start - first : stop - first]


class _Keys:
    """The number of each row, in ten digits, as an Arrow array."""

    def __getitem__(self, rows: slice) -> Any:
        import pyarrow as pa

        left = np.arange(rows.start, rows.stop, dtype=np.int64)
        digits = np.empty((left.size, _DIGITS), dtype=np.uint8)
        for place in reversed(range(_DIGITS)):
            left, digits[:, place] = np.divmod(left, 10)
        digits += ord("0")
        ends = np.arange(digits.shape[0] + 1, dtype=np.int32) * _DIGITS
        return pa.StringArray.from_buffers(
            digits.shape[0], pa.py_buffer(ends), pa.py_buffer(digits)
        )


class _Repeated:
    """The same numbers in each shard."""

    def __init__(self, of_shard: NDArray[np.int64]) -> None:
        self._of_shard = of_shard

    def __getitem__(self, rows: slice) -> NDArray[np.int64]:
        return self._of_shard[np.arange(rows.start, rows.stop) % self._of_shard.size]


def write_synthetic_table(path: str | PathLike[str], shards: int, rows_per_shard: int) -> None:
    """Write a loss table of that many shards, of that many samples of 10 to 60 KB each."""
    sizes = np.random.default_rng(0).integers(20, 120, rows_per_shard) * 512
    index = ShardIndex(
        tuple(f"shard-{number:07d}.tar" for number in range(shards)),
        None,
        _Keys(),
        _Repeated(np.cumsum(sizes) - sizes),
        _Repeated(sizes),
        np.full(shards, int(sizes.sum()) + 1024),
        np.zeros(shards, dtype=np.bool_),
        tuple(f'"{number:032x}"' for number in range(shards)),
        rows=np.full(shards, rows_per_shard),
    )
    rows = shards * rows_per_shard
    LossTable(_Losses(rows), Provenance.now(rows, loss="synthetic"), index=index).save(path)


def main() -> None:
    """Write one table, as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--rows-per-shard", type=int, default=1000)
    options = parser.parse_args()
    start = time.perf_counter()
    write_synthetic_table(options.output, options.shards, options.rows_per_shard)
    seconds, size = time.perf_counter() - start, options.output.stat().st_size
    print(f"{options.output}: {size / 1e6:,.1f} MB in {seconds:.1f} s")


if __name__ == "__main__":
    main()
