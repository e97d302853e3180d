"""Tests of what the lowest releases of torch do not have."""

import pytest
import torch


def lacks(what):
    """Why a test is skipped; tests/support/skips.py lets it be of releases before 2.13 only."""
    return f"torch {torch.__version__} has no {what}"


def needs(has, what):
    """A mark of tests that are skipped where this release of torch has no such thing."""
    return pytest.mark.skipif(not has, reason=lacks(what))
