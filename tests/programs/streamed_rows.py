"""Scores a stream of rows on all ranks, stopped on each after some batches, and then goes on.

The argument is the path of a JSON object: rows, batches, output, out.
"""

import json
import sys
from pathlib import Path

import datasets
import torch.distributed as dist
from datasets.distributed import split_dataset_by_node
from leaving import leave_together
from scoring_lines import Line, Stop

from flowdata import FlowDataError, score


def absolute(model, batch):
    """Stops after ``absolute.left`` batches; what a function has of its own is not its code."""
    absolute.left -= 1
    if absolute.left < 0:
        raise Stop
    absolute.rows += len(batch["x"])
    return model(batch["x"]).abs().float()


absolute.rows = 0


def main(path):
    config = json.loads(Path(path).read_text())
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    rows = [{"id": f"row {number}", "x": float(number)} for number in range(config["rows"])]
    whole = datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=3)
    stream = split_dataset_by_node(whole, rank, ranks)
    absolute.left = config["batches"] + rank
    options = {"key": "id", "batch_size": 3, "save_every": 0.0, "progress": False}
    try:
        score(Line(), whole, lambda model, batch: model(batch["x"]).float(), **options)
        twice = None
    except FlowDataError as error:
        twice = str(error)
    try:
        score(Line(), stream, absolute, output=config["output"], **options)
        raise AssertionError("it was to be stopped")
    except (Stop, FlowDataError):
        before, absolute.left = absolute.rows, len(rows)
    table = score(Line(), stream, absolute, output=config["output"], **options)
    found = dict(zip(table.keys, table.losses.tolist(), strict=True))
    outcome = [found, before, absolute.rows, twice]
    outcomes = [None] * ranks
    dist.all_gather_object(outcomes, outcome)
    if rank == 0:
        Path(config["out"]).write_text(json.dumps(outcomes))
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
