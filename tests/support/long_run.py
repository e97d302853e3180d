"""Whether this is `make test-long`: suites that try everything then do, and a sample otherwise."""

import os

LONG = "FLOWDATA_LONG" in os.environ


def some(cases, *ordinary):
    """Of these cases all in a long run, and those that are named in an ordinary one."""
    missing = set(ordinary) - set(cases)
    assert not missing, f"no such cases: {missing}"
    return list(cases) if LONG else list(ordinary)
