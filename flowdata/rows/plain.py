"""KeyedRows: what a task makes of the rows of any iterable, as a torch IterableDataset."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from flowdata.core.plan import non_negative
from flowdata.core.states import saved_count, shown
from flowdata.errors import MismatchError
from flowdata.map_style.shared_memory import SharedArray
from flowdata.rows.lookup import Found, Lookup, RowTask

_TASK, _EPOCH, _READ, _SOURCE, _GIVEN = "task", "epoch", "read", "source", "given"


class KeyedRows(IterableDataset[dict[str, Any]]):
    """The rows that a task makes of those of an iterable of dicts.

    A torch IterableDataset divides its rows between the workers of a DataLoader itself. Of anything
    else, which every worker reads in full, worker w of W has rows w, w + W, ....

    Args:
        rows: an iterable of dicts, or a torch IterableDataset of them.
        task: what is done with them.
    """

    def __init__(self, rows: Any, task: RowTask) -> None:
        self._rows, self._task = rows, task
        self._epoch = SharedArray(1, torch.int64)
        self._loaded: dict[str, Any] | None = None
        self._state: dict[str, Any] | None = None
        self._is_gone_through = False

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return int(self._epoch.values[0])

    def set_epoch(self, epoch: int) -> None:
        """Make ``epoch`` that of the passes to come, in worker processes too."""
        self._epoch.values[0] = non_negative(epoch, "epoch")
        self._loaded = None
        if callable(set_epoch := getattr(self._rows, "set_epoch", None)):
            set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the pass is that began last: its next row is the first after a resume."""
        state = self._state or self._loaded
        return dict(state) if state else self._state_at(self.epoch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state was saved, in the next pass.

        The rows before are read again where the iterable has no states of its own.

        Raises:
            MismatchError: for a state of another table or of other options.
        """
        if not isinstance(state, dict) or {_TASK, _EPOCH, _READ, _SOURCE, _GIVEN} - state.keys():
            raise MismatchError(f"not a state of a stream of rows: {shown(state)}")
        self._task.require(state[_TASK])
        for name in (_EPOCH, _READ, _GIVEN):
            saved_count(state[name], name, owner="stream of rows")
        self.set_epoch(state[_EPOCH])
        self._loaded, self._state = dict(state), None

    def _state_at(self, epoch: int) -> dict[str, Any]:
        return {_TASK: self._task.stamp(), _EPOCH: epoch, _READ: 0, _SOURCE: None, _GIVEN: 0}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        state = self._loaded or self._state_at(self.epoch)
        self._loaded, self._state = None, dict(state)
        state = self._state
        lookup, to_leave_out = Lookup(self._task.known), state[_GIVEN]
        for block in self._blocks(state):
            found = lookup.find([self._task.known.key_of(row) for row in block])
            found = self._task.outcome(found, state[_EPOCH])
            state[_GIVEN] = left_out = min(to_leave_out, found.rows.size)
            to_leave_out = 0
            for row in self._made(block, found, left_out):
                state[_GIVEN] += 1
                yield row
        lookup.close()

    def _blocks(self, state: dict[str, Any]) -> Iterator[list[Any]]:
        """Rows, some at a time; the state says where they begin."""
        source, has_states = self._rows, hasattr(self._rows, "state_dict")
        if has_states and state[_SOURCE] is not None:
            source.load_state_dict(state[_SOURCE])
        rows = self._rows_of_worker()
        if not has_states:
            for _ in islice(rows, state[_READ]):
                pass
        read = state[_READ]
        while True:
            before = source.state_dict() if has_states else None
            if not (block := list(islice(rows, self._task.size))):
                return
            state[_READ], state[_SOURCE], state[_GIVEN] = read, before, 0
            read += len(block)
            yield block

    def _rows_of_worker(self) -> Iterator[Any]:
        rows: Iterator[Any] = iter(self._rows)
        if rows is self._rows:
            if self._is_gone_through:
                raise RuntimeError(
                    f"a {type(rows).__name__} can be gone through once, and was: give an iterable "
                    "that begins anew, as a list or datasets.IterableDataset.from_generator(...)"
                )
            self._is_gone_through = True
        info = get_worker_info()
        if info is None or isinstance(self._rows, IterableDataset):
            return rows
        return islice(rows, info.id, None, info.num_workers)

    def _made(self, block: list[Any], found: Found, start: int) -> Iterator[dict[str, Any]]:
        weights, column = self._task.values(found.rows), self._task.column
        for number in range(start, found.rows.size):
            row = dict(block[found.places[number]])
            if weights is not None and column is not None:
                require_new(column, row)
                row[column] = float(weights[number])
            yield row


def require_new(column: str | None, columns: Any) -> None:
    """Make sure that rows have no column of this name.

    Raises:
        ValueError: if they have.
    """
    if column in columns:
        raise ValueError(f"rows have a column {column!r} already: give column= another name")
