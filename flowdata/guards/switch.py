"""The one switch of all guards."""

import os

VARIABLE = "FLOWDATA_GUARDS"
_OFF = frozenset({"off", "0", "false", "no"})


def off() -> None:
    """Switch all guards off, in this process and in those that it starts from now on.

    Nothing warns or raises any more where a framework uses flowdata wrongly, and no library is
    patched. What is drawn does not change. The same from outside: ``FLOWDATA_GUARDS=off`` in the
    environment.
    """
    os.environ[VARIABLE] = "off"


def on() -> None:
    """Switch the guards on again, as they are by default."""
    os.environ.pop(VARIABLE, None)


def enabled() -> bool:
    """Whether guards are on."""
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF
