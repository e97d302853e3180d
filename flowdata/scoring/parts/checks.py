"""Whether parts in a folder are of a pass, and agree with each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowdata.errors import MismatchError, TableFileError
from flowdata.table.checks import require_same_pass
from flowdata.table.part_file import Part


def why_foreign(part: Part, identity: Mapping[str, Any], adopted: Sequence[Any]) -> str | None:
    """A sentence that says why a part is not of the pass of this identity; None if it is."""
    what = f"the part {part.path}"
    if part.identity is not None:
        try:
            require_same_pass(identity, part.identity, what=what, advice="It is left out")
        except MismatchError as error:
            return str(error)
    elif part.path.name not in adopted:
        return f"{what} does not say of which pass it is. It is left out"
    rows = part.scores.rows
    if rows.size and rows.max() >= identity["rows"]:
        return f"{what} has row {rows.max():,}, of {identity['rows']:,} rows. It is left out"
    return None


def require_agreement(parts: Sequence[Part], rows: int) -> None:
    """Refuse parts without an identity that contradict another part.

    Those with one may hold a row twice: a rank that outlived a call has scored it too, and the
    last bits of a loss depend on its batch.
    """
    trusted_first = sorted(parts, key=lambda part: part.identity is None)
    for part in trusted_first:
        if _columns(part) != _columns(trusted_first[0]):
            raise _contradiction(part, trusted_first[0], "has other columns than")
    if not trusted_first or trusted_first[-1].identity is not None:
        return
    losses = np.full(rows, np.nan, dtype=np.float32)
    holder = np.full(rows, -1, dtype=np.int32)
    for number, part in enumerate(trusted_first):
        at, new = part.scores.rows, part.scores.losses
        near = np.isclose(losses[at], new, rtol=1e-2, atol=1e-2, equal_nan=True)
        if part.identity is None and (wrong := np.flatnonzero((holder[at] >= 0) & ~near)).size:
            other = trusted_first[holder[at][wrong[0]]]
            raise _contradiction(part, other, f"has another loss of row {at[wrong[0]]:,} than")
        losses[at], holder[at] = new, number


def _columns(part: Part) -> set[str]:
    """What it knows, but for lengths: parts of earlier versions have none."""
    known = {name for name, values in vars(part.scores).items() if values is not None}
    return known - {"lengths"}


def _contradiction(part: Part, other: Part, what: str) -> TableFileError:
    return TableFileError(
        f"the part {part.path} {what} {other.path.name}: one of them is not of this pass, move it "
        "out of the folder"
    )
