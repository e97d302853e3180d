"""Loss tables in files of many small row groups, as this and earlier versions wrote them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowdata import LossTable, Provenance, ShardIndex
from flowdata.table import shard_index, shard_lists, stored_table, writing

ROWS, GROUP = 1000, 64
COUNTS = [0, 130, 1, 300, 0, 64, 505, 0]
KINDS = (
    "plain",
    "tokens",
    "texts",
    "numbers",
    "shards",
    "many shards",
    "old shards",
    "old shards, unnamed",
)


def held(monkeypatch, most):
    """Tables of more rows than this stay in their file."""
    monkeypatch.setattr(shard_index, "MOST_ROWS_HELD", most)
    monkeypatch.setattr(stored_table, "MOST_ROWS_HELD", most)


def index_of(counts=COUNTS):
    sizes = np.random.default_rng(1).integers(1, 40, sum(counts)) * 512
    ends = np.cumsum(sizes)
    begins = np.cumsum([0, *counts])[:-1]
    offsets = ends - sizes - np.repeat(np.append(0, ends)[begins], counts)
    shards = len(counts)
    return ShardIndex(
        tuple(f"{number:03}.tar" for number in range(shards)),
        np.repeat(np.arange(shards, dtype=np.int32), counts),
        pa.array([f"key{row:04}\0e9" for row in range(sum(counts))]),
        offsets,
        sizes,
        np.where(np.arange(shards) % 2, 1 << 30, -1),
        np.arange(shards) % 3 == 1,
        tuple(f"etag {number}" for number in range(shards)),
    )


def write(path, kind, monkeypatch):
    """A table as this or an earlier version wrote it."""
    losses = np.random.default_rng(0).gamma(2, size=ROWS).astype(np.float32)
    losses[[7, 500]] = np.nan
    counts = np.arange(ROWS, dtype=np.int32) % 5 if kind == "tokens" else None
    tokens = None if counts is None else np.full(counts.sum(), 0.5, dtype=np.float32)
    index = index_of() if "shards" in kind else None
    known = Provenance(rows=ROWS, loss="x")
    lengths = None if counts is None else counts + 7
    of_tokens = {"n_tokens": counts, "lengths": lengths, "token_losses": tokens}
    table = LossTable(losses, known, **of_tokens, index=index)
    if kind in ("texts", "numbers"):
        order = np.random.default_rng(2).permutation(ROWS) * 7
        table = table.with_keys([f"é{key}" for key in order] if kind == "texts" else order)
    monkeypatch.setattr(writing, "ROW_GROUP", GROUP)
    monkeypatch.setattr(shard_lists, "MOST_TEXT", 0 if kind == "many shards" else 1 << 18)
    table.save(path)
    if "old" in kind:
        found = pq.read_table(path)
        texts = dict(found.schema.metadata)
        lists = json.loads(texts[b"flowdata.shards"])
        del lists["rows"]
        texts[b"flowdata.shards"] = json.dumps(lists).encode()
        if "unnamed" in kind:
            del texts[b"flowdata.shards"]
        found = found.replace_schema_metadata(texts)
        pq.write_table(
            found,
            path,
            compression="none",
            use_dictionary=False,
            write_page_checksum=True,
            row_group_size=333,
        )


def values_of(table):
    """All that a table knows, as plain values."""
    index = table.index
    found = {"losses": table.losses.tobytes(), "rows": len(table), "known": table.provenance}
    for name in ("n_tokens", "lengths"):
        counts = getattr(table, name)
        found[name] = None if counts is None else (counts.dtype, counts.tolist())
    for temperature in ("median", "mean", 0.5):
        weights = table.weights(temperature, on_invalid="drop")
        found[temperature] = (weights.summary(), weights.fingerprint, weights.relative.tolist())
        found[temperature, "part"] = weights.part(100, 900).tolist()
    if table.keys is not None:
        keys = table.keys[100:200]
        found["row keys"] = (table.keys.tolist(), table.rows_of(keys).tolist(), table.keys[999])
    if index is not None:
        found |= {
            "columns": [index.shard.tolist(), index.offsets.tolist(), index.sizes.tolist()],
            "keys": index.keys.to_pylist(),
            "lists": [index.shards, index.lengths.tolist(), index.compressed.tolist()],
            "versions": index.versions,
            "bounds": index.bounds().tolist(),
            "key": [index.key(row) for row in (0, 63, 64, 999)],
            "samples": [
                (
                    samples.first,
                    samples.keys.to_pylist(),
                    samples.offsets.tolist(),
                    samples.sizes.tolist(),
                    len(samples),
                )
                for samples in map(index.of_shard, range(len(index.shards)))
            ],
        }
    return found
