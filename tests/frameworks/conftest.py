"""The programs that torchrun starts can be imported: on one process they run in the test's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "programs"))
