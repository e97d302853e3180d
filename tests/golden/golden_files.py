"""Files that are golden records: loss tables, an index, and an unfinished scoring pass."""

import json
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import torch
from golden_inputs import index_of, losses, table_of
from torch.utils.data import TensorDataset

import flowdata
from flowdata import LossTable


def files(folder):
    """What is saved, by the name of its file."""
    tokens = np.arange(20, dtype=np.int32) * 7 % 5
    by_token = losses(int(tokens.sum())).astype(np.float32)
    by_row = losses(20).astype(np.float32)
    provenance = flowdata.Provenance.now(20, loss="causal_lm", model_name="none", dtype="float32")
    table = LossTable(by_row, provenance, n_tokens=tokens, token_losses=by_token)
    known = {"loss": "mse", "created": "2026-11-26T08:00:00+00:00", "key": "id"}
    first, second = (
        LossTable(by_row[:rows], flowdata.Provenance(rows, data_fingerprint=str(rows), **known))
        for rows in (9, 4)
    )
    first = first.with_keys([f"row \0e{row}" for row in range(9)]).select([7, 0, 3])
    return {
        "tokens.parquet": table,
        "keys.parquet": LossTable.concat([first, second.with_keys(["ä", "", "b", "7"])]),
        "numbers.parquet": table.with_keys(np.arange(20) * 977 % 41 - (1 << 40)),
        "shards.parquet": table_of(folder),
        "index.parquet": index_of(folder),
    }


def contents(path):
    """Columns, types and flowdata's metadata of a Parquet file, but for time and version."""
    table = pq.read_table(path)
    texts = table.schema.metadata or {}
    metadata = {name.decode(): json.loads(text) for name, text in texts.items()}
    for name in ("created", "flowdata"):
        metadata.get("flowdata", {}).pop(name, None)
    # Files of before did not have it; it says what the column of shards says.
    if (rows := metadata.get("flowdata.shards", {}).pop("rows", None)) is not None:
        counts = Counter(table.column("shard").to_pylist())
        assert rows == [counts[shard] for shard in metadata["flowdata.shards"]["shards"]]
    return table.to_pydict(), [str(column.type) for column in table.columns], metadata


class Stopped(KeyboardInterrupt):
    pass


def model():
    line = torch.nn.Linear(4, 4)
    with torch.no_grad():
        line.weight.copy_(torch.arange(16).reshape(4, 4) / 8 - 1)
        line.bias.copy_(torch.arange(4) / 4)
    return line


def examples():
    """60 rows whose squared errors are exact in float32."""
    inputs = (torch.arange(240) * 5 % 7).reshape(60, 4) / 4
    return TensorDataset(inputs, (torch.arange(240) * 3 % 11).reshape(60, 4) / 2)


def scored(output, most=60):
    """The table of a scoring pass, and how many rows it took; it stops after so many batches."""
    network, batches = model(), []

    def count(_, inputs):
        # A first batch is computed again, and rows of it alone, to see whether they come out equal.
        if len(inputs[0]) == 1 or (batches and torch.equal(batches[-1], inputs[0])):
            return
        if len(batches) == most:
            raise Stopped
        batches.append(inputs[0])

    network.register_forward_pre_hook(count)
    options = {"batch_size": 8, "save_every": 0.0, "progress": False}
    return flowdata.score(network, examples(), "mse", output=output, **options), sum(
        map(len, batches)
    )
