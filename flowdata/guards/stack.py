"""The call stack: the only place that reads it.

No framework tells a sampler, a data set or a tensor who uses it. So the functions that are being
called are asked, by the names of their modules and their qualified names. Names like these move
between releases: whoever looks for one that is not there finds nothing, and stays silent.
"""

import sys
from collections.abc import Iterator
from types import FrameType

from flowdata.guards.switch import enabled


def frames() -> Iterator[tuple[str, str, FrameType]]:
    """(module, qualified name, frame) of each function that is running, the innermost first.

    Nothing where Python has no frames to show.
    """
    get_frame = getattr(sys, "_getframe", None)
    frame = None if get_frame is None else get_frame(1).f_back
    while frame is not None:
        # Code that was given globals of its own may have any name, or none.
        name = frame.f_globals.get("__name__")
        yield name if isinstance(name, str) else "", frame.f_code.co_qualname, frame
        frame = frame.f_back


def is_running(module: str, function: str) -> bool:
    """Whether a function of that module, whose qualified name begins so, is being called.

    False where guards are off.
    """
    return enabled() and any(
        found == module and name.startswith(function) for found, name, _ in frames()
    )
