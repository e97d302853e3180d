"""A skipped test is a failed one, unless its reason is expected: nothing goes unrun unnoticed."""

import os
import re

import pytest

EXPECTED = (
    # tests/commands/test_cli.py: what `--device cuda` says on a machine without a GPU.
    "there is a GPU",
    # tests/tar/test_tar.py: an archive written by GNU tar, on a file system that keeps holes.
    "no tar with sparse files here",
    # tests/frameworks: what a second process does not change is run on one.
    "one process is enough",
    # tests/scoring/engines/test_ray.py: what starts many workers is left to `make test-long`.
    "in a long run alone",
    # benchmarks/measure.py reads /proc.
    "(peak )?memory is read from /proc",
    # tests/support/torch_release.py: the lowest releases lack what 2.13 has.
    r"torch 2\.([5-9]|1[0-2])\..* has no .*",
    # tests/scoring/layouts/test_turns.py: TRL has changed which tokens it labels.
    "this TRL takes the length of the prompt alone",
)
"""Reasons that are good ones, as regular expressions; most depend on the machine."""

MISSING = r"could not import '[\w.]+': No module named .*"
"""What pytest.importorskip says of a package that is not installed. In CI, all are."""


def is_expected(reason: str) -> bool:
    """Whether a test may be skipped for this reason here."""
    reason = reason.removeprefix("Skipped: ")
    expected = EXPECTED if os.environ.get("CI") else (*EXPECTED, MISSING)
    return any(re.fullmatch(pattern, reason) for pattern in expected)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Of a test."""
    return failed_if_unexpected((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Of a whole file."""
    return failed_if_unexpected((yield))


def failed_if_unexpected(report):
    """The report, of a failure if it is of a skip that nobody expects."""
    # An expected failure (xfail) is reported as skipped, too. Its longrepr is no triple.
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if not is_expected(reason):
            report.outcome = "failed"
            report.longrepr = (
                f"{report.nodeid} was skipped: {reason.removeprefix('Skipped: ')!r}. "
                "Reasons that are expected are listed in tests/support/skips.py"
            )
    return report
