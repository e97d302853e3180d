"""The first rows of a stream: by them it is known again, as rows by number are by some of all."""

from collections.abc import Iterable, Mapping
from typing import Any

from flowdata.errors import MismatchError
from flowdata.rows.sources import Source
from flowdata.scoring.parts.folder import ADVICE
from flowdata.table.digest import Digest
from flowdata.table.row_keys import RowKeys

_FIRST_ROWS = 16
_HALF = 16


def hashes_of(rows: Iterable[Any]) -> str:
    """Hashes of the first of these rows, one after another."""
    return ",".join(_hash(row) for row, _ in zip(rows, range(_FIRST_ROWS), strict=False))


def require_first_rows(
    source: Source,
    key: str,
    keys: RowKeys,
    hashes: str | None,
    *,
    what: str,
    most: int = _FIRST_ROWS,
) -> None:
    """Refuse a stream whose first rows are not among those that were scored, or have changed.

    Of a row that reads differently twice, as by a random transform, the key alone is compared. What
    can be gone through only once is not looked at.

    Args:
        source: the stream.
        key: the column of keys.
        keys: those of the rows that were scored.
        hashes: of the first of these, by `hashes_of`; None where that is not known.
        what: was scored, for errors.
        most: rows that are read of the stream.

    Raises:
        MismatchError: naming the first row that is another one.
    """
    first, again = (source.first(min(most, _FIRST_ROWS)) for _ in range(2))
    known = (hashes or "").split(",")
    if not first:
        return
    own = [key_of(row, key, number) for number, row in enumerate(first)]
    rows = keys.find(own).tolist()
    for number, (place, row, same) in enumerate(zip(rows, first, again, strict=False)):
        if place < 0:
            found = "is none of the rows that were scored"
        elif (
            place < len(known)
            and known[place] not in ("", now := _hash(row))
            and now == _hash(same)
        ):
            found = "is not what it was when it was scored"
        else:
            continue
        raise MismatchError(
            f"{what} does not belong to this stream: its row {number:,}, with the key "
            f"{own[number]!r:.80}, {found}; {ADVICE}"
        )


def key_of(row: Any, key: str, number: int) -> Any:
    """The key in a row of a stream.

    Raises:
        ValueError: where there is none.
    """
    if not isinstance(row, Mapping) or key not in row:
        has = list(row) if isinstance(row, Mapping) else f"a {type(row).__name__}"
        raise ValueError(
            f"row {number:,} of the stream has no column {key!r}, there is {has!s:.300}"
        )
    value = row[key]
    return value.item() if getattr(value, "shape", None) == () else value


def _hash(row: Any) -> str:
    digest = Digest()
    digest.feed(row)
    return digest.hexdigest()[:_HALF]
