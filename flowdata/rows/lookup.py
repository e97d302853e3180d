"""RowTask: what is done with rows that are read together, each found in a table by its key."""

import contextlib
import json
import os
from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.states import require_same
from flowdata.core.weights import FlowWeights, HasWeights, as_weights
from flowdata.data_files.row_weights import as_table
from flowdata.errors import MismatchError, warn
from flowdata.table.given_keys import as_keys, as_plain
from flowdata.table.loss_table import LossTable
from flowdata.table.row_keys import found_rows

Table: TypeAlias = LossTable | str | os.PathLike[str]
OnMismatch: TypeAlias = Literal["raise", "drop"]

_SHOWN = 5


class Found(NamedTuple):
    """Rows that were read together, as far as the table has them.

    Attributes:
        places: of each where it was among those that were read, int64, shape (m,).
        rows: of each its row in the table, int64, shape (m,).
    """

    places: NDArray[np.int64]
    rows: NDArray[np.int64]


class KeyedWeights:
    """A weight for each key.

    Args:
        table: a loss table whose rows have keys, or its path.
        weights: default those of the table.
        key: the column of the data that has the keys; default the one that was scored with.
        on_missing, on_repeated: what becomes of rows whose key the table does not have, and of
            those whose key has come before: an error, or they are dropped, and counted.

    Raises:
        MismatchError: for weights of another length, for a table without keys, and, naming
            them, where a file has one key for two rows.
        ValueError: for an unknown option, or where no column is known.
    """

    def __init__(
        self,
        table: Table,
        weights: FlowWeights | HasWeights | ArrayLike | None,
        key: str | None,
        on_missing: OnMismatch,
        on_repeated: OnMismatch,
    ) -> None:
        for name, option in (("on_missing", on_missing), ("on_repeated", on_repeated)):
            if option not in ("raise", "drop"):
                raise ValueError(f'{name} must be "raise" or "drop", got {option!r}')
        table = as_table(table)
        if table.keys is None:
            # Which says what to do.
            found_rows(None, [])
        assert table.keys is not None
        column = table.provenance.key if key is None else key
        if column is None:
            raise ValueError("give key=, the column that has the keys of the table")
        self.weights = table.weights() if weights is None else as_weights(weights)
        if len(self.weights) != len(table):
            raise MismatchError(f"there are {len(self.weights):,} weights for {len(table):,} rows")
        self.key, self.keys = column, table.keys
        self.on_missing, self.on_repeated = on_missing, on_repeated
        # Here, so that worker processes share what it takes.
        self.keys.prepare()

    def key_of(self, row: Any) -> Any:
        """The key of a row, a dict.

        Raises:
            TypeError, ValueError: for one that is no dict, or has no such column.
        """
        try:
            value = row[self.key]
        except (KeyError, IndexError, TypeError):
            has = list(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            kind = ValueError if isinstance(row, dict) else TypeError
            raise kind(f"a row has no column {self.key!r}, there is {has!s:.300}") from None
        # A number that a format has made a tensor of.
        return value.item() if getattr(value, "shape", None) == () else value


class Lookup:
    """Finds rows by key in one pass, in which no key may come twice."""

    def __init__(self, known: KeyedWeights) -> None:
        self._known = known
        self._seen = np.zeros(len(known.keys), dtype=np.bool_)
        self._missing, self._repeated = _Dropped(), _Dropped()

    def find(self, keys: Any) -> Found:
        """The rows of keys that were read together.

        Raises:
            MismatchError: naming them, for keys that the table does not have or that have come
                before, if these are not to be dropped.
            TypeError, ValueError: for what is no key.
        """
        known = self._known
        try:
            keys = as_keys(keys)
        except (TypeError, ValueError) as error:
            raise type(error)(f"of rows that were read together, {error}") from error
        rows = known.keys.find(keys)
        places = np.arange(rows.size)
        if (rows < 0).any():
            if known.on_missing == "raise":
                with self._advising('on_missing="drop" drops and counts them'):
                    found_rows(known.keys, keys)
            self._missing.add(keys, np.flatnonzero(rows < 0))
            places = np.flatnonzero(rows >= 0)
        first = np.zeros(rows.size, dtype=np.bool_)
        _, among = np.unique(rows[places], return_index=True)
        first[places[among]] = True
        first[places] &= ~self._seen[rows[places]]
        if (again := places[~first[places]]).size:
            self._repeated.add(keys, again)
            if known.on_repeated == "raise":
                raise MismatchError(
                    f"rows of the stream have keys that came before: {self._repeated.named()}; a "
                    "key must be that of one row. Take the stream before it is repeated or "
                    'resampled, make its keys distinct, or on_repeated="drop" drops and counts '
                    "the later rows"
                )
            places = places[first[places]]
        self._seen[rows[places]] = True
        return Found(places, rows[places])

    @staticmethod
    @contextlib.contextmanager
    def _advising(advice: str) -> Any:
        try:
            yield
        except MismatchError as error:
            raise MismatchError(f"{error}; {advice}") from None

    def close(self) -> None:
        """Warn of what was dropped."""
        for dropped, what in (
            (self._missing, "of no row of the loss table"),
            (self._repeated, "that had come before"),
        ):
            if dropped.rows:
                warn(f"{dropped.rows:,} rows with keys {what} were dropped: {dropped.named()}")


class _Dropped:
    """How many rows were left out, and the keys of the first."""

    def __init__(self) -> None:
        self.rows = 0
        self._keys: list[int | str] = []

    def add(self, keys: Any, places: NDArray[np.int64]) -> None:
        self.rows += places.size
        if (room := _SHOWN - len(self._keys)) > 0:
            self._keys += [as_plain(keys[place : place + 1])[0] for place in places[:room].tolist()]

    def named(self) -> str:
        more = f", and {self.rows - _SHOWN:,} more" if self.rows > _SHOWN else ""
        return ", ".join(f"{key!r:.100}" for key in self._keys) + more


class RowTask(ABC):
    """What becomes of rows that were read together: which of them come out, and in what order.

    A stream of rows holds one task, and so do all the streams that are made of it: it does not
    change, and no copy is made of it.

    Attributes:
        known: the weights of the rows.
        size: rows that are looked up together.
        column: the column that rows get, if any.
    """

    def __init__(self, known: KeyedWeights, *, size: int, column: str | None = None) -> None:
        self.known, self.size, self.column = known, size, column

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides which rows come out, JSON-able: a position means a row only under it."""

    @abstractmethod
    def outcome(self, found: Found, epoch: int) -> Found:
        """The rows that come out of those that were found."""

    def values(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:  # noqa: ARG002
        """What the new column has for rows of the table, if there is one."""
        return None

    def stamp(self) -> str:
        """The identity as a state has it."""
        return json.dumps(self.identity(), sort_keys=True)

    def require(self, stamp: Any) -> None:
        """Make sure that a state is of this task.

        Raises:
            MismatchError: saying what is different.
        """
        if stamp == self.stamp():
            return
        try:
            found = json.loads(stamp)
        except (TypeError, ValueError):
            raise MismatchError("the saved state is not one of a stream of rows by key") from None
        require_same(
            self.identity(),
            found if isinstance(found, dict) else {"state": found},
            what="the saved state of a stream of rows",
            advice="Its positions mean other rows here: make the stream with the loss table and "
            "the options of the run that was saved",
        )
