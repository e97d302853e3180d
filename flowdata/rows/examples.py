"""KeyedExamples: a step in a datasets.IterableDataset that looks its rows up by key.

What datasets has for this, `map` and `filter`, does not do. A function that maps never learns the
epoch: that of `set_epoch` is known to the data set that is iterated over alone, not to those that
it was made of. The one thing that datasets (4.8.5 to 5.2, `_prepare_ex_iterable_for_iteration` and
`_iter_pytorch`) tells all steps of a pipeline is a number by which those that have random numbers
shall change them: the epoch, if it is not 0, and then the number of the worker, in a worker. That
is `shift_rngs`, and `flowdata.rows.streams.require_epochs` makes sure that it still is so.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets.iterable_dataset import _BaseExamplesIterable
from torch.utils.data import get_worker_info

from flowdata.errors import MismatchError
from flowdata.rows.lookup import Lookup, RowTask
from flowdata.rows.plain import require_new

_STAMP, _ORDER = "task", "order"
_BEFORE, _SKIPPED, _GIVEN = "previous_state", "skipped", "given"

# By name, as they are no public ones. `filter` goes on where its state says since datasets 5.
_LOSING = ["BufferShuffledExamplesIterable"]
if int(datasets.__version__.partition(".")[0]) < 5:
    _LOSING.append("FilteredExamplesIterable")


class KeyedExamples(_BaseExamplesIterable):  # type: ignore[misc]
    """The rows that a task makes of those of another step.

    A state holds that of the step before at the begin of the rows that were looked up together
    last, rows to skip from there, and rows that came out of those since. Where that step loses
    rows when its state is loaded, as a shuffle buffer does, it is read from its start.
    """

    def __init__(
        self,
        ex_iterable: Any,
        task: RowTask,
        shifts: tuple[int, ...] = (),
        order: str | None = None,
    ) -> None:
        super().__init__()
        self.ex_iterable = ex_iterable
        self._task = task
        self._shifts = shifts
        # As it was made: a loader saves states of workers that have not begun their pass too.
        self._order = _order_of(ex_iterable) if order is None else order

    @property
    def iter_arrow(self) -> Callable[[], Iterator[tuple[Any, pa.Table]]] | None:
        """Iterates over Arrow tables, if the step before does."""
        return self._iter_arrow if self.ex_iterable.iter_arrow else None

    @property
    def is_typed(self) -> bool:
        """Whether its rows have the types of its features already."""
        return bool(self.ex_iterable.is_typed)

    @property
    def features(self) -> Any:
        """Those of the rows, if they are known."""
        return with_column(self.ex_iterable.features, self._task.column)

    @property
    def num_shards(self) -> int:
        """Those of the step before."""
        return int(self.ex_iterable.num_shards)

    def shift_rngs(self, value: int) -> "KeyedExamples":
        """Take note of an epoch, or of the number of a worker."""
        return KeyedExamples(self.ex_iterable, self._task, (*self._shifts, value), self._order)

    def shuffle_data_sources(self, generator: np.random.Generator) -> "KeyedExamples":
        """See datasets."""
        return self._of(self.ex_iterable.shuffle_data_sources(generator))

    def shard_data_sources(
        self, num_shards: int, index: int, contiguous: bool = True
    ) -> "KeyedExamples":
        """See datasets."""
        source = self.ex_iterable.shard_data_sources(num_shards, index, contiguous=contiguous)
        return self._of(source)

    def reshard_data_sources(self) -> "KeyedExamples":
        """See datasets."""
        return self._of(self.ex_iterable.reshard_data_sources())

    def _of(self, source: Any) -> "KeyedExamples":
        return KeyedExamples(source, self._task, self._shifts, self._order)

    @property
    def epoch(self) -> int:
        """The epoch of the pass."""
        # The last number in a worker is its own.
        place = 1 if get_worker_info() is None else 2
        return self._shifts[-place] if len(self._shifts) >= place else 0

    def _init_state_dict(self) -> dict[str, Any]:
        self.ex_iterable._init_state_dict()  # noqa: SLF001
        self._state_dict = {
            _STAMP: self._task.stamp(),
            _ORDER: self._order,
            _BEFORE: None,
            _SKIPPED: 0,
            _GIVEN: 0,
            "type": type(self).__name__,
        }
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        progress = self._resume()
        keys_of, values_of = self._task.known.key_of, self._task.values
        for position, block in self._blocks(progress.skipped):
            keys = [keys_of(row) for _, row in block]
            places, rows = progress.outcome(keys, position)
            weights = values_of(rows)
            for number in range(progress.left_out(rows), rows.size):
                name, row = block[places[number]]
                row = dict(row)
                if weights is not None:
                    require_new(self._task.column, row)
                    row[self._task.column] = float(weights[number])
                progress.give(rows[number : number + 1])
                yield name, row
        progress.end()

    def _iter_arrow(self) -> Iterator[tuple[Any, pa.Table]]:
        progress = self._resume()
        size, column = self._task.size, self._task.column
        for position, name, block in self._tables(progress.skipped):
            keys = block.column(self._key_in(block))
            places, rows = progress.outcome(keys, position)
            weights = self._task.values(rows)
            # In parts no larger than those that were read, if one row is drawn very often.
            for start in range(progress.left_out(rows), rows.size, size):
                part = slice(start, start + size)
                table = block.take(pa.array(places[part]))
                if weights is not None:
                    require_new(column, table.column_names)
                    table = table.append_column(column, pa.array(weights[part]))
                progress.give(rows[part])
                yield name, table
        progress.end()

    def _key_in(self, table: pa.Table) -> str:
        if (key := self._task.known.key) not in table.column_names:
            raise ValueError(f"a row has no column {key!r}, there is {table.column_names!s:.300}")
        return key

    def _resume(self) -> "_Progress":
        state = self._state_dict
        if state is None:
            return _Progress(self._task, self.epoch, {}, loses_rows=True)
        self._task.require(state[_STAMP])
        if state[_ORDER] != self._order:
            raise MismatchError(
                "the stream does not come in the order that it had when its state was saved: "
                "give .shuffle() the seed that it had then"
            )
        if state[_BEFORE] is not None:
            self.ex_iterable.load_state_dict(state[_BEFORE])
        return _Progress(self._task, self.epoch, state, loses_rows=loses_rows(self.ex_iterable))

    def _source_state(self) -> Any:
        return None if self._state_dict is None else self.ex_iterable.state_dict()

    def _blocks(self, skipped: int) -> Iterator[tuple["_Position", list[tuple[Any, Any]]]]:
        """Rows of the step before, some at a time, and where they begin."""
        rows = iter(self.ex_iterable)
        position = _Position(self._source_state(), skipped)
        for _ in islice(rows, skipped):
            pass
        while block := list(islice(rows, self._task.size)):
            yield position, block
            position = _Position(self._source_state(), 0)

    def _tables(self, skipped: int) -> Iterator[tuple["_Position", Any, pa.Table]]:
        """As many rows, put together of Arrow tables of any size."""
        tables = self.ex_iterable.iter_arrow()
        parts: list[pa.Table] = []
        held = 0
        begin = before = _Position(self._source_state(), 0)
        for name, table in tables:
            if parts and table.schema != parts[0].schema:
                # JSON Lines, of which a part has no value in some column.
                yield begin, name, _joined(parts)
                parts, held = [], 0
            start, skipped = min(skipped, len(table)), max(skipped - len(table), 0)
            while start < len(table):
                if not parts:
                    begin = _Position(before.state, start)
                part = table.slice(start, self._task.size - held)
                parts.append(part)
                start, held = start + len(part), held + len(part)
                if held == self._task.size:
                    yield begin, name, _joined(parts)
                    parts, held = [], 0
            before = _Position(self._source_state(), 0)
        if parts:
            yield begin, "last", _joined(parts)


class _Position(NamedTuple):
    """A place in the step before: its state, and rows from there."""

    state: Any
    skipped: int


class _Progress:
    """How far a pass is, which its state says."""

    def __init__(
        self, task: RowTask, epoch: int, state: dict[str, Any], *, loses_rows: bool
    ) -> None:
        self._task, self._epoch, self._state = task, epoch, state
        self._lookup = Lookup(task.known)
        self._keeps_start = loses_rows
        self.skipped = int(state.get(_SKIPPED, 0))
        self._to_leave_out = int(state.get(_GIVEN, 0))
        if state:
            state[_GIVEN] = 0

    def outcome(self, keys: Any, position: _Position) -> tuple[Any, Any]:
        """Places and table rows of what comes out of rows that begin at a position."""
        found = self._task.outcome(self._lookup.find(keys), self._epoch)
        if self._state and not self._keeps_start:
            self._state[_BEFORE], self._state[_SKIPPED] = position
            self._state[_GIVEN] = 0
        return found

    def left_out(self, rows: Any) -> int:
        """How many of the rows that come out were given before the state was saved."""
        count = min(self._to_leave_out, int(rows.size))
        if count:
            self._to_leave_out -= count
            self._state[_GIVEN] += count
        return count

    def give(self, rows: Any) -> None:
        """Count rows that come out."""
        if self._state:
            self._state[_GIVEN] += rows.size

    def end(self) -> None:
        """Say what was dropped."""
        self._lookup.close()


def _joined(parts: list[pa.Table]) -> pa.Table:
    # In one piece: datasets counts the pieces that it was given.
    return pa.concat_tables(parts).combine_chunks()


def loses_rows(source: Any) -> bool:
    """Whether a step, or one before it, forgets rows when its state is loaded."""
    return any(type(step).__name__ in _LOSING for step in _steps(source))


def _order_of(source: Any) -> str:
    """A hash of the random numbers that a step, and those before it, put rows in order by."""
    generators = [getattr(step, "generator", None) for step in _steps(source)]
    states = [one.bit_generator.state for one in generators if one is not None]
    return xxhash.xxh3_64_hexdigest(repr(states).encode())


def _steps(source: Any) -> Iterator[Any]:
    """A step, and all those before it."""
    yield source
    before = [source.ex_iterable] if hasattr(source, "ex_iterable") else []
    for step in (*before, *getattr(source, "ex_iterables", ())):
        yield from _steps(step)


def with_column(features: Any, column: str | None) -> Any:
    """Features with the column that a task adds, a float64."""
    if features is None or column is None:
        return features
    return datasets.Features({**features, column: datasets.Value("float64")})
