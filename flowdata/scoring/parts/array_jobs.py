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
        last: the number of the last one, of schedulers that tell no count.
        first: name, or number where none is told.
    """

    name: str
    index: str
    count: str | None = None
    last: str | None = None
    first: str | int = 0
    step: str | int = 1

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
    ),
    # It tells the last number of an array, and not the first.
    _Scheduler("LSF", "LSB_JOBINDEX", first=1),
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
    if found := re.fullmatch(r"(\d+)/(\d+)", text):
        number, count = int(found[1]), int(found[2])
        if number < count:
            return Worker(number, count), ""
        raise ValueError(
            f"{text}: jobs are counted from 0, so that the last is {count - 1}/{count}"
        )
    found = re.fullmatch(r"auto(?:/(\d+))?", text)
    if not found:
        raise ValueError(f"{text} is no job of an array: give i/n with i from 0 to n - 1, or auto")
    for scheduler in _SCHEDULERS:
        index = environment.get(scheduler.index)
        if index is not None and index != _NO_ARRAY.get(scheduler.index):
            return _by_scheduler(scheduler, environment, found[1])
    raise ValueError(
        f"{text}: this process is in no array of jobs ("
        f"{', '.join(scheduler.index for scheduler in _SCHEDULERS)} are not set): give i/n"
    )


def _by_scheduler(
    scheduler: _Scheduler, environment: Mapping[str, str], count_given: str | None
) -> tuple[Worker, str]:
    told: dict[str, int | None] = {}
    for name in ("index", "count", "last", "first", "step"):
        key = getattr(scheduler, name)
        told[name] = _number(environment, key) if isinstance(key, str) else key
    index, first, step = told["index"], told["first"], told["step"] or 1
    said = f"{scheduler.index}={environment[scheduler.index]}"
    count, last = told["count"], told["last"]
    if count_given is not None:
        # Some jobs of an array that are run again are an array of their own, from another number.
        count, last, step = int(count_given), None, 1
        first = 0 if scheduler.first == 0 or isinstance(scheduler.first, str) else first
    if index is None or first is None or (count is None and last is None):
        raise ValueError(
            f"{scheduler.name} says {said}, and not how many jobs there are: give "
            f"--shard ${scheduler.index}/n, counted from 0"
        )
    of = count if count is not None else (last - first) // step + 1  # type: ignore[operator]
    number, rest = divmod(index - first, step)
    uneven = last is not None and first + (of - 1) * step != last
    if rest or uneven or not 0 <= number < of:
        raise ValueError(
            f"{scheduler.name} says {said} of {of} jobs, which are not numbered in a row from "
            f"{first}: give --shard i/n with the number and count of all jobs"
        )
    if count_given is None and scheduler.tells_of_some and (of == 1 or first > 1):
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
