"""Each test counts steps anew, as a process of its own would."""

import pytest

from flowdata.reweight.unused_weights import MONITOR


@pytest.fixture(autouse=True)
def _new_monitor():
    MONITOR.reset()
