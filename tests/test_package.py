"""The package as a whole: what importing it costs, exports and says."""

import importlib.metadata
import subprocess
import sys
from importlib import resources

import pytest

import flowdata

OPTIONAL = (
    "datasets",
    "lightning",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "transformers",
    "webdataset",
)


def fresh(program):
    """What a program prints in a new interpreter."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_importing_the_package_imports_nothing_that_only_a_part_of_it_needs():
    program = f"import sys, flowdata; print([name for name in {OPTIONAL} if name in sys.modules])"
    ran = fresh(program)
    assert ran.stdout == "[]\n"
    assert ran.stderr == ""


@pytest.mark.slow
def test_weights_and_draws_need_no_optional_package():
    program = (
        "import sys, flowdata\n"
        "sampler = flowdata.FlowSampler(flowdata.LossTable.from_losses([1.0, 2.0, 3.0]))\n"
        f"print(len(list(sampler)), [name for name in {OPTIONAL} if name in sys.modules])"
    )
    assert fresh(program).stdout == "3 []\n"


def test_every_name_the_package_exports_exists():
    assert flowdata.__all__ == sorted(set(flowdata.__all__))
    for name in flowdata.__all__:
        assert getattr(flowdata, name).__module__.startswith("flowdata.")


def test_the_package_is_marked_as_typed():
    assert resources.files(flowdata).joinpath("py.typed").is_file()


def test_the_version_is_the_one_that_is_installed():
    assert flowdata.__version__ == importlib.metadata.version("flowdata")


def test_every_error_can_be_caught_as_one_kind():
    for error in (flowdata.InvalidLossError, flowdata.MismatchError, flowdata.TableFileError):
        assert issubclass(error, flowdata.FlowDataError)
    assert issubclass(flowdata.FlowDataWarning, UserWarning)
