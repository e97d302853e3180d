import runpy
from pathlib import Path

import pytest

from flowdata.transport import retrying

pytest_plugins = ["skips"]

ASSETS = Path(__file__).parents[1] / "benchmarks" / "assets.py"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of a real language model of 135 million parameters, with its tokenizer."""
    return runpy.run_path(str(ASSETS))["smollm2"]()
