import runpy
from pathlib import Path

import pytest

ASSETS = Path(__file__).parents[1] / "benchmarks" / "assets.py"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of a real language model of 135 million parameters, with its tokenizer."""
    return runpy.run_path(str(ASSETS))["smollm2"]()
