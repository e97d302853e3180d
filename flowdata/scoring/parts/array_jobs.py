"""Which job of an array this is: as a user says it, or as the scheduler does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowdata.scoring.parts.row_blocks import Worker


@dataclass(frozen=True)
class _Scheduler:
    """What a scheduler tells the jobs of an array, by names of the environment.

    Attributes:
        index: the number of the job, from ``first`` on, ``step`` apart.
        count: how many jobs there are; None where that is not told.
        last: the number of the last one; None where that is not told.
        first: the number of the first one; None where that is not told.
        base: the number from which jobs are counted where nothing else is told.
    """

    name: str
    index: str
    count: str | None = None
    last: str | None = None
    first: str | None = None
    step: str | None = None
    base: int = 0

    @property
    def tells_of_some(self) -> bool:
        """Whether what it tells is of the jobs that were asked for, which may be some of all."""
        return self.last is not None


_SCHEDULERS = (
    _Scheduler(
        "SLURM",
        "SLURM_ARRAY_TASK_ID",
        count="SLURM_ARRAY_TASK_COUNT",
        last="SLURM_ARRAY_TASK_MAX",
        first="SLURM_ARRAY_TASK_MIN",
        step="SLURM_ARRAY_TASK_STEP",
    ),
    _Scheduler(
        "Grid Engine",
        "SGE_TASK_ID",
        last="SGE_TASK_LAST",
        first="SGE_TASK_FIRST",
        step="SGE_TASK_STEPSIZE",
        base=1,
    ),
    # It tells the last number of an array, and not the first.
    _Scheduler("LSF", "LSB_JOBINDEX", base=1),
    _Scheduler("AWS Batch", "AWS_BATCH_JOB_ARRAY_INDEX", count="AWS_BATCH_JOB_ARRAY_SIZE"),
    _Scheduler("Google Batch", "BATCH_TASK_INDEX", count="BATCH_TASK_COUNT"),
    _Scheduler("Cloud Run", "CLOUD_RUN_TASK_INDEX", count="CLOUD_RUN_TASK_COUNT"),
    _Scheduler("PBS", "PBS_ARRAY_INDEX"),
    _Scheduler("Torque", "PBS_ARRAYID"),
    _Scheduler("Kubernetes", "JOB_COMPLETION_INDEX"),
)
# What Grid Engine and LSF say to a job that is of no array.
_NO_ARRAY = {"SGE_TASK_ID": "undefined", "LSB_JOBINDEX": "0"}


def job_of(shard: Any) -> Worker | None:
    """The job that ``shard=(i, n)`` names.

    Raises:
        ValueError: for what names none.
    """
    if shard is None:
        return None
    if isinstance(shard, tuple | list) and len(shard) == 2:
        number, count = shard
        if all(type(some) is int for some in shard) and 0 <= number < count:
            return Worker(number, count)
    raise ValueError(
        f"shard must be (i, n), two whole numbers with i from 0 to n - 1, got {shard!r}"
    )


def read_shard(text: str, environment: Mapping[str, str]) -> tuple[Worker, str]:
    """The job that ``i/n`` names, or, for ``auto`` or ``auto/n``, the scheduler.

    Args:
        text: what a user typed.
        environment: of the process.

    Returns:
        The job, and where its number is from: empty where the user has said it.

    Raises:
        ValueError: for what names none, or where no scheduler, or none that tells all, is found.
    """
    if found := re.fullmatch(r"(\d+)/(0*[1-9]\d*)", text):
        number, count = int(found[1]), int(found[2])
        if number < count:
            return Worker(number, count), ""
        raise ValueError(
            f"{text}: jobs are counted from 0, so that the last is {count - 1}/{count}"
        )
    found = re.fullmatch(r"auto(?:/(0*[1-9]\d*))?", text)
    if not found:
        raise ValueError(f"{text} is no job of an array: give i/n with i from 0 to n - 1, or auto")
    for scheduler in _SCHEDULERS:
        index = environment.get(scheduler.index)
        if index is not None and index != _NO_ARRAY.get(scheduler.index):
            return _by_scheduler(scheduler, environment, found[1])
    of_srun = (
        ". Of tasks of srun it is $SLURM_PROCID/$SLURM_NTASKS, in a shell of each task"
        if "SLURM_PROCID" in environment
        else ""
    )
    raise ValueError(
        f"{text}: this process is in no array of jobs ("
        f"{', '.join(scheduler.index for scheduler in _SCHEDULERS)} are not set): give i/n{of_srun}"
    )


def _by_scheduler(
    scheduler: _Scheduler, environment: Mapping[str, str], count_given: str | None
) -> tuple[Worker, str]:
    told = {
        name: None if (key := getattr(scheduler, name)) is None else _number(environment, key)
        for name in ("index", "count", "last", "first", "step")
    }
    index, count, last, step = (told[name] for name in ("index", "count", "last", "step"))
    first = told["first"] if scheduler.first is not None else scheduler.base
    said = f"{scheduler.index}={environment[scheduler.index]}"
    if count_given is not None:
        # Some jobs of an array that are run again are an array of their own, from another number.
        count, first, step = int(count_given), scheduler.base, 1
        if last is not None and last >= first + count:
            raise ValueError(
                f"{scheduler.name} numbers jobs up to {last}, and of auto/{count} they are "
                f"numbered from {first} to {first + count - 1}: submit them with these numbers, "
                "or give --shard auto, which counts from the first of all jobs"
            )
        last = None
    if index is None or first is None or (count is None and last is None):
        raise ValueError(
            f"{scheduler.name} says {said}, and not how many jobs there are: give "
            f"--shard ${scheduler.index}/n, counted from 0"
        )
    step = step or 1
    of = count if count is not None else (last - first) // step + 1  # type: ignore[operator]
    number, rest = divmod(index - first, step)
    uneven = last is not None and first + (of - 1) * step != last
    if rest or uneven or not 0 <= number < of:
        raise ValueError(
            f"{scheduler.name} says {said} of {of} jobs, which are not numbered in a row from "
            f"{first}: give --shard i/n with the number and count of all jobs"
        )
    # One alone is some other than the first, or a trial of the script.
    some = first > 1 or (of == 1 and first != scheduler.base)
    if count_given is None and scheduler.tells_of_some and some:
        raise ValueError(
            f"{scheduler.name} says {said} of {of} jobs numbered from {first}, which may be some "
            "of an array that are run again: give --shard i/n with the number and count of all jobs"
        )
    return Worker(number, of), said


def _number(environment: Mapping[str, str], name: str) -> int | None:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        return None
