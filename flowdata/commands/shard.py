"""One job of an array: ``flowdata score --shard``."""

import argparse
import os

from flowdata.files import Place
from flowdata.table.loss_table import LossTable
from flowdata.table.merging import array_sizes


def add_shard(command: argparse.ArgumentParser) -> None:
    """The option that makes a command one job of an array."""
    command.add_argument(
        "--shard",
        metavar="I/N",
        help="this is job I of an array of N jobs, counted from 0, which share the rows; auto, or "
        "auto/N, takes I, and N, from the scheduler (SLURM, Grid Engine, AWS and Google Batch, "
        "Cloud Run; I alone from PBS, LSF, Kubernetes). flowdata merge puts together what they "
        "leave",
    )


def shard_of(options: argparse.Namespace) -> tuple[int, int] | None:
    """The job that a user has named; a line says which one it is where the scheduler does."""
    from flowdata.scoring.parts.array_jobs import read_shard

    if options.shard is None:
        return None
    if options.known is not None:
        raise ValueError("--shard and --known do not go together: score the new rows alone")
    job, said = read_shard(options.shard, os.environ)
    if options.shard == "auto":
        _require_same_array(options.output, job.of, said)
    if said and os.environ.get("RANK", "0") == "0":
        print(f"this is job {job.number} of {job.of}, counted from 0, as {said}", flush=True)
    return job


def _require_same_array(output: Place, count: int, said: str) -> None:
    """Refuse a count that a scheduler tells where jobs of a larger array have scored.

    Some jobs that are run again are an array of their own, which may begin with the same number.
    """
    from flowdata.scoring.parts.folder import Parts

    folder = Parts(output).folder
    if others := [size for size in sorted(array_sizes(folder)) if size > count]:
        raise ValueError(
            f"the scheduler tells of {count} jobs ({said}), and {folder} has parts of arrays of "
            f"{others} jobs. To run some of those again give --shard i/n, or auto/n, with "
            "the count of all jobs"
        )


def print_share(losses: LossTable, output: Place, job: tuple[int, int]) -> None:
    """Say what a job of an array has done, and what comes when all have."""
    from flowdata.scoring.parts.folder import Parts

    parts = Parts(output)
    if parts.is_finished:
        print(f"{output} is there already, of all rows: there was nothing to do")
        return
    number, count = job
    print(
        f"job {number}/{count} has scored its share, {len(losses):,} rows, which are in "
        f"{parts.folder}. When all jobs have:\nflowdata merge {parts.folder} --output {output}"
    )
