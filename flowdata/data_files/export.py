"""Epochs of draws as a data file, with a manifest, for trainers that read files."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.arrays import count_rows, is_invalid, one_dimensional
from flowdata.core.lengths import at_least_one
from flowdata.core.permutation import CHUNK
from flowdata.core.plan import EpochPlan
from flowdata.data_files import parquet_rows
from flowdata.data_files.attach import rows_of_batch, table_rows_of
from flowdata.data_files.json_rows import (
    ADVICE_OF_DRAWS,
    Rows,
    member,
    require_name,
    with_members,
)
from flowdata.data_files.line_index import LineIndex
from flowdata.data_files.manifest import describe_file, require_replaceable, write_manifest
from flowdata.data_files.opening import (
    create_lines,
    data_paths,
    format_of,
    open_random,
    output_path,
    require_few,
)
from flowdata.data_files.row_weights import TableRows, as_table
from flowdata.errors import DataFileError, InvalidLossError, MismatchError
from flowdata.files import replacing
from flowdata.table.loss_table import LossTable

_AT_ONCE = 4 * CHUNK

Fields: TypeAlias = Mapping[str, Callable[[EpochPlan, int, int], NDArray[Any]]]
"""What each draw gets beside its row: by name, the values of draws [start, stop) of an epoch."""


def export_file(
    data: str | PathLike[str] | Iterable[str | PathLike[str]],
    table: LossTable | str | PathLike[str],
    output: str | PathLike[str],
    *,
    plan: EpochPlan | None = None,
    epochs: int = 1,
    key: str | None = None,
    epoch_field: str | None = "epoch",
    draw_field: str | None = "draw",
    loss_weights: ArrayLike | None = None,
    weight_field: str = "weight",
    unchecked: bool = False,
) -> dict[str, Any]:
    """Write the rows that a plan draws, epoch after epoch, in its order; the manifest.

    The trainer that reads the file passes over it once, without shuffling. Lines of JSONL keep
    their bytes but for the further fields. Beside the file a manifest is written, which
    `verify_file` checks. Beside the plan 8 bytes a row of JSONL are held, or 24 a draw of Parquet,
    and some rows at a time; each epoch of Parquet is sorted in pieces beside the output.

    Args:
        data: the file, or several of one format, whose rows follow each other in this order; a
            pattern, as ``part-*.jsonl``, is of files in the order of their names.
        table, key, unchecked: as of `attach_file`.
        output: the file to write.
        plan: the draws of its epoch and those that follow; default ``EpochPlan(table)``.
        epochs: how many.
        epoch_field, draw_field: fields for the numbers of epoch and draw, both from 0; None leaves
            one out.
        loss_weights: what is left of the weights for the loss, one for each row of the table, as
            ``weights.residual(alpha)`` where a plan draws by another ``alpha`` than 1.
        weight_field: the field for these.

    Raises:
        DataFileError: naming the line, for what is no row, or has such a field; for data that
            change meanwhile.
        InvalidLossError: for ``loss_weights`` that are none.
        MismatchError: where data, table and plan do not belong together, and, naming them, for
            keys that are missing or there twice.
    """
    epochs = at_least_one(epochs, "epochs")
    sources = data_paths(data)
    require_few(sources)
    kind = format_of(sources[0])
    place = output_path(output, kind, *sources, table)
    require_replaceable(place, *sources, table)
    losses = as_table(table)
    plan = _plan_of(losses, plan)
    fields = _fields(epoch_field, draw_field, weight_field, _of_rows(loss_weights, plan))
    before = [source.stat() for source in sources]
    rows = TableRows(losses, key, sources[0], unchecked=unchecked)
    key = rows.key
    with replacing(place) as temporary:
        draws = _Draws(plan, epochs, rows, key, fields)
        write = _write_lines if kind == "JSONL" else _write_parquet
        write(sources, place, temporary, draws)
        after = [source.stat() for source in sources]
        described = [describe_file(source, place) for source in sources]
        for source, old, new in zip(sources, before, after, strict=True):
            if (old.st_size, old.st_mtime_ns) != (new.st_size, new.st_mtime_ns):
                raise DataFileError(f"{source} was changed while it was read: export again")
        files = {
            "output": describe_file(place, place, temporary),
            "data": described if len(described) > 1 else described[0],
            "table": None if isinstance(table, LossTable) else describe_file(Path(table), place),
        }
    return write_manifest(
        place,
        {
            "plan": plan.identity() | {"seed": plan.seed},
            "epochs": {"first": plan.epoch, "number": epochs},
            "rows": {
                "data": draws.read,
                "table": len(losses),
                "output": epochs * len(plan),
            },
            "fields": list(fields),
            "key": key,
            "files": files,
        },
    )


def _plan_of(table: LossTable, plan: EpochPlan | None) -> EpochPlan:
    found = EpochPlan(table) if plan is None else plan
    if not isinstance(found, EpochPlan):
        raise TypeError(f"rows are drawn by an EpochPlan, got {type(plan).__name__}")
    if len(found.weights) != len(table):
        raise MismatchError(
            f"the plan draws from {len(found.weights):,} rows, the loss table has {len(table):,}: "
            "make the plan of the weights of this table"
        )
    return found


def _of_rows(weights: ArrayLike | None, plan: EpochPlan) -> NDArray[Any] | None:
    if weights is None:
        return None
    found = one_dimensional(weights, "loss_weights")
    if found.size != len(plan.weights):
        raise MismatchError(
            f"there are {found.size:,} loss_weights for {len(plan.weights):,} rows: give one for "
            "each row of the loss table"
        )
    if (invalid := is_invalid(found)).any():
        raise InvalidLossError(
            count_rows(invalid, "loss_weights that are NaN, infinite or negative", found)
            + "; give numbers >= 0"
        )
    return found.astype(np.float64)


def _fields(
    epoch: str | None, draw: str | None, weight: str, weights: NDArray[Any] | None
) -> Fields:
    found: dict[str, Callable[[EpochPlan, int, int], NDArray[Any]]] = {}
    for name in filter(None, (epoch, draw, weight)):
        require_name(name)
    if epoch is not None:
        found[epoch] = lambda plan, start, stop: np.full(stop - start, plan.epoch)
    if draw is not None:
        found[draw] = lambda _, start, stop: np.arange(start, stop)
    if weights is not None:
        found[weight] = lambda plan, start, stop: weights[plan[start:stop]]
    if len(found) < (epoch is not None) + (draw is not None) + (weights is not None):
        raise ValueError(f"fields of one name: {epoch!r}, {draw!r}, {weight!r}")
    return found


class _Draws:
    """The epochs that are written, and the row of the file that each draw is of."""

    def __init__(
        self, plan: EpochPlan, epochs: int, rows: TableRows, key: str | None, fields: Fields
    ) -> None:
        self.rows, self.key, self.fields = rows, key, fields
        self.read = 0
        self.plan = plan
        self._epochs = epochs
        # Where rows are in the table's order, they have its numbers.
        self._places = None if key is None else np.full(len(plan.weights), -1)

    def see(self, found: NDArray[np.int64]) -> None:
        """Keep the table's rows of the next rows of the file."""
        if self._places is not None:
            self._places[found] = np.arange(self.read, self.read + found.size)
        self.read += found.size

    def epochs(self) -> Iterator[EpochPlan]:
        """The plan of each epoch, after the last row."""
        self.rows.finish()
        if self._places is not None:
            self.rows.require(self.plan.weights.relative > 0)
        return (self.plan.at_epoch(self.plan.epoch + more) for more in range(self._epochs))

    def places(self, plan: EpochPlan, start: int, stop: int) -> NDArray[np.int64]:
        """The file's row of draws [start, stop)."""
        rows = plan[start:stop]
        return rows if self._places is None else self._places[rows]


