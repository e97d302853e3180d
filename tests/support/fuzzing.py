"""How many examples the laws of a test file try: more of them, and new ones, in a long run."""

import os

from hypothesis import settings

TIMES = int(os.environ.get("FLOWDATA_FUZZ", "1"))
"""Examples for each one of an ordinary run, whose examples are the same every time."""


def examples(count: int = 100) -> settings:
    """Settings of hypothesis for a law that is tried on this many examples."""
    return settings(deadline=None, derandomize=TIMES == 1, max_examples=count * TIMES)
