"""Parts of a pass, put together to its table without the model and without the data.

Each part says of which pass it is (`Provenance.identity`), and in its notes the rest of the
provenance and which job of an array wrote it. Keys of rows and the index of shards, where there
are any, lie once in a file beside the parts, by the hash of what they are.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from os import PathLike
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowdata.errors import TableFileError, warn
from flowdata.files import Place, names_in, place_of
from flowdata.objects import without_secrets
from flowdata.table.checks import require_same_pass
from flowdata.table.parquet import DamagedFileError, unreadable
from flowdata.table.part_file import Part, read_part
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import ROW_KEY, RowKeys
from flowdata.table.scored_rows import concatenate_parts, sort_by_row, table_of_rows
from flowdata.table.shard_index import ShardIndex
from flowdata.table.stored_table import read_table, write_table
from flowdata.table.table_columns import TableColumns

PARTS = ".parts"
"""What the name of a folder of parts has after that of its table."""
PART = ".parquet"
_ROWS = "rows"
_ROWS_FILE = ".table"
_DONE = "done-"
_OF_JOB = re.compile(r"(?:job|done)-(\d+)-of-(\d+)\b")
_PIECE = 1 << 16
_SHOWN = 5
_ADVICE = "Merge the parts of one pass, by the same model, data and options"


def notes(
    provenance: Provenance, rows_file: str | None, job: tuple[int, int] | None
) -> dict[str, Any]:
    """What a part says of itself, beside the identity of its pass.

    Args:
        provenance: of the pass.
        rows_file: the file that has keys and places of all rows, where there are any.
        job: number and count of jobs of an array.
    """
    known = {"provenance": provenance.to_json(), _ROWS: rows_file, "job": job}
    return {name: value for name, value in known.items() if value is not None}


def name_of_done(job: tuple[int, int]) -> str:
    """The name of the file that a job of an array leaves beside parts when it is done."""
    return f"{_DONE}{job[0]}-of-{job[1]}"


def array_sizes(folder: Place) -> set[int]:
    """How many jobs the arrays had whose jobs have written into a folder of parts.

    Raises:
        TableFileError: when it cannot be listed.
    """
    try:
        found = map(_OF_JOB.match, names_in(folder))
        return {int(name[2]) for name in found if name}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise unreadable(folder, "folder of parts", error) from error


def is_beside_parts(name: str) -> bool:
    """Whether a file in a folder of parts has its name from here."""
    return name.startswith(_DONE) or (name.startswith("rows-") and name.endswith(_ROWS_FILE))


def name_of_rows(index: ShardIndex | None, keys: RowKeys | None) -> str | None:
    """The name of the file for keys and places of all rows; None where there are none."""
    import pyarrow as pa

    found = xxhash.xxh3_128()
    columns: dict[str, Callable[[slice], Any]] = {}
    rows = 0
    if index is not None:
        texts, block = index.lists().stored()
        found.update(b"".join(texts.values()) + block)
        # The names of shards and the rows of each are in the texts.
        columns |= {name: run for name, run in index.columns().items() if name != "shard"}
        rows = len(index)
    if keys is not None:
        columns[ROW_KEY] = keys.arrow_run
        rows = len(keys)
    for name, run in columns.items():
        for start in range(0, rows, _PIECE):
            some = run(slice(start, min(rows, start + _PIECE)))
            found.update(pa.record_batch([some], [name]).serialize())
    return f"rows-{found.hexdigest()}{_ROWS_FILE}" if columns else None


def save_rows(
    folder: Place,
    name: str,
    provenance: Provenance,
    index: ShardIndex | None,
    keys: RowKeys | None,
) -> None:
    """Write keys and places of all rows beside parts, once: as a table without losses.

    Raises:
        OSError: when it cannot be written.
    """
    if not (folder / name).is_file():
        none = np.broadcast_to(np.float32("nan"), provenance.rows)
        write_table(folder / name, TableColumns(provenance, none, index=index, keys=keys))


def part_names(folder: Place) -> list[str]:
    """The names of the parts in a folder, in their order; none where there is no folder.

    Raises:
        OSError: when it cannot be listed: it is not empty for that.
    """
    try:
        names = sorted(names_in(folder))
    except FileNotFoundError:
        return []
    return [name for name in names if name.endswith(PART) and not name.startswith(".")]


def merge_parts(places: str | PathLike[str] | Iterable[str | PathLike[str]]) -> TableColumns:
    """The columns of the table of all parts, see `LossTable.merge`."""
    given = [places] if isinstance(places, str | PathLike) else [*places]
    if not given:
        raise ValueError("no parts were given: give the folders that they are in")
    paths = list(dict.fromkeys(path for place in given for path in _paths_of(place)))
    if not paths:
        named = ", ".join(without_secrets(str(place)) for place in given[:_SHOWN])
        raise TableFileError(f"there are no parts in {named}")
    parts, damaged = [], []
    for path in paths:
        if (part := _read(path)) is None:
            damaged.append(path)
        else:
            parts.append(part)
    if not parts:
        raise TableFileError(f"of {len(paths):,} parts none can be read: score their rows again")
    _require_one_pass(parts)
    scores = sort_by_row(concatenate_parts([part.scores for part in parts]))
    provenance = _provenance(parts)
    if scores.rows.size and scores.rows[-1] >= provenance.rows:
        raise TableFileError(
            f"the parts have row {scores.rows[-1]:,}, and their pass {provenance.rows:,} rows"
        )
    if scores.rows.size < provenance.rows:
        raise TableFileError(_what_is_missing(provenance.rows, scores.rows, parts, damaged))
    cut = 0 if scores.truncated is None else int(scores.truncated.sum())
    index, keys = _known_of_rows(parts)
    return table_of_rows(scores, provenance.with_truncated(cut), index, keys)


def _paths_of(given: str | PathLike[str]) -> list[Place]:
    """The parts that a user names: by their folder, that of several, their table, or themselves."""
    place = place_of(given, "folder of parts")
    try:
        if place.is_dir():
            folders = [place / name for name in names_in(place) if name.endswith(PARTS)]
            # A job that had no batch of its own has left a folder without parts.
            return [folder / name for folder in folders or [place] for name in part_names(folder)]
        beside = place.with_name(f"{place.name}{PARTS}")
        names = part_names(beside)
    except OSError as error:
        raise unreadable(place, "folder of parts", error) from error
    return [beside / name for name in names] or [place]


def _read(path: Place) -> Part | None:
    try:
        part = read_part(path)
    except DamagedFileError as error:
        if _is_table(path):
            raise TableFileError(
                f"{path} is a finished table, and no part: it needs no merging, leave it out. "
                "Tables of several data sets are put together by LossTable.concat"
            ) from error
        warn(f"the part {path} is left out, so that its rows are missing: {error}")
        return None
    if part.identity is None or "rows" not in part.identity:
        raise TableFileError(
            f"{path} is no part that can be merged: of rows by number, and with the identity of "
            "its pass. Those of a stream, and of earlier versions, become a table by the call of "
            "score that began them; a finished table is no part"
        )
    return part


def _is_table(path: Place) -> bool:
    with contextlib.suppress(TableFileError, DamagedFileError):
        read_table(path, tokens=False)
        return True
    return False


def _require_one_pass(parts: Sequence[Part]) -> None:
    """Refuse parts of several passes, naming what differs."""
    known: list[dict[str, Any]] = []
    for part in parts:
        of_part = {**(part.identity or {}), "keys_and_places": part.about.get(_ROWS)}
        # Most are alike, and comparing them is fast.
        if of_part not in known:
            what = f"beside the part {parts[0].path}, the part {part.path}"
            for other in known:
                require_same_pass(other, of_part, what=what, advice=_ADVICE)
            known.append(of_part)


def _provenance(parts: Sequence[Part]) -> Provenance:
    """What the parts know of their pass, of which all but times and names is the same."""
    found = [_provenance_of(part) for part in parts]
    return max(found, key=lambda known: known.created or "")


def _provenance_of(part: Part) -> Provenance:
    known = dict(part.identity or {})
    known["options"] = (
        json.dumps(known["options"], sort_keys=True) if known.get("options") else None
    )
    # Parts of earlier versions carry the identity alone.
    known |= json.loads(part.about.get("provenance", "{}"))
    names = {field.name for field in fields(Provenance)}
    return Provenance(**{name: value for name, value in known.items() if name in names})


def _known_of_rows(parts: Sequence[Part]) -> tuple[ShardIndex | None, RowKeys | None]:
    name = parts[0].about.get(_ROWS)
    if name is None:
        return None, None
    # Each folder has one, and all are the same.
    places = list(dict.fromkeys(part.path.with_name(name) for part in parts))
    for place in places:
        if place.is_file():
            found = read_table(place, tokens=False)
            return found.index, found.keys
    raise TableFileError(
        f"{places[0]} is missing, which has the keys or places of the rows: copy it too, from the "
        "folder that the parts were written to"
    )


def _what_is_missing(
    rows: int, there: NDArray[np.int64], parts: Sequence[Part], damaged: Sequence[Place]
) -> str:
    left = np.ones(rows, dtype=np.bool_)
    left[there] = False
    missing = np.flatnonzero(left)
    starts = np.flatnonzero(np.diff(missing, prepend=-2) > 1)
    ends = np.append(starts[1:], missing.size) - 1
    runs = [
        f"{missing[start]:,}" if start == end else f"{missing[start]:,} to {missing[end]:,}"
        for start, end in zip(starts[:_SHOWN].tolist(), ends[:_SHOWN].tolist(), strict=True)
    ]
    more = f" and {starts.size - _SHOWN:,} more runs" if starts.size > _SHOWN else ""
    return (
        f"{missing.size:,} of {rows:,} rows are missing: {', '.join(runs)}{more}. "
        f"{_jobs_missing(parts, damaged)}, then merge again"
    )


def _jobs_missing(parts: Sequence[Part], damaged: Sequence[Place]) -> str:
    """Which jobs of an array have not done what is theirs."""
    begun = {part.job for part in parts if part.job is not None}
    unread = {
        (int(name[1]), int(name[2])) for path in damaged if (name := _OF_JOB.match(path.name))
    }
    begun |= unread
    if not begun:
        return "Run what wrote these parts again, which goes on"
    if len(counts := {count for _, count in begun}) != 1:
        several = " and of ".join(map(str, sorted(counts)))
        return f"Run all jobs of one array, which go on: these are of arrays of {several} jobs"
    (count,) = counts
    beside = {name for folder in {part.path.parent for part in parts} for name in names_in(folder)}
    named = []
    for number in range(count):
        job = (number, count)
        if job in unread:
            named.append(f"{number}/{count} (a part of it cannot be read)")
        elif name_of_done(job) not in beside:
            named.append(
                f"{number}/{count} ({'not finished' if job in begun else 'nothing of it'})"
            )
    if not named:
        return (
            f"All {count} jobs are done, and made other batches: with another max_tokens or "
            "batch_size, or GPUs with other memory free. Run score without shard, and with the "
            "output of these parts, which does the rest"
        )
    more = f" and {len(named) - _SHOWN:,} more" if len(named) > _SHOWN else ""
    return f"Run these jobs again, which go on: {', '.join(named[:_SHOWN])}{more}"
