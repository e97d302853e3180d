"""Which job of an array a process is, by what schedulers tell it."""

import pytest

from flowdata.scoring.parts.array_jobs import job_of, read_shard

SLURM = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "4",
    "SLURM_ARRAY_TASK_STEP": "1",
}
STEPS = {"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "4"}
STEPS |= {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MAX": "12"}
GRID = {"SGE_TASK_ID": "7", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "2"}


def slurm(index, first, last, count):
    numbers = {"ID": index, "MIN": first, "MAX": last, "COUNT": count, "STEP": 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in numbers.items()}


AWS = {"AWS_BATCH_JOB_ARRAY_INDEX": "0", "AWS_BATCH_JOB_ARRAY_SIZE": "12"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, (2, 4)),
        (STEPS, (2, 4)),
        (GRID, (3, 5)),
        # A script that is tried as one job.
        (slurm(0, 0, 0, 1), (0, 1)),
        ({"SGE_TASK_ID": "undefined", **AWS}, (0, 12)),
        ({"LSB_JOBINDEX": "0", "LSB_JOBINDEX_END": "0", **AWS}, (0, 12)),
        ({"BATCH_TASK_INDEX": "3", "BATCH_TASK_COUNT": "4"}, (3, 4)),
        ({"CLOUD_RUN_TASK_INDEX": "3", "CLOUD_RUN_TASK_COUNT": "4"}, (3, 4)),
    ],
)
def test_schedulers_that_tell_number_and_count_are_understood(environment, expected):
    job, said = read_shard("auto", environment)
    assert job == expected
    name, value = said.split("=")
    assert environment[name] == value


@pytest.mark.parametrize(
    ("environment", "text", "expected"),
    [
        ({"PBS_ARRAY_INDEX": "2"}, "auto/4", (2, 4)),
        ({"PBS_ARRAYID": "0"}, "auto/4", (0, 4)),
        ({"JOB_COMPLETION_INDEX": "3"}, "auto/4", (3, 4)),
        # One that is run again alone, as by sbatch --array=5.
        (slurm(5, 5, 5, 1), "auto/8", (5, 8)),
        ({"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "5"}, "auto/8", (2, 8)),
        # Grid Engine numbers from 1 on.
        (GRID | {"SGE_TASK_FIRST": "7", "SGE_TASK_STEPSIZE": "1"}, "auto/9", (6, 9)),
        ({}, "3/8", (3, 8)),
        (SLURM, "0/1", (0, 1)),
    ],
)
def test_a_count_that_is_given_is_that_of_all_jobs(environment, text, expected):
    assert read_shard(text, environment)[0] == expected


@pytest.mark.parametrize(
    ("environment", "text", "message"),
    [
        ({}, "auto", "in no array of jobs .*SLURM_ARRAY_TASK_ID"),
        ({"LSB_JOBINDEX": "0", "SGE_TASK_ID": "undefined"}, "auto", "in no array of jobs"),
        ({"PBS_ARRAY_INDEX": "2"}, "auto", r"PBS says PBS_ARRAY_INDEX=2, and not how many"),
        ({"JOB_COMPLETION_INDEX": "2"}, "auto", r"--shard \$JOB_COMPLETION_INDEX/n, counted"),
        (SLURM | {"SLURM_ARRAY_TASK_ID": "x"}, "auto", "SLURM_ARRAY_TASK_ID=x, and not how many"),
        ({"LSB_JOBINDEX": "3", "LSB_JOBINDEX_END": "5"}, "auto", "not how many jobs there are"),
        # --array=3,5; 1,2,4; and what may be run again: 5; 1; 3,4; 6-7.
        (slurm(3, 3, 5, 2), "auto", "of 2 jobs, which are not numbered in a row from 3: give"),
        (slurm(1, 1, 4, 3), "auto", "of 3 jobs, which are not numbered in a row from 1: give"),
        (slurm(5, 5, 5, 1), "auto", "may be some of an array that are run again: give --shard i/n"),
        (slurm(1, 1, 1, 1), "auto", "may be some of an array"),
        (slurm(4, 3, 4, 2), "auto", "may be some of an array"),
        (GRID | {"SGE_TASK_FIRST": "7"}, "auto", "of 2 jobs numbered from 7, which may be some"),
        (STEPS | {"SLURM_ARRAY_TASK_ID": "9"}, "auto", "not numbered in a row from 0"),
        ({"PBS_ARRAY_INDEX": "4"}, "auto/4", "of 4 jobs, which are not numbered in a row from 0"),
        (slurm(1, 1, 8, 8), "auto/8", "up to 8, and of auto/8 they are numbered from 0 to 7: sub"),
        (GRID, "auto/5", "up to 9, and of auto/5 they are numbered from 1 to 5: submit"),
        ({"SLURM_PROCID": "1"}, "auto", r"it is \$SLURM_PROCID/\$SLURM_NTASKS, in a shell"),
        ({}, "8/8", "counted from 0, so that the last is 7/8"),
        *(
            ({}, text, "is no job of an array")
            for text in ("", "3", "-1/4", "1/n", "auto/", "1/4/2", "0/0", "auto/0")
        ),
    ],
)
def test_what_names_no_job_is_refused_with_what_to_give(environment, text, message):
    with pytest.raises(ValueError, match=message):
        read_shard(text, environment)


@pytest.mark.parametrize(
    "shard", [(3, 3), (-1, 3), (0, 0), (0.0, 2), (True, 2), "0/2", 1, (0, 1, 2)]
)
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=r"shard must be \(i, n\), two whole numbers"):
        job_of(shard)


def test_a_shard_is_a_job_and_none_is_none():
    assert job_of(None) is None
    assert job_of((1, 2)) == job_of([1, 2]) == (1, 2)
