"""Which rows are shown: the easiest, those on both sides of tau, the hardest; each text once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.arrays import is_invalid
from flowdata.core.weights import FlowWeights
from flowdata.report.texts import as_text, visible
from flowdata.table.given_keys import as_plain
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance

MOST_ROWS_READ = 1 << 18
"""Of data of more rows, or bytes, only some are read: texts are counted among these."""
MOST_BYTES_READ = 1 << 30
_MOST_TRIED = 10_000
_PIECE = 256

_NO_COLUMNS = ("tokenizer", "chat_template")
"""Options of a loss that name no column."""
_USUAL = (
    *("system", "prompt", "instruction", "question", "query", "context", "input"),
    *("text", "content", "sentence", "messages", "conversations", "conversation", "chosen"),
    *("rejected", "completion", "response", "answer", "output", "target", "image", "label"),
)


@dataclass(frozen=True)
class Sample:
    """A row that is shown.

    Attributes:
        row: its number in the table.
        name: its key, or its place in tar shards, where it has one.
        loss: its loss.
        expected_draws: how often it is expected in an epoch of as many draws as rows.
        rows_alike: rows with this text, of those that were looked at; None without data.
        content: its columns; None without data.
    """

    row: int
    name: str | None
    loss: float
    expected_draws: float
    rows_alike: int | None = None
    content: Mapping[str, Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Section:
    """Some rows, and why they are shown.

    Attributes:
        name: for programs.
        title: for people.
        samples: the rows, in the order of the title.
    """

    name: str
    title: str
    samples: tuple[Sample, ...]


class Samples:
    """Rows of the data of a table, in the order of the table.

    Args:
        dataset: the data, map-style: a ``datasets.Dataset``, or any whose samples are mappings.
        provenance: says by its options which columns were scored.
    """

    def __init__(self, dataset: Any, provenance: Provenance) -> None:
        # A datasets.Dataset (5.2) gives what is stored: pictures are not decoded.
        stored = callable(getattr(dataset, "with_format", None)) and hasattr(dataset, "data")
        self._stored = dataset.with_format("arrow") if stored else None
        self._dataset = dataset
        names = list(dataset.column_names) if stored else list(dataset[0])
        scored = [name for name in names if name in _scored_columns(provenance)]
        usual = [name for name in _USUAL if name in names]
        self.columns = scored or usual or names
        """The columns whose content is a row's text."""
        self.others = [name for name in names if name not in self.columns]
        features = dataset.features if stored else {}
        self._classes = {
            name: kind.names for name, kind in features.items() if getattr(kind, "names", None)
        }
        few = len(dataset) <= MOST_ROWS_READ
        self.all_read = few and (not stored or dataset.data.nbytes <= MOST_BYTES_READ)
        """Whether rows of one text are counted among all rows, or those alone that were read."""
        self._marks: NDArray[np.int64] | None = None

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        return next(self._rows(np.array([row])))

    def _rows(self, rows: NDArray[Any], columns: Sequence[str] = ()) -> Iterator[Mapping[str, Any]]:
        """Rows, all columns of them or some."""
        if self._stored is None:
            yield from (self._dataset[row] for row in rows.tolist())
            return
        stored = self._stored.select_columns(list(columns)) if columns else self._stored
        for start in range(0, rows.size, _PIECE):
            for row in stored[rows[start : start + _PIECE]].to_pylist():
                yield row | {
                    name: self._class(name, row[name]) for name in self._classes.keys() & row.keys()
                }

    def _class(self, column: str, number: int | None) -> Any:
        """A label with the name that a ``datasets.ClassLabel`` has for it."""
        names = self._classes[column]
        known = isinstance(number, int) and 0 <= number < len(names)
        return f"{number} ({names[number]})" if known else number

    def _marks_of(self, rows: NDArray[Any]) -> Iterator[int]:
        """A number for each row, the same for those of one text."""
        for row in self._rows(rows, self.columns):
            values = [row[name] for name in self.columns]
            # Python keys its hash of texts and bytes: nobody can make two of one hash.
            yield hash(tuple(v if isinstance(v, str | bytes) else repr(v) for v in values))

    def texts_once(
        self, rows: NDArray[np.int64], number: int
    ) -> list[tuple[int, int, Mapping[str, Any]]]:
        """Of rows in their order the first of each text: its number, rows alike, content."""
        counts: dict[int, int] = {}
        first: dict[int, int] = {}
        if self.all_read:
            if self._marks is None:
                of_all = self._marks_of(np.arange(len(self._dataset)))
                self._marks = np.fromiter(of_all, np.int64, len(self._dataset))
            marks = self._marks[rows]
            _, places = np.unique(marks, return_index=True)
            for place in np.sort(places)[:number].tolist():
                mark = int(marks[place])
                first[mark] = int(rows[place])
                counts[mark] = int(np.count_nonzero(self._marks == mark))
        else:
            for row, mark in zip(rows.tolist(), self._marks_of(rows), strict=True):
                if mark not in first and len(first) == number:
                    break
                first.setdefault(mark, row)
                counts[mark] = counts.get(mark, 0) + 1
        shown = self._rows(np.array(list(first.values()), dtype=np.int64))
        return [
            (row, counts[mark], content)
            for (mark, row), content in zip(first.items(), shown, strict=True)
        ]

    def text(self, row: int) -> str:
        """What was scored of a row, as one text."""
        content = self[row]
        return as_text({name: content[name] for name in self.columns})


