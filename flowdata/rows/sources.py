"""Source: the rows of a stream, and where it is among them, without leaving a trace in it."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from flowdata.errors import MismatchError


class Source:
    """Goes through a stream of rows once, from its start or from a state.

    Args:
        stream: a ``datasets.IterableDataset``, or any iterable of dicts.
    """

    def __init__(self, stream: Any) -> None:
        self._keeps_rows = hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")
        datasets = sys.modules.get("datasets")
        if datasets is not None and isinstance(stream, datasets.IterableDataset):
            from flowdata.rows.streams import forgets_rows, same_stream

            self._keeps_rows = not forgets_rows(stream)
            # A state that was loaded would stay in it, for the training after this pass.
            stream = same_stream(stream)
        self._stream = stream

    @property
    def epoch(self) -> int | None:
        """The epoch of the stream, if it has any."""
        epoch = getattr(self._stream, "epoch", None)
        return epoch if isinstance(epoch, int) else None

    def first(self, rows: int) -> list[Any]:
        """So many rows from the start; none of what can be gone through once."""
        if iter(self._stream) is self._stream:
            return []
        return list(islice(self._stream, rows))

    def rows(self, state: Any, read: int) -> Iterator[Any]:
        """The rows that are left where a state was taken, after so many.

        Args:
            state: what `state` gave then; None to read all of them again.
            read: rows before.

        Raises:
            MismatchError: for a state of a stream that was made in another way.
        """
        if state is None:
            return islice(self._stream, read, None)
        if (begun := _steps_in(state)) != (now := _steps_in(self._stream.state_dict())):
            raise MismatchError(
                f"the stream whose state was saved had the steps {begun}, this has {now}: go on "
                "with one that is made in the same way, or begin anew"
            )
        self._stream.load_state_dict(state)
        return iter(self._stream)

    def state(self) -> Any:
        """Where the stream is now, as JSON has it; None where it cannot say, and is read again."""
        if not self._keeps_rows:
            return None
        try:
            return json.loads(json.dumps(self._stream.state_dict()))
        except (TypeError, ValueError):
            return None


def _steps_in(state: Any) -> list[Any]:
    """The steps of a stream of datasets, the last one first; of others nothing is known."""
    found = []
    while isinstance(state, dict) and isinstance(state := state.get("examples_iterable"), dict):
        found.append(state.get("type"))
    return found
