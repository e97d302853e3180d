"""Where a library has renamed what guards look for, everything else works, and no guard warns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "programs" / "renamed_library.py"
PACKAGE = Path(__file__).parents[2] / "flowdata"
# What is looked for, by the package whose name it is, and the training that comes past it.
NAMES = {
    ("torch.utils.data", "plain"): [
        "_MapDatasetFetcher",
        "_IterableDatasetFetcher",
        "possibly_batched_index",
        "auto_collation",
    ],
    ("torch", "plain"): ["_disable_dynamo", "nontraceable_tensor_subclasses"],
    ("accelerate", "accelerate"): [
        "BatchSamplerShard",
        "DataLoaderDispatcher",
        "DataLoaderAdapter",
        "IterableDatasetShard",
        "skip_batches",
        "even_batches",
    ],
    ("lightning", "lightning"): [
        "_FitLoop",
        "_DatasetSamplerWrapper",
        "restarting",
        "is_resuming",
    ],
    ("transformers", "trainer"): [
        "LengthGroupedSampler",
        "DistributedLengthGroupedSampler",
        "_get_train_sampler",
        "LabelSmoother",
    ],
}
# One after the other takes minutes: that is done by `make test-long`.
IN_TURN = "FLOWDATA_LONG" in os.environ
RENAMED = [
    pytest.param(package, scenario, renamed, id=f"{package}: {renamed}")
    for (package, scenario), names in NAMES.items()
    for renamed in (names if IN_TURN else [",".join(names)])
]


@pytest.mark.slow
@pytest.mark.parametrize(("package", "scenario", "names"), RENAMED)
def test_training_and_resuming_work_where_names_are_others(package, scenario, names):
    ran = subprocess.run(
        [sys.executable, str(PROGRAM), package, names, scenario],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_every_name_is_one_that_the_package_looks_for():
    source = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    assert [name for names in NAMES.values() for name in names if name not in source] == []
