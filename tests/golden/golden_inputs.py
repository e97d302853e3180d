"""Fixed inputs of the golden records, and how what comes of them is kept.

All inputs are made by exact arithmetic, so that the records hold on any machine.
"""

import hashlib
import io
import tarfile
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

import flowdata
from flowdata import ByLength, FlowWeights, LossTable, Strata

RECORDS = Path(__file__).parent / "records"
SHARD_SIZES = (50, 3, 120, 1, 77)
SHARD_ROWS = sum(SHARD_SIZES)


def recorded(values):
    """Numbers as a record: a list of at most 64, otherwise a hash of their 8 bytes each."""
    array = np.asarray(values)
    if array.size <= 64:
        return array.tolist()
    kind = "<f8" if array.dtype.kind == "f" else "<i8"
    return hashlib.sha256(array.astype(kind).tobytes()).hexdigest()


def rows_in(items):
    """All rows of an iterable over rows, or over batches of them."""
    return [row for item in items for row in (item if isinstance(item, list) else [item])]


@cache
def losses(rows):
    """Losses from 0 to 4: multiples of 2^-14, so that any sum of them is exact."""
    return np.arange(rows) * 40_503 % 65_521 / 2**14


@cache
def weights_of(rows, kind="from losses"):
    if kind == "from losses":
        return FlowWeights.from_losses(losses(rows))
    return FlowWeights.from_weights(np.arange(rows) * 7_919 % 1_009)


def strata(rows):
    return Strata(np.arange(rows) * 31 % 5, batch_size=min(rows, 24), levels=3)


def lengths_of(rows):
    """From 1 to 300, more of them short."""
    return 1 + np.arange(rows) * 7_919 % 300 * (np.arange(rows) % 17) // 17


def by_length(rows, batch_size=12):
    return ByLength(lengths_of(rows), batch_size=batch_size, window=7)


def loader_over(dataset, workers, batch_size, kind=DataLoader, **options):
    """A loader that gives lists of rows; all its passes are by the same workers."""
    if workers:
        options |= {"num_workers": workers, "multiprocessing_context": "fork"}
    return kind(dataset, batch_size=batch_size, collate_fn=list, **options)


def write_shards(folder):
    """Shards whose samples hold their row number, and some bytes."""
    rows = iter(range(SHARD_ROWS))
    for shard, size in enumerate(SHARD_SIZES):
        with tarfile.open(folder / f"s-{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in islice(rows, size):
                for ext, content in (("txt", f"{row}".encode()), ("bin", bytes(row * 37 % 900))):
                    member = tarfile.TarInfo(f"k{row:04d}.{ext}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def urls(folder):
    return f"{folder}/s-{{0..{len(SHARD_SIZES) - 1}}}.tar"


@cache
def index_of(folder):
    return flowdata.ShardRows(urls(folder), progress=False).index


@cache
def table_of(folder):
    return LossTable.from_losses(losses(SHARD_ROWS), index=index_of(folder), model_name="none")


def row_of(sample):
    return int(sample["txt"])


def packed(stream, max_length=300):
    """A stream of packs, each as the list of its rows."""
    lengths = lengths_of(SHARD_ROWS)

    def tokens(sample):
        return {"input_ids": [row_of(sample)] * lengths[row_of(sample)]}

    return stream.map(tokens).packed(max_length, lengths).map(packed_rows)


def packed_rows(pack):
    return pack["input_ids"][pack["position_ids"] == 0].tolist()
