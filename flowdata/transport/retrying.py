"""Requests that are made again after failures that may pass."""

import time
from collections.abc import Callable
from typing import TypeVar, cast

from flowdata.errors import ShardError
from flowdata.transport.access import Access, RefusedError
from flowdata.transport.urls import redact

T = TypeVar("T")

FIRST_WAIT = 0.2
"""Seconds before the first repetition; each of the next waits twice as long."""
_LONGEST_WAIT = 10.0


def retry(fetch: Callable[[], T], url: str, access: Access) -> T:
    """Call ``fetch``, again after failures that may pass, and return its result.

    Raises:
        ShardError: when it failed for good, naming the shard and the last failure.
    """
    from urllib3.exceptions import HTTPError

    for attempt in range(access.retries + 1):
        wait = 0.0
        try:
            return fetch()
        # These two will not pass, however often they are tried.
        except (FileNotFoundError, PermissionError) as error:
            raise ShardError(
                f"there is no shard {redact(url)}, or permission was denied"
            ) from error
        except RefusedError as error:
            if error.permanent:
                raise ShardError(f"{redact(url)}: {error}") from error
            failure, wait = cast(Exception, error), error.wait
        except (HTTPError, OSError, EOFError, TimeoutError) as error:
            failure = error
        if attempt < access.retries:
            # A server that says how long to wait is obeyed, up to a limit.
            time.sleep(min(max(wait, FIRST_WAIT * 2**attempt), _LONGEST_WAIT))
    raise ShardError(
        f"{redact(url)} could not be read in {access.retries + 1} attempts; the last failed with "
        f"{type(failure).__name__}: {failure}"
    ) from failure


def require_complete(content: bytes, size: int, offset: int, name: str) -> bytes:
    """Return the content if it has all bytes that were asked for.

    Raises:
        EOFError: for less.
    """
    if len(content) != size:
        raise EOFError(f"{name} has {len(content):,} of {size:,} bytes from byte {offset:,} on")
    return content
