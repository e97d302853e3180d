"""What flowdata raises and warns, so that callers can catch it by kind."""

import contextlib
import os
import sys
import warnings
from pathlib import Path

_OWN = (f"{Path(__file__).parent}{os.sep}", contextlib.__file__)


class FlowDataError(Exception):
    """Base of every error that is about the data, a file or a state rather than a call."""


class InvalidLossError(FlowDataError, ValueError):
    """Losses or weights from which no sampling distribution can be made."""


class TableFileError(FlowDataError):
    """A loss table file that is missing, truncated, foreign or cannot be written."""


class DataFileError(FlowDataError, ValueError):
    """A file of rows that is damaged, is not what its manifest says, or has a line of no row."""


class ShardError(FlowDataError):
    """A tar shard that is missing, cut off, changed, made to do harm, or has a key twice."""


class MismatchError(FlowDataError, ValueError):
    """A loss table or a saved state that belongs to other data, weights or another model."""


class FlowDataWarning(UserWarning):
    """Something is probably not what the user wants, but the result is well defined."""


def warn(message: str) -> None:
    """Warn at the line outside this package from which it was called."""
    frame, level = sys._getframe(1), 2
    # contextlib calls what follows a ``with`` of ours.
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, FlowDataWarning, stacklevel=level)
