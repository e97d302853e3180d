"""Warnings of lost weights are for the tests that ask for them by `watched`."""

import gc
from collections import defaultdict

import pytest

from flowdata.reweight import ledger
from flowdata.reweight.ledger import Ledger


@pytest.fixture(autouse=True)
def _quiet(request, monkeypatch):
    if "watched" not in request.fixturenames:
        monkeypatch.setattr(Ledger, "__del__", lambda _: None)


@pytest.fixture
def watched(monkeypatch):
    gc.collect()
    monkeypatch.setattr(ledger, "_accounts", defaultdict(ledger._Account))
    monkeypatch.setattr(ledger._Steps, "gone", {})
    monkeypatch.setattr(ledger._Steps, "weighted", False)
