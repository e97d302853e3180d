import runpy
from pathlib import Path

import pytest

from flowdata.transport import retrying

pytest_plugins = ["skips"]

ASSETS = Path(__file__).parents[1] / "benchmarks" / "assets.py"


def pytest_collection_modifyitems(items):
    """Tests that read the real model are slow: it has to be fetched first."""
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    # Files that take long first, so that no process waits for the last one.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(retrying, "FIRST_WAIT", 0.001)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of a real language model of 135 million parameters, with its tokenizer."""
    return runpy.run_path(str(ASSETS))["smollm2"]()
