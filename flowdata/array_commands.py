"""Arrays of jobs on the command line: ``flowdata score --shard``, and ``flowdata merge``."""

import argparse
import os

from flowdata.core.states import require_same
from flowdata.files import Place
from flowdata.shell import Commands, print_summary, require_place, table_of
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
    from flowdata.scoring.array_jobs import read_shard

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
    """Refuse a count that a scheduler tells where jobs of an array of another size have scored.

    Some jobs that are run again are an array of their own, which may begin with the same number.
    """
    from flowdata.scoring.parts import Parts

    folder = Parts(output).folder
    if others := array_sizes(folder) - {count}:
        raise ValueError(
            f"the scheduler tells of {count} jobs ({said}), and {folder} has parts of arrays of "
            f"{sorted(others)} jobs. To run some of those again give --shard i/n, or auto/n, with "
            "the count of all jobs"
        )


def print_share(losses: LossTable, output: Place, job: tuple[int, int]) -> None:
    """Say what a job of an array has done, and what comes when all have."""
    from flowdata.scoring.parts import Parts

    parts = Parts(output)
    if parts.is_finished:
        print(f"{output} is there already, of all rows: there was nothing to do")
        return
    number, count = job
    print(
        f"job {number}/{count} has scored its share, {len(losses):,} rows, which are in "
        f"{parts.folder}. When all jobs have:\nflowdata merge {parts.folder} --output {output}"
    )


def add_merge(commands: Commands) -> None:
    """The command ``merge``."""
    merge = commands.add_parser(
        "merge",
        help="the loss table of what jobs of an array, or a pass that was stopped, have scored",
        description="Put together what flowdata score has left in folders TABLE.parts, by jobs of "
        "an array or on several machines, to one loss table. Needs neither the model nor the data, "
        "says which rows and jobs are missing, and refuses parts of different passes. Deletes "
        "nothing.",
    )
    merge.add_argument(
        "parts",
        nargs="+",
        type=table_of,
        help="folders TABLE.parts, or folders that have some; paths or URLs",
    )
    merge.add_argument(
        "-o", "--output", type=table_of, required=True, help="the table, a .parquet file or a URL"
    )
    merge.set_defaults(run=_run_merge, parser=merge)


def _run_merge(options: argparse.Namespace) -> None:
    output = options.output
    require_place(output)
    table = LossTable.merge(options.parts)
    if output.is_file():
        require_same(
            table.provenance.identity(),
            LossTable.load(output).provenance.identity(),
            what=f"the table {output}",
            advice="Choose another --output, or delete it",
        )
    table.save(output)
    print_summary(table, output)
