"""Provenance of tables that are made of others: of some of their rows, or of several in a row.

Each part of such a table tells where it is from, by what of its own provenance differs from that
of the table. A part of which rows were ``taken`` says how many; one that is whole, and in its
place, is recognised by its data as a table of its own is.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.core.states import shown
from flowdata.errors import MismatchError
from flowdata.table.provenance import Provenance
from flowdata.version import __version__

TAKEN = "taken"
"""How many rows of a part there are, where these are not all, or in another order."""

SCORED_BY = ("model_hash", "adapters", "loss", "options", "dtype")
"""What must be the same for losses to be comparable."""
# None of a part's own: what made the table, and parts of parts.
_OF_TABLE = ("first_rows", "parts", "flowdata", "schema")


def parts_of(provenance: Provenance) -> list[dict[str, Any]]:
    """The parts of a table, in their order; a table that is none has itself for one."""
    own = {name: value for name, value in asdict(provenance).items() if name not in _OF_TABLE}
    if provenance.parts is None:
        return [own]
    return [own | part for part in json.loads(provenance.parts)]


def size_of(part: dict[str, Any]) -> int:
    """Rows of the table that are of this part."""
    size: int = part.get(TAKEN, part["rows"])
    return size


def selected_provenance(
    provenance: Provenance, rows: NDArray[np.int64], *, rising: bool
) -> Provenance:
    """The provenance of some rows of a table.

    Args:
        provenance: of the table.
        rows: their numbers.
        rising: whether they are in the order of the table, none of them twice.
    """
    if rising and rows.size == provenance.rows:
        return provenance
    parts = parts_of(provenance)
    sizes = [size_of(part) for part in parts]
    of_part = np.searchsorted(np.cumsum(sizes), rows, side="right")
    counts = np.bincount(of_part, minlength=len(parts)).tolist()
    taken = [
        part if rising and count == size else part | {TAKEN: count}
        for part, size, count in zip(parts, sizes, counts, strict=True)
        if count
    ]
    cut = provenance.truncated or None
    known = replace(provenance, rows=rows.size, truncated=None if cut else provenance.truncated)
    return _made_of(taken, known)


def joined_provenance(tables: Sequence[Provenance], *, mixed: bool) -> Provenance:
    """The provenance of tables in a row.

    Raises:
        MismatchError: for losses of several models or kinds, if they are not to be ``mixed``.
    """
    first = tables[0]
    same: dict[str, Any] = {}
    for name in (*SCORED_BY, "model", "key", "transform"):
        values = [getattr(table, name) for table in tables]
        differs = next((n for n, value in enumerate(values) if value != values[0]), None)
        if differs is not None and name in SCORED_BY and not mixed:
            raise MismatchError(
                f"table {differs} has {name}={shown(values[differs])}, table 0 has "
                f"{shown(values[0])}: their losses are not of one kind. Score them alike; or join "
                "them all the same, mixed=True, and weight them in groups"
            )
        same[name] = None if differs is not None else values[0]
    same["adapters"] = bool(same["adapters"])
    cut = [table.truncated for table in tables]
    known = replace(
        first,
        **same,
        rows=sum(table.rows for table in tables),
        truncated=None if None in cut else sum(filter(None, cut)),
        created=max((table.created for table in tables if table.created), default=None),
    )
    return _made_of([part for table in tables for part in parts_of(table)], known)


def _made_of(parts: list[dict[str, Any]], known: Provenance) -> Provenance:
    of_data: dict[str, Any] = dict.fromkeys(
        ("data_fingerprint", "transform", "first_rows", "content", "parts")
    )
    made = replace(known, **of_data, flowdata=__version__)
    own = asdict(made)
    differences = [
        {name: value for name, value in part.items() if name == "rows" or value != own.get(name)}
        for part in parts
    ]
    return replace(made, parts=json.dumps(differences))


def are_parts(text: str, rows: int) -> bool:
    """Whether a text says of which parts a table of so many rows is made."""
    try:
        parts = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        return False
    numbers = [part.get(name, 0) for part in parts for name in ("rows", TAKEN)]
    return (
        all(type(number) is int and number >= 0 for number in numbers)
        and all("rows" in part for part in parts)
        and all(
            type(part.get(name)) in (str, type(None))
            for part in parts
            for name in ("data_fingerprint", "content")
        )
        and sum(map(size_of, parts)) == rows
    )