def _write_lines(sources: list[Path], place: Path, temporary: Path, draws: _Draws) -> None:
    def see(source: Path, some: Rows) -> None:
        draws.rows.read_from(source)
        for number, content in zip(some.numbers, some.objects, strict=True):
            if taken := draws.fields.keys() & content.keys():
                raise DataFileError(
                    f"{source}, line {number:,}: it has a field {min(taken)!r} already: "
                    f"{ADVICE_OF_DRAWS}"
                )
        draws.see(table_rows_of(some, draws.rows, source))

    with contextlib.ExitStack() as stack:
        files = [(stack.enter_context(open_random(path, place.parent)), path) for path in sources]
        out = stack.enter_context(create_lines(temporary, place))
        index = LineIndex(files, see)
        for plan in draws.epochs():
            for start, stop in _runs(len(plan)):
                lines = index.read(draws.places(plan, start, stop))
                if draws.fields:
                    lines = map(with_members, lines, _members(draws.fields, plan, start, stop))
                out.writelines(lines)


def _members(fields: Fields, plan: EpochPlan, start: int, stop: int) -> Iterator[bytes]:
    begins = [member(name, b"").decode() for name in fields]
    columns = [map(repr, values(plan, start, stop).tolist()) for values in fields.values()]
    for texts in zip(*columns, strict=True):
        yield ", ".join(map(str.__add__, begins, texts)).encode()


def _write_parquet(sources: list[Path], place: Path, temporary: Path, draws: _Draws) -> None:
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(parquet_rows.open_rows(path)) for path in sources]
        drawn = parquet_rows.DrawnRows(files, sources, tuple(draws.fields))
        columns = None if draws.key is None else [draws.key]
        for source, file in zip(sources, files, strict=True):
            draws.rows.read_from(source)
            if draws.key is not None:
                parquet_rows.require_column(file, draws.key, source)
            for _, batch in parquet_rows.batches(file, columns):
                draws.see(rows_of_batch(batch, draws.rows))
        epochs = draws.epochs()
        with drawn.writing(temporary, _columns(draws.fields, draws.plan, 0, 0)) as writer:
            for plan in epochs:
                places = np.empty(len(plan), dtype=np.int64)
                for start, stop in _runs(len(plan)):
                    places[start:stop] = draws.places(plan, start, stop)
                drawn.write(writer, places, partial(_columns, draws.fields, plan), place.parent)


def _columns(fields: Fields, plan: EpochPlan, start: int, stop: int) -> list[NDArray[Any]]:
    return [values(plan, start, stop) for values in fields.values()]


def _runs(draws: int) -> Iterator[tuple[int, int]]:
    return ((start, min(draws, start + _AT_ONCE)) for start in range(0, draws, _AT_ONCE))
