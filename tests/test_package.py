"""The package as a whole: what importing it costs, exports, needs and says."""

import ast
import importlib.metadata
import itertools
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import flowdata

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS, BENCHMARKS = ROOT / "flowdata", ROOT / "tests", ROOT / "benchmarks"
OPTIONAL = (
    "datasets",
    "lightning",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy",
    "sklearn",
    "tabulate",
    "transformers",
    "webdataset",
)
OURS = ("test", "mutants", "dev")
"""Extras for those who work on the package."""

MOST_LINES = 400
STACK_READERS = ("guards/", "errors.py")
"""Where the call stack may be read: guards, and the helper that places warnings."""

BLOCKING = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

allowed = {"flowdata", "numpy", "xxhash", *sys.stdlib_module_names}
sys.meta_path.insert(0, Blocker())
"""


def fresh(program):
    """What a program prints in a new interpreter."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def python_files(*folders):
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]


def imports_of(paths):
    """The first parts of all names that are imported, anywhere in these files."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names)


def distributions_of(modules):
    """What has to be installed for modules to be there: scikit-learn for sklearn."""
    names = importlib.metadata.packages_distributions()
    return {names.get(module, [module])[0].lower().replace("_", "-") for module in modules}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared(project, *extras):
    """The names of what the package depends on, with these extras."""
    requirements, names = list(project["dependencies"]), set()
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    for requirement in requirements:
        name, more = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()
        names |= declared(project, *more.split(",")) if name == "flowdata" else {name.lower()}
    return names


# What importing costs.


@pytest.mark.slow
def test_importing_the_package_imports_nothing_that_only_a_part_of_it_needs():
    names = ("torch", "numpy", *OPTIONAL)
    ran = fresh(f"import sys, flowdata; print([name for name in {names} if name in sys.modules])")
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


def test_the_core_needs_numpy_and_xxhash_alone():
    modules = [f"flowdata.core.{path.stem}" for path in python_files(PACKAGE / "core")]
    assert "flowdata.core.plan" in modules
    program = (
        f"{BLOCKING}\n"
        f"from importlib import import_module\n"
        f"for name in {modules}: import_module(name)\n"
        "from flowdata import EpochPlan, FlowWeights\n"
        "print(len(EpochPlan(FlowWeights.from_losses([1.0, 2.0, 3.0]), seed=0)))"
    )
    assert fresh(program).stdout == "3\n"


def test_what_is_blocked_cannot_be_imported():
    program = f"{BLOCKING}\ntry: import torch\nexcept ModuleNotFoundError as error: print(error)"
    assert fresh(program).stdout == "No module named 'torch'\n"


@pytest.mark.slow
def test_loading_a_table_imports_nothing_that_fetches(tmp_path):
    path = tmp_path / "losses.parquet"
    flowdata.LossTable.from_losses([1.0, 2.0]).save(path)
    fetching = ("flowdata.transport", "flowdata.tar", "urllib3", "fsspec")
    program = (
        "import sys, flowdata\n"
        f"print(len(flowdata.LossTable.load({str(path)!r})))\n"
        f"print([name for name in {fetching} if name in sys.modules])"
    )
    assert fresh(program).stdout == "2\n[]\n"


# What the package needs.


def test_what_the_package_imports_is_declared_and_the_other_way_round(project):
    imported = distributions_of(imports_of(python_files(PACKAGE)) - {"flowdata"})
    for_users = [name for name in project["optional-dependencies"] if name not in OURS]
    assert imported - declared(project, *for_users) == set()
    assert declared(project) - imported == set()


@pytest.mark.parametrize("folder", [TESTS, BENCHMARKS], ids=["tests", "benchmarks"])
def test_what_tests_and_benchmarks_import_is_in_the_extra_test(project, folder):
    files = python_files(folder)
    # Tests use the benchmarks' server.
    local = {path.stem for path in [*files, *python_files(BENCHMARKS)]} | {"flowdata"}
    imported = distributions_of(imports_of(files) - local)
    assert imported - declared(project, "test", "mutants") == set()


def test_the_lowest_releases_that_are_run_are_those_that_are_promised(project):
    promised = {}
    extras = project["optional-dependencies"].values()
    for requirement in itertools.chain(project["dependencies"], *extras):
        if match := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement):
            promised.setdefault(match[1].lower(), set()).add(match[2])
    run = dict(
        line.split("==")
        for line in (TESTS / "lowest.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    tools = {"ruff", "mypy", "import-linter", "build", "mutmut", "libcst"}
    assert promised.keys() - tools == run.keys()
    for name, version in run.items():
        # 2.5 promises the releases 2.5.0, 2.5.1, ... of which one is run.
        (bound,) = promised[name]
        assert f"{version}.0.0".startswith(f"{bound}."), name


# What it exports.


def test_every_name_the_package_exports_exists():
    assert flowdata.__all__ == sorted(set(flowdata.__all__))
    for name in flowdata.__all__:
        assert getattr(flowdata, name).__module__.startswith("flowdata.")


def test_what_type_checkers_see_is_what_is_imported_when_used():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    seen = {
        alias.name: node.module
        for node in checked.body
        for alias in node.names
        if alias.name == alias.asname
    }
    packages = {name for name, module in seen.items() if module == "flowdata"}
    assert packages == {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"errors"}
    assert packages <= set(dir(flowdata))
    for name in packages:
        assert getattr(flowdata, name).__name__ == f"{seen.pop(name)}.{name}"
    assert sorted(seen) == flowdata.__all__
    (modules,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "_MODULES"
    ]
    assert seen == {
        name: f"flowdata.{module}" for module, names in modules.items() for name in names
    }


@pytest.mark.slow
def test_threads_may_use_names_for_the_first_time_at_once():
    program = (
        "import threading, flowdata\n"
        "names = ['FlowSampler', 'FlowDataset', 'LossTable', 'WeightedTarget', 'score'] * 2\n"
        "found = []\n"
        "use = lambda name: found.append(getattr(flowdata, name).__name__)\n"
        "threads = [threading.Thread(target=use, args=(name,)) for name in names]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "print(sorted(found) == sorted(names))"
    )
    assert fresh(program).stdout == "True\n"


def test_a_name_that_it_does_not_export_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'flowdata' has no attribute 'FlowSamplr'"):
        _ = flowdata.FlowSamplr


def test_the_package_is_marked_as_typed():
    assert resources.files(flowdata).joinpath("py.typed").is_file()


def test_the_version_is_the_one_that_is_installed():
    assert flowdata.__version__ == importlib.metadata.version("flowdata")


def test_every_error_can_be_caught_as_one_kind():
    for error in (flowdata.InvalidLossError, flowdata.MismatchError, flowdata.TableFileError):
        assert issubclass(error, flowdata.FlowDataError)
    assert issubclass(flowdata.FlowDataWarning, UserWarning)


# How it is written.


def test_no_file_is_longer_than_one_can_read():
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in python_files(PACKAGE, TESTS, BENCHMARKS)
    }
    assert {path: lines for path, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_call_stack_is_read_by_guards_alone():
    readers = [
        str(path.relative_to(PACKAGE))
        for path in python_files(PACKAGE)
        if re.search(r"_getframe|currentframe|inspect\.stack", path.read_text())
    ]
    assert [path for path in readers if not path.startswith(STACK_READERS)] == []


# How it is tested.


@pytest.mark.slow
@pytest.mark.parametrize(("ci", "missing"), [("", "skipped"), ("true", "failed")])
def test_a_skip_that_nobody_expects_is_a_failure(tmp_path, monkeypatch, ci, missing):
    (tmp_path / "test_file.py").write_text(
        "import pytest\n"
        "def test_lazy(): pytest.skip('no time')\n"
        "def test_gpu(): pytest.skip('there is a GPU')\n"
        "def test_missing(): pytest.importorskip('no_such_package')\n"
        "@pytest.mark.xfail\n"
        "def test_known(): assert 0\n"
    )
    (tmp_path / "test_module.py").write_text(
        "import pytest\npytest.skip('whole file', allow_module_level=True)\n"
    )
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTHONPATH", str(TESTS / "support"))
    command = [sys.executable, "-m", "pytest", "-p", "skips", "-c", "/dev/null", "-vv"]
    done = subprocess.run(
        [*command, "--continue-on-collection-errors", "--rootdir", tmp_path, tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    outcomes = dict(re.findall(r"::(test_\w+) ([A-Z]+)", done.stdout))
    assert outcomes == {
        "test_lazy": "FAILED",
        "test_gpu": "SKIPPED",
        "test_missing": missing.upper(),
        "test_known": "XFAIL",
    }
    assert "test_module.py was skipped: 'whole file'. Reasons that are expected" in done.stdout
    assert "test_lazy was skipped: 'no time'. Reasons that are expected" in done.stdout