def _scored_columns(provenance: Provenance) -> set[str]:
    return {
        value
        for name, value in provenance.given_options.items()
        if name not in _NO_COLUMNS and isinstance(value, str)
    }


def sections_of(
    losses: LossTable, weights: FlowWeights, samples: Samples | None, number: int
) -> list[Section]:
    """The rows to look at, where there are any; without data each row counts as a text."""
    valid = np.where(is_invalid(losses.losses), np.float32(np.nan), losses.losses)
    median, tau = float(np.nanmedian(valid)), weights.temperature
    ways = [("easiest", "Easiest samples", valid)]
    if tau is not None:
        at = "τ, the median" if np.isclose(tau, median, rtol=1e-6) else "τ"
        with np.errstate(invalid="ignore"):
            # In double precision, which tau has, without a copy of all losses in it.
            below = np.less(valid, tau, signature="dd->?")
            above = np.greater_equal(valid, tau, signature="dd->?")
        ways += [
            (
                "below_tau",
                f"Samples just below {at}",
                np.where(below, np.float32(tau) - valid, np.nan),
            ),
            (
                "above_tau",
                f"Samples at or just above {at}",
                np.where(above, valid - np.float32(tau), np.nan),
            ),
        ]
    if tau is None or not np.isclose(tau, median, rtol=1e-6):
        ways.append(
            ("around_median", "Samples around the median", np.abs(valid - np.float32(median)))
        )
    ways.append(("hardest", "Hardest samples", -valid))
    found = []
    for name, title, far in ways:
        shown = _shown(losses, weights, samples, far, number)
        if name == "below_tau":
            shown = shown[::-1]
        elif name == "around_median":
            shown = sorted(shown, key=lambda sample: (sample.loss, sample.row))
        if shown:
            found.append(Section(name, title, tuple(shown)))
    return found


def _shown(
    losses: LossTable,
    weights: FlowWeights,
    samples: Samples | None,
    far: NDArray[np.float32],
    number: int,
) -> list[Sample]:
    if samples is None:
        return [sample_of(losses, weights, row) for row in nearest(far, number).tolist()]
    tried = far.size if samples.all_read else max(_MOST_TRIED, number)
    return [
        sample_of(losses, weights, row, alike, content)
        for row, alike, content in samples.texts_once(nearest(far, tried), number)
    ]


def sample_of(
    losses: LossTable,
    weights: FlowWeights,
    row: int,
    alike: int | None = None,
    content: Mapping[str, Any] | None = None,
) -> Sample:
    """A row with its figures."""
    expected = float(weights.part(row, row + 1)[0]) * len(weights) / weights.total
    return Sample(row, name_of(losses, row), float(losses.losses[row]), expected, alike, content)


def name_of(losses: LossTable, row: int) -> str | None:
    """By what else than its number a row is known: its key, or shard and key in that."""
    if losses.keys is not None:
        # Of keys in a file a run is read, and not all.
        return visible(str(as_plain(losses.keys.run(slice(row, row + 1)))[0]))
    if (index := losses.index) is not None:
        shard = int(np.searchsorted(index.bounds(), row, side="right")) - 1
        return visible(f"{index.shards[shard]}: {index.key(row)}")
    return None


def nearest(far: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Rows of the lowest numbers, in their order, of equal ones the first row first; no NaN."""
    rows = np.flatnonzero(~np.isnan(far))
    some = far[rows]
    if rows.size > number:
        # Of many rows a sort takes many times what finding the last one does.
        last = np.partition(some, number - 1)[number - 1]
        below, equal = np.flatnonzero(some < last), np.flatnonzero(some == last)
        rows = rows[np.concatenate([below, equal[: number - below.size]])]
    return rows[np.lexsort((rows, far[rows]))]
