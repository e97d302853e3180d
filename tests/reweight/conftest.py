"""Each test counts steps anew, as a process of its own would."""

import pytest

from flowdata.reweight.ledger import LEDGER


@pytest.fixture(autouse=True)
def _new_ledger():
    LEDGER.reset()
