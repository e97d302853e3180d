"""Whether a table belongs to a data set, to a model, and to a pass."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from flowdata.core.states import require_same
from flowdata.errors import MismatchError, warn
from flowdata.table.content import are_comparable, other_content
from flowdata.table.data_columns import run_of
from flowdata.table.fingerprint import dataset_fingerprint, model_fingerprint
from flowdata.table.origins import TAKEN, parts_of, size_of
from flowdata.table.provenance import CONTENT, Provenance


def check_dataset(provenance: Provenance, dataset: Any) -> None:
    """Refuse a data set of another length or other content, see `LossTable.check`."""
    if hasattr(dataset, "iloc"):
        raise TypeError(
            f"a {type(dataset).__name__} has no rows by number: give "
            "datasets.Dataset.from_pandas(frame)"
        )
    check_length(dataset, provenance.rows)
    if provenance.parts is not None:
        _check_parts(parts_of(provenance), dataset)
    elif provenance.data_fingerprint is not None:
        expected, found = _compare(dataset, provenance.data_fingerprint, provenance.content)
        if found is None:
            warn(
                "only the length of the data set was checked against the loss table: its samples "
                "differ from read to read (random augmentation?) or cannot be hashed"
            )
        elif found != expected:
            raise MismatchError(
                f"the table was made for a data set with fingerprint {expected}, this one of the "
                f"same length has {found}: rows were changed or reordered. Score this data set"
            )


def _check_parts(parts: list[dict[str, Any]], dataset: Any) -> None:
    """Check the data of each part that is whole, by what it was recognised by before."""
    unknown, start = 0, 0
    for number, part in enumerate(parts):
        stop, expected = start + size_of(part), part.get("data_fingerprint")
        found = None
        if TAKEN not in part and expected is not None:
            rows = run_of(dataset, start, stop)
            expected, found = _compare(rows, expected, part.get(CONTENT))
        if found is None:
            unknown += stop - start
        elif found != expected:
            raise MismatchError(
                f"rows {start:,} to {stop - 1:,} of the table (part {number} of {len(parts)}) were "
                f"made for a data set with fingerprint {expected}, these rows have {found}: they "
                "were changed, reordered, or given other columns. Put together the data sets of "
                "the tables, in their order"
            )
        start = stop
    if unknown:
        warn(
            f"{unknown:,} of {start:,} rows were not checked against the data set, but by their "
            "number: they are a selection of a table's rows, or of data that cannot be recognised"
        )


def _compare(dataset: Any, some: str, content: str | None) -> tuple[str | None, str | None]:
    """What was a data set recognised by, and what is it now: by some rows; if need be, by all."""
    found = dataset_fingerprint(dataset)
    if found == some and (other := other_content(content, dataset)) is not None:
        return content, other
    return some, found


def require_same_pass(
    identity: Mapping[str, Any], found: Mapping[str, Any], *, what: str, advice: str
) -> None:
    """Make sure that what was found is of the pass that is needed, see `Provenance.identity`.

    The hashes of all rows are compared where both have one, of the same kind.

    Raises:
        MismatchError: with every difference.
    """
    here, there = ({n: v for n, v in some.items() if n != CONTENT} for some in (identity, found))
    require_same(here, there, what=what, advice=advice)
    own, other = identity.get(CONTENT), found.get(CONTENT)
    if are_comparable(own, other) and own != other:
        raise MismatchError(
            f"{what} does not belong here: its rows are not those that were scored, some were "
            f"changed or reordered (it has {CONTENT}={other!r}, here it is {own!r}). {advice}"
        )


def check_model(provenance: Provenance, model: nn.Module) -> None:
    """Refuse a model of other parameters, where it is known which model scored."""
    expected = provenance.model_hash
    if expected is None:
        return
    found = model_fingerprint(model, adapters=provenance.adapters)
    if found != expected:
        raise MismatchError(
            f"the table was scored by a model with hash {expected} "
            f"({provenance.model}), this model has hash {found}: load the "
            "pre-trained weights that scored it, or score again"
        )


def check_length(dataset: Any, rows: int) -> None:
    """Refuse what has another number of rows than there are losses."""
    if dataset is not None and len(dataset) != rows:
        raise MismatchError(
            f"there are {rows:,} losses, but the data set has {len(dataset):,} rows; "
            "score this data set, or pass the one that was scored"
        )
