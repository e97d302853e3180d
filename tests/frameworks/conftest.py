"""The programs that torchrun starts can be imported: on one process they run in the test's."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "programs"), str(TESTS / "shards")]
